"""A GPU's primary context, which every library of a process shares, over pycuda.

`pycuda.autoinit` is not used: it makes a context of its own, in which TensorRT and PyTorch find nothing.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import (
    ClosedError,
    DeviceError,
    NoRoomError,
    UnavailableError,
    format_install_command,
)
from .driver import check_status, find_device, start_driver

CLOSE_TIMEOUT = 60.0  # seconds that closing waits for other threads: one that was interrupted may never finish
log = logging.getLogger(__name__)
_kept_after_fork: list[object] = []  # never destroyed: the parent's
INSTALL = (
    f"{format_install_command('gpu')} (pycuda is built from source: it needs a C++ compiler and CUDA's headers)"
)


class Context:
    """A retained primary context. Any thread may `use` it.

    Attributes:
        index: of the GPU.
        cuda: the module `pycuda.driver`.
        driver: the module `cuda.bindings.driver`, for graphs and other calls that pycuda lacks.
        multiprocessors: of the GPU.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.driver = start_driver()
        self._device = find_device(self.driver, index)
        self.cuda = _load_pycuda()
        try:
            self.cuda.init()
            _check_versions(self.cuda)
            self._context = self.cuda.Device(index).retain_primary_context()
        except self.cuda.Error as error:
            raise UnavailableError(f"CUDA cannot use GPU {index}: {error}; see `nvidia-smi`") from error
        self.multiprocessors: int = self.cuda.Device(index).multiprocessor_count
        self._process = os.getpid()
        self._failure = ""
        self._closed = False
        self._users = 0
        self._idle = threading.Condition()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Make the GPU current in this thread.

        Raises:
            DeviceError: if the GPU fails meanwhile, or did before: its answers can no longer be trusted.
            NoRoomError: if its memory does not suffice.
            FmengineError: if the context is closed.
        """
        self._check_usable()
        with self._idle:
            self._users += 1
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self.cuda.MemoryError as error:  # which passes
            raise NoRoomError(f"GPU {self.index} has no room: {error}; free memory on it") from error
        except self.cuda.Error as error:
            raise self.fail(f"GPU {self.index} failed: {error}") from error
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def fail(self, message: str) -> DeviceError:
        """Mark this context as lost, and return the error to raise."""
        self._failure = (
            f"{message}. Its answers can no longer be trusted: load the engine again in a new process; "
            "`nvidia-smi` and `dmesg` show the GPU's health"
        )
        return DeviceError(self._failure)

    def free_memory(self) -> tuple[int, int]:
        """Return the GPU's free memory and all its memory, in bytes; call it within `use`."""
        free, total = self.cuda.mem_get_info()
        return int(free), int(total)

    def close(self, opened: list[Callable[[], None]]) -> None:
        """Release the context.

        Args:
            opened: frees everything that was made in it; called within it, last first.
        """
        if os.getpid() != self._process:
            # A forked child: CUDA is its parent's, and even the destructors of what was made must not run.
            _kept_after_fork.append((self, opened))
            return
        self._closed = True
        self._context.push()
        try:
            while opened:
                opened.pop()()
        except (self.cuda.Error, DeviceError) as error:  # of a GPU that failed; its memory goes with the context
            log.debug("not released: %s", error)
        with self._idle:  # pycuda destroys a context that it detaches, also under a thread that still uses it
            self._idle.wait_for(lambda: not self._users, CLOSE_TIMEOUT)
        self._detach()

    def _detach(self) -> None:
        """Release the context, and make current again what was current before.

        pycuda releases a context only where it is current, and then leaves it on the driver's stack, below the
        one that was current before.
        """
        handle = self._context.handle
        self._context.detach()
        with suppress(DeviceError):  # there is nothing to restore
            (before,) = check_status(self.driver.cuCtxPopCurrent(), "CUDA cannot restore a context: {status}")
            if int(before) != handle:
                self.driver.cuCtxPopCurrent()
                self.driver.cuCtxPushCurrent(before)

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise DeviceError(
                f"this engine was opened by process {self._process} and used after a fork by {os.getpid()}: CUDA "
                "does not survive a fork. Load the engine in the child, and start it with multiprocessing's "
                "`spawn`"
            )
        if self._closed:
            raise ClosedError
        if self._failure:
            raise DeviceError(self._failure)


def _load_pycuda() -> Any:
    """Import the module `pycuda.driver`.

    Raises:
        UnavailableError: if pycuda is missing, or was built for another CUDA.
    """
    try:
        import pycuda.driver
    except ImportError as error:  # also a symbol that this driver lacks
        raise UnavailableError(f"pycuda cannot be imported ({error}); install it with: {INSTALL}") from error
    return pycuda.driver


def _check_versions(cuda: Any) -> None:
    """Refuse a pycuda that was built for a newer CUDA than the driver has: it would fail later, unexplained."""
    built, speaks = cuda.get_version(), cuda.get_driver_version()
    if built[0] > speaks // 1000:
        raise UnavailableError(
            f"pycuda was built for CUDA {built[0]}.{built[1]}, and this driver speaks CUDA {speaks // 1000}."
            f"{speaks % 1000 // 10}: update the driver, or build pycuda again with the headers of CUDA "
            f"{speaks // 1000}: pip install --no-cache-dir --force-reinstall pycuda"
        )
