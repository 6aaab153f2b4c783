"""Preprocess pictures of any sizes to the network's input, on one stream of a GPU."""

from typing import Any

import numpy as np

from ..errors import Kind, SourceError
from ..image.geometry import compute_fit_box
from ..model.spec import ModelSpec
from ..types import AnyImage, InputBatch
from .arena import Buffer, Owned, PinnedMemory, align
from .context import Context
from .interop import ImportStream
from .kernels import Kernels
from .launch import SHOWN, InputShape
from .plan import DESCRIPTOR, Plan
from .staging import INITIAL_SIZE, MAX_KEPT_SIZE, Staging, get_shape
from .tables import Tables

BLOCKS_A_MULTIPROCESSOR = 2  # that a small batch is cut into


class WeightTables:
    """The weights of every length on the GPU, for all streams. Make and free them within the context.

    Attributes:
        tables: where they are in the memory.
        address: of the memory.
    """

    def __init__(self, context: Context, kernels: Kernels, shape: InputShape) -> None:
        self.tables = Tables.for_input(shape)
        self._memory = Buffer(context, self.tables.size)
        self.address = self._memory.address
        stream = context.cuda.Stream()
        if self.tables.longest:
            for launch in self.tables.list_launches(self.address):
                kernels.enqueue(launch, stream)
        stream.synchronize()

    def free(self) -> None:
        """Release them."""
        self._memory.free()


class Preprocessor:
    """One batch at a time on one stream, of at most `most` pictures.

    Attributes:
        staging: the batch.
        shown: address of a `SHOWN` for each picture.
    """

    def __init__(
        self,
        context: Context,
        kernels: Kernels,
        imports: ImportStream,
        weights: WeightTables,
        spec: ModelSpec,
        stream: Any,
        most: int,
    ) -> None:
        self._kernels, self._imports, self._weights, self._stream = kernels, imports, weights, stream
        self._blocks = BLOCKS_A_MULTIPROCESSOR * context.multiprocessors
        self._owned = Owned()
        try:
            self.staging = self._owned.add(Staging(context, spec, most))
            self._shown = self._owned.add(Buffer(context, most * SHOWN.itemsize))
            # For pictures that take three launches.
            self._descriptors = self._owned.add(PinnedMemory(context, most * DESCRIPTOR.itemsize))
            self._workspace = self._owned.add(Buffer(context, INITIAL_SIZE))
        except BaseException:
            self.free()
            raise
        self.shown = self._shown.address

    @property
    def takes_one_launch(self) -> bool:
        """Return whether the batch that is staged has tables for all of its boxes."""
        return self.staging.longest <= self._weights.tables.longest

    def order_imports(self) -> None:
        """Have the stream wait for those who write the images in device memory that are staged."""
        if self.staging.holds_device_images:
            self._imports.block(self._stream.handle)

    def preprocess(self, images: int, *, separately: bool = False) -> None:
        """Preprocess the staged batch, of whatever boxes, into the device address `images`.

        Args:
            images: where it goes.
            separately: by the three launches also where one would do.

        Raises:
            SourceError: as of `launch_separately`.
            NoRoomError: as of `launch_separately`.
        """
        if separately or not self.takes_one_launch:
            self.launch_separately(images)
        else:
            self.launch(images, self.staging.count)

    def launch(self, images: int, most: int) -> None:
        """Preprocess the staged batch, of at most `most` pictures, into the device address `images`.

        It may be captured: what it launches depends on `most` alone.
        """
        tables = self._weights.tables
        bands = tables.choose_bands(most, self._blocks)
        addresses = (self._weights.address, self.staging.batch, self.staging.pictures, images, self.shown)
        self._kernels.enqueue(tables.make_launch(*addresses, most=most, bands=bands), self._stream)

    def launch_separately(self, images: int) -> None:
        """Do the same with boxes of any length, by three launches.

        Raises:
            SourceError: if the pictures have more rows than a launch takes.
            NoRoomError: if the rows between the passes do not fit.
        """
        try:
            plan = Plan.make(self.staging.list_geometries(), self._weights.tables.shape)
            self._workspace.reserve(align(plan.tables_size) + plan.workspace_size)
            self._descriptors.host[: plan.descriptors.nbytes] = plan.descriptors.view(np.uint8)
            workspace = self._workspace.address + align(plan.tables_size)
            addresses = (self.staging.base, self._descriptors.address, self._workspace.address, workspace)
            launches = plan.list_launches(*addresses, images, self.shown)
        except ValueError as error:
            raise SourceError(Kind.TOO_LARGE, f"too large to become the model's input: {error}") from error
        for launch in launches:
            self._kernels.enqueue(launch, self._stream)

    def release(self) -> None:
        """Drop what the batch read, once the stream is done with it, and free memory that few batches need."""
        self.staging.release()
        self._workspace.trim(MAX_KEPT_SIZE)

    def free(self) -> None:
        """Release everything; nothing may be in flight."""
        self._stream = None
        self._owned.free()


def count_device_bytes(picture: AnyImage, spec: ModelSpec) -> int:
    """Count the bytes on the GPU that a picture needs: pixels to upload, and the rows between the passes."""
    height, width = get_shape(picture)[:2]
    _, top, _, bottom = compute_fit_box((width, height), spec.input)
    uploaded = picture.size if isinstance(picture, np.ndarray) else 0
    return int(uploaded + (bottom - top) * spec.width * spec.channels)


def read_back(context: Context, address: int, shape: tuple[int, int, int, int]) -> InputBatch:
    """Return a copy of device memory, uint8 of this shape."""
    pixels = InputBatch(np.empty(shape, np.uint8))
    context.cuda.memcpy_dtoh(pixels, address)
    return pixels
