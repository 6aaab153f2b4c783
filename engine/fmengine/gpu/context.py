"""A GPU's primary context, which every library of a process shares, over pycuda.

`pycuda.autoinit` is not used: it makes a context of its own, in which TensorRT and PyTorch find nothing.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DeviceError, UnavailableError
from .device import find_device, start_driver

log = logging.getLogger(__name__)
INSTALL = "pip install 'fmengine[gpu]' (pycuda is built from source: it needs a C++ compiler and CUDA's headers)"


class Context:
    """A retained primary context. Any thread may `use` it.

    Attributes:
        index: of the GPU.
        cuda: the module `pycuda.driver`.
        runtime: the module `cuda.bindings.driver`, for graphs and what pycuda has no words for.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.runtime = start_driver()
        self._device = find_device(self.runtime, index)
        self.cuda = load_pycuda()
        try:
            self.cuda.init()
            self._context = self.cuda.Device(index).retain_primary_context()
        except self.cuda.Error as error:
            raise UnavailableError(f"CUDA cannot use GPU {index}: {error}; see `nvidia-smi`") from error
        self._process = os.getpid()
        self._failure = ""

    @contextmanager
    def use(self) -> Iterator[None]:
        """Make the GPU current in this thread.

        Raises:
            DeviceError: if the GPU fails meanwhile, or did before: its answers can no longer be trusted.
        """
        self._check()
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self.cuda.Error as error:
            raise self.fail(f"GPU {self.index} failed: {error}") from error

    def fail(self, message: str) -> DeviceError:
        """Note that this context is lost, and make the error that says so."""
        self._failure = (
            f"{message}. Its answers can no longer be trusted: load the engine again in a new process; "
            "`nvidia-smi` and `dmesg` tell of the GPU's health"
        )
        return DeviceError(self._failure)

    def free_memory(self) -> tuple[int, int]:
        """Bytes that are free on the GPU, and that it has; within `use`."""
        free, total = self.cuda.mem_get_info()
        return int(free), int(total)

    def close(self, release: Callable[[], None]) -> None:
        """Give the context back.

        Args:
            release: called within it, to free everything that was made in it.
        """
        if os.getpid() != self._process:
            return  # a forked child: CUDA is its parent's
        self._context.push()
        try:
            release()
        except (self.cuda.Error, DeviceError) as error:  # of a GPU that failed; its memory goes with the context
            log.debug("not given back: %s", error)
        # pycuda releases a primary context only where it is current, and leaves it on the driver's stack.
        self._context.detach()
        self.runtime.cuCtxPopCurrent()

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise DeviceError(
                f"this engine was opened by process {self._process} and used after a fork by {os.getpid()}: CUDA "
                "does not survive a fork. Load the engine in the child, and start it with multiprocessing's "
                "`spawn`"
            )
        if self._failure:
            raise DeviceError(self._failure)


def load_pycuda() -> Any:
    """The module `pycuda.driver`.

    Raises:
        UnavailableError: if pycuda is missing, or was built for another CUDA.
    """
    try:
        import pycuda.driver
    except ImportError as error:  # also a symbol that this driver lacks
        raise UnavailableError(f"pycuda cannot be imported ({error}); install it with: {INSTALL}") from error
    return pycuda.driver
