"""What tests ask of, and tell, the test double of the driver."""

import ctypes
import os
from collections.abc import Callable

LIVE = (
    "allocations",
    "pinned",
    "registered",
    "streams",
    "events",
    "graphs",
    "modules",
    "contexts",
    "current contexts",
)

FOUND = "GPU_DOUBLE_KERNELS" in os.environ  # by this process, which conftest.py started
if FOUND:
    _library = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    _library.gpu_double_count.restype = ctypes.c_long
    _library.gpu_double_holds.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_long)
_calls: dict[int, Callable[[], int]] = {}


def set_fault(name: str, value: int) -> None:
    """Plant a fault: `fail allocation`, `fail allocations from`, `lose device after`, `memory`,
    `refuse registration`."""
    _library.gpu_double_set(name.encode(), ctypes.c_long(value))


def shuffle(seed: int) -> None:
    """Begin another order of what is not ordered."""
    _library.gpu_double_shuffle(ctypes.c_long(seed))


def count(name: str) -> int:
    """How many of something there are, or were: see `gpu_double_count` of libcuda.cpp."""
    return int(_library.gpu_double_count(name.encode()))


def live() -> dict[str, int]:
    """Everything that is not given back yet."""
    return {name: number for name in LIVE if (number := count(name))}


def holds(address: int, size: int) -> bool:
    """Whether `size` bytes at an address are allocated device memory."""
    return bool(_library.gpu_double_holds(address, size))


def captures(stream: int) -> bool:
    """Whether a stream is in capture."""
    return bool(_library.gpu_double_captures(ctypes.c_void_p(stream)))


def enqueue(stream: int, call: Callable[[], int]) -> int:
    """Queue a call, which returns a CUresult, into a stream; in a graph it is called at every launch."""
    number = len(_calls) + 1
    _calls[number] = call
    return int(_library.gpu_double_enqueue(ctypes.c_void_p(stream), _trampoline, number))


@_CALL
def _trampoline(number: int) -> int:
    return _calls[number]()
