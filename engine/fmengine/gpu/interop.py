"""Import images that are in a GPU's memory already, over the two protocols that array libraries share.

`__cuda_array_interface__` (versions 2 and 3, numba.readthedocs.io) and DLPack (dmlc.github.io/dlpack). Nothing is
copied: the kernel reads them there, after the work that writes them.
"""

import ctypes
import threading
from typing import Any, NamedTuple

from ..errors import FmengineError, Kind, SourceError
from ..types import Channels, DeviceImage
from .context import Context
from .driver import check_status

CUDA_DEVICE = 2  # DLPack's kDLCUDA
LEGACY_STREAM = 1  # handle of the default stream


class _Layout(NamedTuple):
    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # bytes


class ImportStream:
    """A stream that orders readers after producers: it waits for those who write imported images, and readers wait
    for it.

    Make, use and free it within the context; from any thread.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()  # nobody may record the event again before it is waited for
        driver = context.driver
        self._stream: Any = context.cuda.Stream(driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        created = driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        (self._event,) = check_status(created, "CUDA cannot make an event: {status}")

    @property
    def handle(self) -> int:
        """Handle of the stream."""
        return int(self._stream.handle)

    def wait_for(self, producer: int) -> None:
        """Make this stream wait for the work that is in a producer's stream (its handle) now."""
        self._order(producer, self.handle)

    def block(self, reader: int) -> None:
        """Make a reader's stream (its handle) wait for every image that was imported until now."""
        self._order(self.handle, reader)

    def free(self) -> None:
        """Release everything."""
        if self._event is not None:
            self._context.driver.cuEventDestroy(self._event)
        self._event = self._stream = None

    def _order(self, first: int, second: int) -> None:
        driver = self._context.driver
        message = f"cannot wait for stream {first:#x} of the picture: {{status}}"
        with self._lock:
            check_status(driver.cuEventRecord(self._event, first), message, _make_unsupported_error)
            check_status(driver.cuStreamWaitEvent(second, self._event, 0), message, _make_unsupported_error)


def import_image(source: Any, context: Context, imports: ImportStream, channels: Channels) -> DeviceImage:
    """Import an image in device memory: uint8, `[H, W]` or `[H, W, C]` with C of 1, 3 or 4, pixels side by side.

    Call it in the thread that made the image: libraries synchronize with that thread's current stream.

    Args:
        source: has `__dlpack__` or `__cuda_array_interface__`.
        context: of the GPU that will read it.
        imports: of the same.
        channels: the order of the channels.

    Raises:
        SourceError: if it is anything else, or lies on another GPU or on the host.
    """
    try:
        if hasattr(source, "__dlpack__"):
            kind, index = source.__dlpack_device__()
            _check_device(int(kind), int(index), context)
            owner = (source, source.__dlpack__(stream=imports.handle))
            layout = _read_dlpack(owner[1])
        else:
            interface = source.__cuda_array_interface__
            owner, layout = source, _read_interface(interface)
            _check_address(layout, context)
            _wait_for_producer(interface, imports)
    except (FmengineError, context.cuda.Error):
        raise
    except Exception as error:  # of the library that holds it, such as for a tensor that needs gradients
        raise _make_unsupported_error(
            f"its library does not hand the picture over: {type(error).__name__}: {error}"
        ) from error
    height, width, count = _read_shape(layout)
    stride = _read_row_stride(layout, height, width, count)
    return DeviceImage(layout.address, height, width, stride, count, channels == "bgr" and count > 1, owner)


def _read_shape(layout: _Layout) -> tuple[int, int, int]:
    if layout.dtype != "|u1":
        raise _make_unsupported_error(
            f"device memory of type {layout.dtype}; expected |u1, uint8 levels from 0 to 255"
        )
    height, width, count = (*layout.shape, 1)[:3] if len(layout.shape) in (2, 3) else (0, 0, 0)
    if count not in (1, 3, 4):
        raise _make_unsupported_error(
            f"device memory of shape {layout.shape}; expected [H, W] or [H, W, C] with C of 1, 3 or 4: "
            "for a tensor of [C, H, W], give tensor.permute(1, 2, 0).contiguous()"
        )
    if not height or not width:
        raise SourceError(Kind.EMPTY, f"device memory of shape {layout.shape} has no pixels")
    return height, width, count


def _read_row_stride(layout: _Layout, height: int, width: int, count: int) -> int:
    usual = (width * count, count, 1)[: len(layout.shape)] if len(layout.shape) == 3 else (width, 1)
    # Where there is one row, column or channel, its stride means nothing.
    strides = tuple(
        stride if extent > 1 else expected
        for stride, extent, expected in zip(layout.strides or usual, layout.shape, usual, strict=True)
    )
    if strides[1:] != usual[1:] or strides[0] < usual[0]:
        raise _make_unsupported_error(
            f"device memory with strides of {layout.strides} bytes; expected pixels side by side, such as "
            f"{usual}: make it contiguous. Rows may be further apart"
        )
    return strides[0]


def _check_address(layout: _Layout, context: Context) -> None:
    """Refuse an address that the driver does not know as this GPU's."""
    driver = context.driver
    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    if 0 in layout.shape:
        raise SourceError(Kind.EMPTY, f"device memory of shape {layout.shape} has no pixels")
    message = f"the address {layout.address:#x} is no memory of a GPU ({{status}}); expected device memory"
    (index,) = check_status(
        driver.cuPointerGetAttribute(ordinal, layout.address), message, _make_unsupported_error
    )
    _check_device(CUDA_DEVICE, int(index), context)


def _check_device(kind: int, index: int, context: Context) -> None:
    """Refuse a device, as DLPack names it, that is not this GPU."""
    if kind != CUDA_DEVICE:
        raise _make_unsupported_error(f"DLPack names device type {kind}; expected {CUDA_DEVICE}, CUDA")
    if index != context.index:
        raise _make_unsupported_error(
            f"the picture lies on GPU {index}, and this engine runs on GPU {context.index}"
        )


def _wait_for_producer(interface: dict[str, Any], imports: ImportStream) -> None:
    """Wait for the stream that writes the pixels.

    Version 3 names it, or none if they are there already; version 2 means the default one.
    """
    producer = interface.get("stream") if interface["version"] >= 3 else LEGACY_STREAM
    if producer == 0:
        raise _make_unsupported_error(
            "`__cuda_array_interface__` names stream 0, which it forbids: 1 is the default stream"
        )
    if producer is not None:
        imports.wait_for(int(producer))


def _read_interface(interface: dict[str, Any]) -> _Layout:
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


def _read_dlpack(capsule: Any) -> _Layout:
    """Read an unversioned capsule and leave it unused, so that it deletes itself."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = Tensor.from_address(get(capsule, b"dltensor"))
    code = "iufOb?c"[tensor.code] if tensor.code < 7 else "?"
    size = tensor.bits * tensor.lanes // 8
    strides = tuple(size * tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    return _Layout(
        (tensor.data or 0) + tensor.byte_offset,
        f"{'|' if size == 1 else '<'}{code}{size}",
        tuple(tensor.shape[axis] for axis in range(tensor.ndim)),
        strides,
    )


def _make_unsupported_error(message: str) -> SourceError:
    return SourceError(Kind.UNSUPPORTED, message)
