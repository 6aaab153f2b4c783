"""Which GPU this is, and working on it: what engines and kernels are built for."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UnavailableError

DRIVER = "libcuda.so.1"
DRIVER_VERSION = Path("/proc/driver/nvidia/version")


class Gpu(NamedTuple):
    """A GPU and its driver.

    Attributes:
        name: as the driver gives it.
        compute_capability: such as (8, 6).
        multiprocessors: cards of one name differ in them.
        driver: its version, and the newest CUDA that it speaks.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    driver: str


def describe_gpu(index: int) -> Gpu:
    """Ask the driver; no context is made.

    Raises:
        UnavailableError: without a driver, or without a GPU of that index.
    """
    driver = start_driver()
    device = find_device(driver, index)
    (name,) = _call(driver, driver.cuDeviceGetName(128, device), "name the GPU")
    attributes = driver.CUdevice_attribute
    major, minor, multiprocessors = (
        int(_call(driver, driver.cuDeviceGetAttribute(attribute, device), "describe the GPU")[0])
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    (version,) = _call(driver, driver.cuDriverGetVersion(), "tell its version")
    cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return Gpu(name.split(b"\0")[0].decode(), (major, minor), multiprocessors, f"{_kernel_module()}, {cuda}")


@contextmanager
def on_gpu(index: int) -> Iterator[None]:
    """Make a GPU the current one of this thread, in its primary context, which every library shares.

    Raises:
        UnavailableError: as for `describe_gpu`.
    """
    driver = start_driver()
    device = find_device(driver, index)
    (context,) = _call(driver, driver.cuDevicePrimaryCtxRetain(device), "use the GPU")
    try:
        _call(driver, driver.cuCtxPushCurrent(context), "use the GPU")
        try:
            yield
        finally:
            driver.cuCtxPopCurrent()
    finally:
        driver.cuDevicePrimaryCtxRelease(device)


def require_driver() -> None:
    """Notice a machine without a GPU before anything large is imported.

    Raises:
        UnavailableError: if there is no driver.
    """
    try:
        ctypes.CDLL(DRIVER)
    except OSError as error:
        raise UnavailableError(f"no NVIDIA driver: {DRIVER} is not on this machine") from error


def start_driver() -> Any:
    """CUDA's driver API, started: the module `cuda.bindings.driver`.

    Raises:
        UnavailableError: without the bindings, or a driver that starts.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnavailableError(
            f"cuda-bindings cannot be imported ({error}); install it with: pip install cuda-bindings"
        ) from error
    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # without a driver the bindings raise an exception of their loader's own
        missing = type(error).__name__ == "DynamicLibNotFoundError"
        what = (
            "no NVIDIA driver: libcuda.so.1 is not on this machine"
            if missing
            else f"the NVIDIA driver fails: {error}"
        )
        raise UnavailableError(f"{what}; see `nvidia-smi`") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UnavailableError(f"the NVIDIA driver does not start: {status.name}; see `nvidia-smi`")
    return driver


def find_device(driver: Any, index: int) -> Any:
    """The driver's handle of a GPU.

    Raises:
        UnavailableError: if there is none of that index.
    """
    (count,) = _call(driver, driver.cuDeviceGetCount(), "count the GPUs")
    if not 0 <= index < count:
        raise UnavailableError(f"no GPU {index}: this machine has {count}, numbered from 0")
    (device,) = _call(driver, driver.cuDeviceGet(index), "find the GPU")
    return device


def _kernel_module() -> str:
    """The driver's version; its CUDA level stays the same over many."""
    try:
        first = DRIVER_VERSION.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "of unknown version"
    return version_in(first)


def version_in(text: str) -> str:
    """The driver's version out of what tells it, which may be a sentence; the text itself where it holds none."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else " ".join(text.split())


def _call(driver: Any, answer: Any, what: str) -> tuple[Any, ...]:
    """The results of a call of the driver, whose first is its status."""
    status, *results = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UnavailableError(f"CUDA cannot {what}: {status.name}; see `nvidia-smi`")
    return tuple(results)
