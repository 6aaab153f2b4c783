"""The GPU that TensorRT builds on, reached by name: a build that needs none imports nothing of `gpu`."""

from contextlib import AbstractContextManager

from ..system.imports import load_object
from ..system.nvidia import Gpu


def describe_gpu(index: int) -> Gpu:
    """Read what a GPU is from the driver.

    Raises:
        UnavailableError: without a driver, or without a GPU of that index.
    """
    gpu: Gpu = load_object("fmengine.gpu.driver:describe_gpu")(index)
    return gpu


def use_gpu(index: int) -> AbstractContextManager[None]:
    """Make a GPU the current one of this thread, in the primary context that every library shares.

    Raises:
        UnavailableError: on entry, as `describe_gpu`.
    """
    context: AbstractContextManager[None] = load_object("fmengine.gpu.driver:use_gpu")(index)
    return context
