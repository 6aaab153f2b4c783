"""Preprocess pictures of any sizes to the network's input, on one stream of a GPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import Kind, SourceError
from ..image.geometry import check_resize, compute_fit_box
from ..model.spec import ModelSpec
from ..types import AnyImage, DeviceImage, InputBatch
from .arena import Buffer, align
from .context import Context
from .interop import ImportStream
from .kernels import Kernels
from .launch import DESCRIPTOR, Geometry, Plan

# Bytes of a buffer: at the start, as batches of faces need, and the maximum that is kept for the next batch.
INITIAL_SIZE = 4 * 1024 * 1024
MAX_KEPT_SIZE = 256 * 1024 * 1024


class Preprocessor:
    """One batch at a time on one stream: a copy of descriptors and pixels, then three launches.

    Its buffers are used again for the next batch: nobody may upload that before the stream is done with this one.
    """

    def __init__(
        self, context: Context, kernels: Kernels, imports: ImportStream, spec: ModelSpec, stream: Any
    ) -> None:
        self._context, self._kernels, self._imports = context, kernels, imports
        self._spec, self._stream = spec, stream
        self._upload = Buffer(context, INITIAL_SIZE, pinned=True)
        self._workspace = Buffer(context, INITIAL_SIZE)
        self._owners: list[object] = []  # of device images in flight

    def upload(self, pictures: Sequence[AnyImage]) -> Plan:
        """Start the copy of a batch to the GPU: descriptors, and the pixels that are not there yet.

        Raises:
            NoRoomError: if the batch does not fit.
        """
        spec = self._spec
        head = align(len(pictures) * DESCRIPTOR.itemsize)
        offsets, end = [], head
        for picture in pictures:
            offsets.append(end)
            end += 0 if isinstance(picture, DeviceImage) else picture.size
        self._upload.reserve(end)
        geometries = [
            self._describe_geometry(picture, offset) for picture, offset in zip(pictures, offsets, strict=True)
        ]
        try:
            plan = Plan.make(geometries, spec.channels, spec.height, spec.width)
        except ValueError as error:
            raise SourceError(Kind.TOO_LARGE, f"too large to become the model's input: {error}") from error
        self._workspace.reserve(align(plan.tables_size) + plan.workspace_size)
        host = self._upload.host
        host[: plan.descriptors.nbytes] = plan.descriptors.view(np.uint8)
        for picture, offset in zip(pictures, offsets, strict=True):
            if not isinstance(picture, DeviceImage):
                host[offset : offset + picture.size].reshape(picture.shape)[...] = picture
        self._context.cuda.memcpy_htod_async(self._upload.address, host[:end], self._stream)
        return plan

    def launch(self, pictures: Sequence[AnyImage], plan: Plan, images: int) -> None:
        """Preprocess an uploaded batch into the device address `images`."""
        stream = self._stream
        self._owners = [picture.owner for picture in pictures if isinstance(picture, DeviceImage)]
        if self._owners:
            self._imports.block(stream.handle)
        workspace = self._workspace.address + align(plan.tables_size)
        addresses = (self._upload.address, self._upload.address, self._workspace.address, workspace, images)
        for launch in plan.list_launches(*addresses):
            kernel = self._kernels.functions[launch.kernel]
            kernel(*launch.arguments, grid=(launch.grid, 1), block=(*launch.block, 1), stream=stream)

    def upload_inputs(self, images: InputBatch, address: int) -> None:
        """Start the copy of pictures that are preprocessed already to the device address `address`.

        Raises:
            NoRoomError: if they do not fit.
        """
        self._upload.reserve(images.nbytes)
        host = self._upload.host[: images.nbytes]
        host.reshape(images.shape)[...] = images
        self._context.cuda.memcpy_htod_async(address, host, self._stream)

    def release(self) -> None:
        """Drop what the batch read, once the stream is done with it, and free memory that few batches need."""
        self._owners = []
        self._upload.trim(MAX_KEPT_SIZE)
        self._workspace.trim(MAX_KEPT_SIZE)

    def free(self) -> None:
        """Release everything; nothing may be in flight."""
        self._upload.free()
        self._workspace.free()
        self._stream = None
        self.release()

    def _describe_geometry(self, picture: AnyImage, offset: int) -> Geometry:
        """Describe where a picture is, in bytes from the uploaded buffer's address, and its part to resize."""
        spec = self._spec
        if isinstance(picture, DeviceImage):
            height, width, channels, bgr = picture.height, picture.width, picture.channels, picture.bgr
            offset, stride = picture.address - self._upload.address, picture.stride
        else:
            height, width, channels = (*picture.shape, 1)[:3]
            bgr, stride = False, width * channels
        box = check_resize((width, height), spec.input)
        return Geometry(offset, height, width, stride, channels, bgr, box)


def get_size(picture: AnyImage) -> tuple[int, int]:
    """Return the width and height of a picture."""
    if isinstance(picture, DeviceImage):
        return picture.width, picture.height
    return picture.shape[1], picture.shape[0]


def count_device_bytes(picture: AnyImage, spec: ModelSpec) -> int:
    """Count the bytes on the GPU that a picture needs: pixels to upload, and the rows between the passes."""
    _, top, _, bottom = compute_fit_box(get_size(picture), spec.input)
    uploaded = picture.size if isinstance(picture, np.ndarray) else 0
    return int(uploaded + (bottom - top) * spec.width * spec.channels)


def read_back(context: Context, address: int, shape: tuple[int, int, int, int]) -> InputBatch:
    """Return a copy of device memory, uint8 of this shape."""
    pixels = InputBatch(np.empty(shape, np.uint8))
    context.cuda.memcpy_dtoh(pixels, address)
    return pixels
