"""Arrays in the double's device memory, as PyTorch or CuPy would hand them over."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pycuda.driver as cuda

from fmengine.gpu.context import Context
from fmengine.gpu.interop import Tensor

DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DeviceArray:
    """A picture that a stream of its own writes, late: whoever reads before is wrong."""

    flags = 1  # non-blocking

    def __init__(self, context: Context, pixels: np.ndarray, *, padding: int = 0) -> None:
        rows = pixels.reshape(len(pixels), -1)
        padded = np.pad(rows, ((0, 0), (0, padding)))
        self.context, self.shape, self.dtype = context, pixels.shape, pixels.dtype
        self.strides = (padded.strides[0], *pixels.strides[1:])
        with context.use():
            self.memory = cuda.mem_alloc(padded.nbytes)
            self.pinned = cuda.pagelocked_empty(padded.shape, padded.dtype)
            self.pinned[...] = padded
            self.stream = cuda.Stream(self.flags)
            cuda.memcpy_htod_async(self.memory, self.pinned, self.stream)

    def free(self) -> None:
        with self.context.use():
            self.stream.synchronize()
            self.memory.free()
            self.pinned.base.free()
            del self.stream


class CudaArray(DeviceArray):
    """Over `__cuda_array_interface__`."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (int(self.memory), False),
            "version": 3,
            "stream": self.stream.handle,
        }


class LegacyArray(DeviceArray):
    """Over version 2 of `__cuda_array_interface__`: it names no stream, and means the default one."""

    flags = 0  # the default stream waits for it

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = (int(self.memory), False)
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": address,
            "version": 2,
        }


class DlpackArray(DeviceArray):
    """Over DLPack."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.context.index)

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        driver = self.context.driver  # make the reader's stream wait
        _, event = driver.cuEventCreate(2)
        driver.cuEventRecord(event, self.stream.handle)
        driver.cuStreamWaitEvent(stream, event, 0)
        driver.cuEventDestroy(event)
        return self.capsule(lambda: None)

    def capsule(self, deleted: Callable[[], None]) -> Any:
        class Managed(ctypes.Structure):
            _fields_ = (("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", DELETER))

        item = self.dtype.itemsize
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        strides = (ctypes.c_int64 * len(self.shape))(*(stride // item for stride in self.strides))
        code = {"i": 0, "u": 1, "f": 2}[self.dtype.kind]
        kind, index = self.__dlpack_device__()
        tensor = Tensor(int(self.memory), kind, index, len(self.shape), code, 8 * item, 1, shape, strides, 0)
        managed = Managed(tensor, None, DELETER(lambda pointer: deleted()))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        capsule = new(ctypes.addressof(managed), b"dltensor", None)
        self.kept = [*getattr(self, "kept", []), (managed, shape, strides)]
        return capsule
