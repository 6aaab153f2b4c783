"""Pictures that lie in a GPU's memory already, over the two protocols that array libraries share.

`__cuda_array_interface__` (versions 2 and 3, numba.readthedocs.io) and DLPack (dmlc.github.io/dlpack). Nothing is
copied: the kernel reads where they lie, after the work that writes them.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from ..decode import Channels
from ..errors import Kind, SourceError
from ..preprocess import Pixels
from .context import Context

CUDA_DEVICE = 2  # DLPack's kDLCUDA
NO_ORDER = -1  # DLPack: the stream that means "wait for nothing"


class DevicePicture(NamedTuple):
    """A picture on the GPU.

    Attributes:
        address: of its first pixel.
        height: rows.
        width: columns.
        stride: bytes from one row to the next.
        channels: bytes a pixel, 1, 3 or 4; the fourth is not read.
        bgr: whether blue comes first.
        order: makes a stream (its handle) wait for whoever writes the pixels, by way of an event (its handle);
            returns what must live until they are read.
    """

    address: int
    height: int
    width: int
    stride: int
    channels: int
    bgr: bool
    order: Callable[[int, Any], object]


Picture = Pixels | DevicePicture


class _Layout(NamedTuple):
    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # bytes


def device_picture(source: Any, context: Context, channels: Channels) -> DevicePicture:
    """Check a picture in device memory: uint8, `[H, W]` or `[H, W, C]` with C of 1, 3 or 4, pixels side by side.

    Args:
        source: has `__cuda_array_interface__` or `__dlpack__`.
        context: of the GPU that will read it.
        channels: the order of the channels.

    Raises:
        SourceError: if it is anything else, or lies on another GPU or on the host.
    """
    interface = getattr(source, "__cuda_array_interface__", None)
    layout = _from_dlpack(source.__dlpack__(stream=NO_ORDER)) if interface is None else _from_interface(interface)
    height, width, count = _shape(layout)
    stride = _row_stride(layout, width, count)
    _check_place(layout.address, context)
    if interface is None:
        order: Callable[[int, Any], object] = lambda stream, event: source.__dlpack__(stream=stream)  # noqa: E731
    else:
        order = _after(context, source, interface.get("stream"))
    return DevicePicture(layout.address, height, width, stride, count, channels == "bgr" and count > 1, order)


def _shape(layout: _Layout) -> tuple[int, int, int]:
    if layout.dtype != "|u1":
        raise _refused(f"device memory of type {layout.dtype}; expected |u1, uint8 levels from 0 to 255")
    height, width, count = (*layout.shape, 1)[:3] if len(layout.shape) in (2, 3) else (0, 0, 0)
    if count not in (1, 3, 4):
        raise _refused(
            f"device memory of shape {layout.shape}; expected [H, W] or [H, W, C] with C of 1, 3 or 4: "
            "for a tensor of [C, H, W], give tensor.permute(1, 2, 0).contiguous()"
        )
    if not height or not width:
        raise SourceError(Kind.EMPTY, f"device memory of shape {layout.shape} has no pixels")
    return height, width, count


def _row_stride(layout: _Layout, width: int, count: int) -> int:
    if layout.strides is None:
        return width * count
    row, *pixel = layout.strides
    if tuple(pixel) != ((count, 1) if len(pixel) == 2 else (1,)) or row < width * count:
        raise _refused(
            f"device memory with strides of {layout.strides} bytes; expected pixels side by side, such as "
            f"({width * count}, {count}, 1): make it contiguous. Rows may be further apart"
        )
    return row


def _check_place(address: int, context: Context) -> None:
    driver = context.runtime
    kinds = driver.CUpointer_attribute
    status, index = driver.cuPointerGetAttribute(kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise _refused(f"the address {address:#x} is no memory of a GPU ({status.name}); expected device memory")
    if int(index) != context.index:
        raise _refused(f"the picture lies on GPU {int(index)}, and this engine runs on GPU {context.index}")


def _after(context: Context, source: object, producer: int | None) -> Callable[[int, Any], object]:
    """Wait for the stream that the interface names; none means that the pixels are there already."""
    if producer == 0:
        raise _refused("`__cuda_array_interface__` names stream 0, which it forbids: 1 is the default stream")

    def order(stream: int, event: Any) -> object:
        if producer is not None:
            driver = context.runtime
            (status,) = driver.cuEventRecord(event, producer)
            if status == driver.CUresult.CUDA_SUCCESS:
                (status,) = driver.cuStreamWaitEvent(stream, event, 0)
            if status != driver.CUresult.CUDA_SUCCESS:
                raise _refused(f"cannot wait for stream {producer:#x} of the picture: {status.name}")
        return source

    return order


def _from_interface(interface: dict[str, Any]) -> _Layout:
    strides = interface.get("strides")
    return _Layout(
        int(interface["data"][0] or 0),
        str(interface["typestr"]),
        tuple(interface["shape"]),
        None if strides is None else tuple(strides),
    )


class Tensor(ctypes.Structure):
    """DLPack's `DLTensor`, which every version of a managed tensor holds."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(capsule: Any) -> _Layout:
    """Read an unversioned capsule and leave it unused, so that it deletes itself."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = Tensor.from_address(get(capsule, b"dltensor"))
    if tensor.device_type != CUDA_DEVICE:
        raise _refused(f"DLPack names device type {tensor.device_type}; expected {CUDA_DEVICE}, CUDA")
    code = "iufOb?c"[tensor.code] if tensor.code < 7 else "?"
    size = tensor.bits * tensor.lanes // 8
    strides = tuple(size * tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    return _Layout(
        (tensor.data or 0) + tensor.byte_offset,
        f"{'|' if size == 1 else '<'}{code}{size}",
        tuple(tensor.shape[axis] for axis in range(tensor.ndim)),
        strides,
    )


def _refused(message: str) -> SourceError:
    return SourceError(Kind.UNSUPPORTED, message)
