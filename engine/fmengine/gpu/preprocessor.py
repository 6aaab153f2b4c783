"""Pictures of any sizes to the network's input, on one stream of a GPU."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import Kind, SourceError
from ..image.geometry import check_resize, fit_box
from ..model.spec import ModelSpec
from ..system.cache import Cache
from ..types import DeviceImage, InputBatch
from .arena import Buffer, aligned
from .context import Context
from .driver import describe_gpu
from .interop import Arrivals, Picture
from .kernels import load_cubin
from .launch import PICTURE, Geometry, Plan

# Bytes of a buffer: from the start, as batches of faces need, and kept at most for the next batch.
USUAL = 4 * 1024 * 1024
KEPT = 256 * 1024 * 1024
KERNELS = ("tabulate", "squeeze_gray", "squeeze_rgb", "stack")


class Kernels:
    """The loaded kernels of preprocess.cu, for any stream. Make it within the context.

    Attributes:
        digest: sha256 of the compiled code.
    """

    def __init__(self, context: Context, cache: Cache | None = None) -> None:
        cubin = load_cubin(describe_gpu(context.index).compute_capability, cache)
        self.digest = hashlib.sha256(cubin).hexdigest()
        self._module = context.cuda.module_from_buffer(cubin)
        self.functions = {name: self._module.get_function(name) for name in KERNELS}

    def free(self) -> None:
        """Unload them."""
        self.functions = {}
        self._module = None


class Preprocessor:
    """One batch at a time on one stream: a copy of descriptors and pixels, then three launches.

    Its buffers are used again as soon as the stream has done with them, and not before: whoever submits waits.
    """

    def __init__(
        self, context: Context, kernels: Kernels, arrivals: Arrivals, spec: ModelSpec, stream: Any
    ) -> None:
        self._context, self._kernels, self._arrivals = context, kernels, arrivals
        self._spec, self._stream = spec, stream
        self._upload = Buffer(context, USUAL, pinned=True)
        self._scratch = Buffer(context, USUAL)
        self._alive: list[object] = []

    def stage(self, pictures: Sequence[Picture]) -> Plan:
        """Put the pixels of a batch that are not there yet on their way to the GPU.

        Raises:
            NoRoomError: if the batch does not fit.
        """
        spec = self._spec
        head = aligned(len(pictures) * PICTURE.itemsize)
        offsets, end = [], head
        for picture in pictures:
            offsets.append(end)
            end += 0 if isinstance(picture, DeviceImage) else picture.size
        self._upload.reserve(end)
        geometries = [self._geometry(picture, offset) for picture, offset in zip(pictures, offsets, strict=True)]
        try:
            plan = Plan.make(geometries, spec.channels, spec.height, spec.width)
        except ValueError as error:
            raise SourceError(Kind.TOO_LARGE, f"too large to become the model's input: {error}") from error
        self._scratch.reserve(aligned(plan.tables_size) + plan.workspace_size)
        host = self._upload.host
        host[: plan.pictures.nbytes] = plan.pictures.view(np.uint8)
        for picture, offset in zip(pictures, offsets, strict=True):
            if not isinstance(picture, DeviceImage):
                host[offset : offset + picture.size].reshape(picture.shape)[...] = picture
        self._context.cuda.memcpy_htod_async(self._upload.address, host[:end], self._stream)
        return plan

    def launch(self, pictures: Sequence[Picture], plan: Plan, images: int) -> None:
        """Preprocess a staged batch into the device address `images`."""
        stream = self._stream
        self._alive = [picture.owner for picture in pictures if isinstance(picture, DeviceImage)]
        if self._alive:
            self._arrivals.before(stream.handle)
        workspace = self._scratch.address + aligned(plan.tables_size)
        addresses = (self._upload.address, self._upload.address, self._scratch.address, workspace, images)
        for launch in plan.launches(*addresses):
            kernel = self._kernels.functions[launch.kernel]
            kernel(*launch.arguments, grid=(launch.grid, 1), block=(*launch.block, 1), stream=stream)

    def copy(self, images: InputBatch, address: int) -> None:
        """Upload pictures that are preprocessed already to the device address `address`.

        Raises:
            NoRoomError: if they do not fit.
        """
        self._upload.reserve(images.nbytes)
        host = self._upload.host[: images.nbytes]
        host.reshape(images.shape)[...] = images
        self._context.cuda.memcpy_htod_async(address, host, self._stream)

    def done(self) -> None:
        """The stream has done with the batch: let go of what it read, and of memory that few batches need."""
        self._alive = []
        self._upload.trim(KEPT)
        self._scratch.trim(KEPT)

    def free(self) -> None:
        """Give everything back; nothing may be in flight."""
        self._upload.free()
        self._scratch.free()
        self._stream = None
        self.done()

    def _geometry(self, picture: Picture, offset: int) -> Geometry:
        """Where a picture lies, in bytes from the uploaded buffer's address."""
        spec = self._spec
        if isinstance(picture, DeviceImage):
            height, width, channels, bgr = picture.height, picture.width, picture.channels, picture.bgr
            offset, stride = picture.address - self._upload.address, picture.stride
        else:
            height, width, channels = (*picture.shape, 1)[:3]
            bgr, stride = False, width * channels
        box = check_resize((width, height), spec.input)
        return Geometry(offset, height, width, stride, channels, bgr, box)


def weigh(picture: Picture, spec: ModelSpec) -> int:
    """Bytes on the GPU that a picture takes: pixels that must be uploaded, and the rows between the passes."""
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    _, top, _, bottom = fit_box((width, height), spec.input)
    uploaded = picture.size if isinstance(picture, np.ndarray) else 0
    return int(uploaded + (bottom - top) * spec.width * spec.channels)


def read_back(context: Context, address: int, shape: tuple[int, int, int, int]) -> InputBatch:
    """A copy of device memory, once everything before on its stream is done."""
    pixels = InputBatch(np.empty(shape, np.uint8))
    context.cuda.memcpy_dtoh(pixels, address)
    return pixels
