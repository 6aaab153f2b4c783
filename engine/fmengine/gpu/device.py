"""Which GPU this is: what engines and kernels are built for."""

from typing import Any, NamedTuple

from ..errors import UnavailableError


class Gpu(NamedTuple):
    """A GPU and its driver.

    Attributes:
        name: as the driver gives it.
        compute_capability: such as (8, 6).
        driver: the newest CUDA that the driver speaks, such as `13.0`.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: str


def describe_gpu(index: int) -> Gpu:
    """Ask the driver; no context is made.

    Raises:
        UnavailableError: without a driver, or without a GPU of that index.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnavailableError(
            f"cuda-bindings cannot be imported ({error}); install it with: pip install 'fmengine[gpu]'"
        ) from error
    try:
        _call(driver, driver.cuInit(0), "start CUDA")
    except UnavailableError:
        raise
    except Exception as error:  # without a driver the bindings raise an exception of their loader's own
        raise UnavailableError(
            "no NVIDIA driver: libcuda.so.1 is not on this machine; see `nvidia-smi`"
        ) from error
    (count,) = _call(driver, driver.cuDeviceGetCount(), "count the GPUs")
    if not 0 <= index < count:
        raise UnavailableError(f"no GPU {index}: this machine has {count}, numbered from 0")
    (device,) = _call(driver, driver.cuDeviceGet(index), "find the GPU")
    (name,) = _call(driver, driver.cuDeviceGetName(128, device), "name the GPU")
    attributes = driver.CUdevice_attribute
    major, minor = (
        int(_call(driver, driver.cuDeviceGetAttribute(attribute, device), "describe the GPU")[0])
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    (version,) = _call(driver, driver.cuDriverGetVersion(), "tell its version")
    return Gpu(name.split(b"\0")[0].decode(), (major, minor), f"{version // 1000}.{version % 1000 // 10}")


def _call(driver: Any, answer: Any, what: str) -> tuple[Any, ...]:
    """The results of a call of the driver, whose first is its status."""
    status, *results = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UnavailableError(f"CUDA cannot {what}: {status.name}; see `nvidia-smi`")
    return tuple(results)
