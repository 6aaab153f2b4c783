"""The pictures of one batch where the kernels read them: what describes them, and their pixels.

Both are pinned memory of the host, which a GPU reads by itself. What describes the pictures never moves, so that
captured graphs can hold its address; the pixels' address stands in it.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..image.geometry import check_resize
from ..model.spec import InputSpec, ModelSpec
from ..types import AnyImage, DeviceImage, PackedImages
from .arena import Buffer, PinnedMemory
from .context import Context
from .copier import PARALLEL_BYTES, Copier
from .launch import ANYWHERE, BATCH, PICTURE, Geometry

# Bytes of pixels: room at the start, as batches of faces need, and the most that is kept for the next batch.
INITIAL_SIZE = 4 * 1024 * 1024
MAX_KEPT_SIZE = 256 * 1024 * 1024
# Pictures at most that the GPU reads over PCIe where they are: a copy would take longer to begin.
MAX_IN_PLACE = 8
MAX_BYTES_IN_PLACE = 256 * 1024


class Staging:
    """Pictures of one batch. Nobody may stage the next before the GPU is done with it.

    Attributes:
        batch: address of a `BATCH` for the kernels.
        pictures: address of a `PICTURE` for each of `most` pictures.
        base: address that the pictures' pixels count from.
        longest: side of the boxes of the batch.
        count: pictures that are staged.
    """

    def __init__(self, context: Context, spec: ModelSpec, most: int) -> None:
        self._context, self._spec = context, spec
        self._head = PinnedMemory(context, BATCH.itemsize + most * PICTURE.itemsize)
        self._pixels = Buffer(context, INITIAL_SIZE, pinned=True)
        self._copier = Copier()
        head = self._head.host
        self._batch = head[: BATCH.itemsize].view(BATCH)
        self._pictures = head[BATCH.itemsize :][: most * PICTURE.itemsize].view(PICTURE)
        self._pictures[...] = np.zeros((), PICTURE)
        self.batch, self.pictures = self._head.address, self._head.address + BATCH.itemsize
        self._describe_shape = lru_cache(4096)(partial(describe_shape, spec=spec.input))
        self._last: object = None  # what the descriptors stand for
        self.base = self.longest = self.count = self._size = 0
        self._begin = 0  # of packed images, in their memory
        self._owners: list[object] = []  # of device images in flight

    @property
    def holds_device_images(self) -> bool:
        """Return whether images that are staged lie in device memory."""
        return bool(self._owners)

    def stage(self, pictures: Sequence[AnyImage] | npt.NDArray[np.uint8], stream: Any) -> None:
        """Describe a batch, and start the copy of its pixels where that is worth it.

        Args:
            pictures: images of any sizes; or those of one size as one array, uint8 `[N, H, W]` or `[N, H, W, C]`.
                The memory of `PackedImages` that has an address must not change until the batch is done.
            stream: of the copy.

        Raises:
            NoRoomError: if the batch does not fit.
            SourceError: for a picture that would take far more work than it has pixels.
        """
        self._owners = []
        if isinstance(pictures, PackedImages):
            self._stage_packed(pictures, stream)
            return
        if isinstance(pictures, np.ndarray):
            size = self._stage_stack(pictures, pictures.shape[1:])
        elif len(on_host := [picture for picture in pictures if isinstance(picture, np.ndarray)]) < len(pictures):
            size = self._stage_mixed(pictures, on_host)
        elif len({picture.shape for picture in on_host}) == 1:
            size = self._stage_stack(on_host, on_host[0].shape)
        else:
            size = self._stage_list(on_host)
        self._place(self._pixels.host[:size], self._pixels.host_address, stream)

    def list_geometries(self) -> list[Geometry]:
        """List what is staged, for the launches that take boxes of any length."""
        described = self._pictures[: self.count]
        lefts, tops = described["left"], described["top"]
        boxes = np.stack([lefts, tops, lefts + described["crop_width"], tops + described["crop_height"]], axis=1)
        names = ("pixels", "height", "width", "stride", "channels", "bgr")
        columns = [described[name].tolist() for name in names]
        return [Geometry(*row) for row in zip(*columns, map(tuple, boxes.tolist()), strict=True)]

    def release(self) -> None:
        """Drop what the batch read, once the stream is done with it, and free memory that few batches need."""
        self._owners = []
        self._pixels.trim(MAX_KEPT_SIZE)

    def free(self) -> None:
        """Release everything; nothing may be in flight."""
        self._batch, self._pictures = np.empty(0, BATCH), np.empty(0, PICTURE)
        self._copier.free()
        self._head.free()
        self._pixels.free()
        self._owners = []

    def _stage_stack(
        self, pictures: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8], shape: tuple[int, ...]
    ) -> int:
        """Stage pictures of one size: the same as last time need no new description."""
        count = len(pictures)
        if self._last != (count, shape):
            self._describe_stack(count, shape)
        size = self._size
        self._pixels.reserve(size)
        target = self._pixels.host[:size]
        if size >= PARALLEL_BYTES:
            self._copier.copy(list(pictures), target)
        elif isinstance(pictures, np.ndarray):
            np.copyto(target.reshape(count, *shape), pictures)
        elif count == 1:
            np.copyto(target.reshape(shape), pictures[0])
        else:
            np.concatenate(pictures, out=target.reshape(count * shape[0], *shape[1:]))
        return size

    def _describe_stack(self, count: int, shape: tuple[int, ...]) -> None:
        row, size, self.longest = self._describe_shape(shape)
        self._pictures[:count] = np.frombuffer(count * row, PICTURE)
        self._pictures["pixels"][:count] = size * np.arange(count)
        self._size = count * size
        self._set_bounds(0, self._size, count)
        self._last = count, shape

    def _stage_list(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> int:
        """Stage pictures of several sizes."""
        sizes = self._describe([picture.shape for picture in pictures])
        ends = np.cumsum(sizes)
        self._pictures["pixels"][: len(pictures)] = ends - sizes
        size = int(ends[-1])
        self._pixels.reserve(size)
        self._copier.copy(pictures, self._pixels.host[:size])
        self._set_bounds(0, size, len(pictures))
        return size

    def _stage_mixed(self, pictures: Sequence[AnyImage], on_host: Sequence[npt.NDArray[np.uint8]]) -> int:
        """Stage pictures of which some lie in device memory: they count from the same base."""
        size = sum(picture.size for picture in on_host)
        self._pixels.reserve(size)
        if on_host:
            self._copier.copy(on_host, self._pixels.host[:size])
        self._describe([get_shape(picture) for picture in pictures])
        self.count = len(pictures)
        base = self._choose_base(size, self._pixels.host_address)
        at = 0
        for picture, described in zip(pictures, self._pictures, strict=False):
            if isinstance(picture, DeviceImage):
                described["pixels"] = picture.address - base
                described["stride"], described["bgr"] = picture.stride, picture.bgr
                self._owners.append(picture.owner)
            else:
                described["pixels"] = at
                at += picture.size
        self._set_bounds(-ANYWHERE, ANYWHERE, len(pictures))  # which nobody but this process writes
        return size

    def _stage_packed(self, pictures: PackedImages, stream: Any) -> None:
        """Stage pictures that lie in one memory, without a copy on the host where a GPU reads it."""
        key = pictures.places.tobytes()
        if self._last != key:
            self._describe_places(pictures.places)
            self._last = key
        self._pixels.reserve(self._size)
        pixels = pictures.memory[self._begin : self._begin + self._size]
        address = pictures.address + self._begin
        if not pictures.address:
            target, address = self._pixels.host[: self._size], self._pixels.host_address
            self._copier.copy([pixels], target)
            pixels = target
        self._place(pixels, address, stream)

    def _describe_places(self, places: npt.NDArray[np.int32]) -> None:
        sizes, offsets = self._describe(places[:, 1:].tolist()), places[:, 0].astype(np.int64)
        self._begin = int(offsets.min())
        self._size = int((offsets + sizes).max()) - self._begin
        self._pictures["pixels"][: len(places)] = offsets - self._begin
        self._set_bounds(0, self._size, len(places))

    def _describe(self, shapes: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
        """Describe pictures of these shapes, but for where they are; return their bytes."""
        self._last = None
        rows, sizes, sides = zip(*map(self._describe_shape, map(tuple, shapes)), strict=True)
        self._pictures[: len(rows)] = np.frombuffer(b"".join(rows), PICTURE)
        self.longest = max(sides)
        return np.array(sizes, np.int64)

    def _set_bounds(self, begin: int, end: int, count: int) -> None:
        self._batch["begin"], self._batch["end"], self._batch["count"] = begin, end, count
        self.count = count

    def _choose_base(self, size: int, host_address: int) -> int:
        in_place = self.count <= MAX_IN_PLACE and size <= MAX_BYTES_IN_PLACE
        return host_address if in_place else self._pixels.address

    def _place(self, pixels: npt.NDArray[np.uint8], address: int, stream: Any) -> None:
        """Say where the pixels are, and start their copy to the GPU unless it reads them where they are.

        Args:
            pixels: of the batch, in memory that a GPU reads.
            address: of the same, for the GPU.
            stream: of the copy.
        """
        if (base := self._choose_base(len(pixels), address)) != self.base:
            self._batch["base"] = self.base = base
        if len(pixels) and base != address:
            self._context.cuda.memcpy_htod_async(self._pixels.address, pixels, stream)


class ShapeDescription(NamedTuple):
    """What pictures of one shape have in common.

    Attributes:
        row: a `PICTURE` at offset 0, as bytes.
        size: of a picture, in bytes.
        longest: side of its box.
    """

    row: bytes
    size: int
    longest: int


def describe_shape(shape: tuple[int, ...], spec: InputSpec) -> ShapeDescription:
    """Describe pictures of a shape, `[H, W]` or `[H, W, C]`, whose rows follow each other; no C is one channel.

    Raises:
        SourceError: for a picture that would take far more work than it has pixels.
    """
    height, width = shape[:2]
    channels = sum(shape[2:]) or 1
    left, top, right, bottom = check_resize((width, height), spec)
    row = (0, width * channels, height, width, left, top, bottom - top, right - left, channels, 0)
    size = height * width * channels
    return ShapeDescription(np.array(row, PICTURE).tobytes(), size, max(right - left, bottom - top))


def get_shape(picture: AnyImage) -> tuple[int, ...]:
    """Return the shape of an image in whichever memory, `[H, W]` or `[H, W, C]`."""
    if isinstance(picture, DeviceImage):
        return picture.height, picture.width, picture.channels
    shape: tuple[int, ...] = picture.shape
    return shape
