"""CUDA's driver API through cuda-bindings: start it, check its statuses, describe a GPU, make one current."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DeviceError, UnavailableError
from ..system.nvidia import NO_DRIVER, Gpu, find_version

DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def check_status(
    answer: tuple[Any, ...], message: str, error: Callable[[str], Exception] = DeviceError
) -> tuple[Any, ...]:
    """Return the results of a call of cuda-bindings, or raise an error if its status is not success.

    Args:
        answer: of the call, the driver's or NVRTC's: a status, then the results.
        message: of the error; `{status}` in it becomes the name of the status.
        error: makes the exception from the message.
    """
    status, *results = answer
    if int(status):  # success is 0
        raise error(message.replace("{status}", status.name))
    return tuple(results)


def start_driver() -> Any:
    """Start CUDA's driver API, and return it: the module `cuda.bindings.driver`.

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
        answer = driver.cuInit(0)
    except Exception as error:  # without a driver the bindings raise an exception of their loader's own
        missing = type(error).__name__ == "DynamicLibNotFoundError"
        what = NO_DRIVER if missing else f"the NVIDIA driver fails: {error}"
        raise UnavailableError(f"{what}; see `nvidia-smi`") from error
    _check(answer, "the NVIDIA driver does not start")
    return driver


def find_device(driver: Any, index: int) -> Any:
    """Return the driver's handle of a GPU.

    Raises:
        UnavailableError: if there is none of that index.
    """
    (count,) = _check(driver.cuDeviceGetCount(), "CUDA cannot count the GPUs")
    if not 0 <= index < count:
        raise UnavailableError(f"no GPU {index}: this machine has {count}, numbered from 0")
    (device,) = _check(driver.cuDeviceGet(index), "CUDA cannot find the GPU")
    return device


def describe_gpu(index: int) -> Gpu:
    """Read what a GPU is from the driver; no context is made.

    Raises:
        UnavailableError: without a driver, or without a GPU of that index.
    """
    driver = start_driver()
    device = find_device(driver, index)
    (name,) = _check(driver.cuDeviceGetName(128, device), "CUDA cannot name the GPU")
    attributes = driver.CUdevice_attribute
    major, minor, multiprocessors = (
        int(_check(driver.cuDeviceGetAttribute(attribute, device), "CUDA cannot describe the GPU")[0])
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    (version,) = _check(driver.cuDriverGetVersion(), "CUDA cannot give its version")
    cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return Gpu(name.split(b"\0")[0].decode(), (major, minor), multiprocessors, f"{_read_driver_version()}, {cuda}")


@contextmanager
def use_gpu(index: int) -> Iterator[None]:
    """Make a GPU the current one of this thread, in its primary context, which every library shares.

    Raises:
        UnavailableError: as for `describe_gpu`.
    """
    driver = start_driver()
    device = find_device(driver, index)
    (context,) = _check(driver.cuDevicePrimaryCtxRetain(device), "CUDA cannot use the GPU")
    try:
        _check(driver.cuCtxPushCurrent(context), "CUDA cannot use the GPU")
        try:
            yield
        finally:
            driver.cuCtxPopCurrent()  # unchecked here and below: an error that is being raised explains more
    finally:
        driver.cuDevicePrimaryCtxRelease(device)


def _read_driver_version() -> str:
    """Read the version of the driver's kernel module; its CUDA level stays the same over many."""
    try:
        first = DRIVER_VERSION.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "of unknown version"
    return find_version(first)


def _check(answer: tuple[Any, ...], failure: str) -> tuple[Any, ...]:
    return check_status(answer, f"{failure}: {{status}}; see `nvidia-smi`", UnavailableError)
