"""Memory of the host that this process shares with others, registered with CUDA: a GPU reads it by itself.

A batch of images in it goes up by DMA, and a small one is read where it lies; nothing is copied on the host.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, DeviceError, FmengineError
from ..types import PackedImages
from .context import Context
from .driver import check_status

log = logging.getLogger(__name__)


T = TypeVar("T")


class RegisteredMemory:
    """One memory, which stays mapped until it is freed. Make and free it within the context.

    Attributes:
        memory: uint8 `[size]`; None once it is freed.
        lock: held while a batch is read from it.
    """

    def __init__(self, context: Context, memory: npt.NDArray[np.uint8]) -> None:
        """Register it. Raises DeviceError where the system refuses."""
        self._driver = driver = context.driver
        self._start = get_address(memory)
        flags = driver.CU_MEMHOSTREGISTER_PORTABLE | driver.CU_MEMHOSTREGISTER_DEVICEMAP
        check_status(driver.cuMemHostRegister(self._start, memory.nbytes, flags), "{status}")
        self.memory: npt.NDArray[np.uint8] | None = memory
        self.lock = threading.Lock()
        try:
            (address,) = check_status(driver.cuMemHostGetDevicePointer(self._start, 0), "{status}")
        except DeviceError:
            self.free()
            raise
        self._address = int(address)

    def find(self, part: npt.NDArray[np.uint8]) -> int:
        """Return the address of a part of it for the GPU; 0 for what is none."""
        at = get_address(part) - self._start
        return self._address + at if self.memory is not None and 0 <= at < len(self.memory) else 0

    def free(self) -> None:
        """Unregister it, once nothing reads it. Freeing twice is no error."""
        with self.lock:
            memory, self.memory = self.memory, None
            if memory is not None:
                self._driver.cuMemHostUnregister(self._start)


class View(NamedTuple):
    """An array over registered memory: `memory`, the array, and its `address` for the GPU."""

    registered: RegisteredMemory
    memory: npt.NDArray[np.uint8]
    address: int


class RegisteredMemories:
    """All of an engine. Thread-safe.

    Attributes:
        refusal: why the system registered none; empty if it did.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._all: list[RegisteredMemory] = []
        self._views: dict[int, View] = {}  # by the ID of the array, which lives as long as its view
        self.refusal = ""

    def register(self, memory: npt.NDArray[np.uint8]) -> Callable[[], None]:
        """Register memory until the function that is returned is called.

        Where the system refuses, which containers may be set up to do, images in it are copied like any others.
        """
        try:
            with self._context.use():
                one = RegisteredMemory(self._context, memory)
        except FmengineError as error:
            if not isinstance(error, ClosedError):
                self._tell(error)
            return lambda: None
        with self._lock:
            self._all.append(one)
        return partial(self._unregister, one)

    def read(self, images: PackedImages, run: Callable[[PackedImages], T]) -> T:
        """Call a function with images that have their address for the GPU; they stay registered meanwhile."""
        view = self._views.get(id(images.memory)) or self._find(images.memory)
        if view is None:
            return run(images)
        with view.registered.lock:
            address = view.address if view.registered.memory is not None else 0
            return run(PackedImages(images.memory, images.places, address))

    def free(self) -> None:
        """Unregister all of them."""
        with self._lock:
            self._views = {}
            while self._all:
                self._all.pop().free()

    def _find(self, memory: npt.NDArray[np.uint8]) -> View | None:
        with self._lock:
            for one in self._all:
                if address := one.find(memory):
                    return self._views.setdefault(id(memory), View(one, memory, address))
        return None

    def _unregister(self, one: RegisteredMemory) -> None:
        # Where the context cannot be used, memory is unregistered with it; in a forked child it is the parent's.
        with suppress(FmengineError), self._context.use():
            with self._lock:
                self._all = [other for other in self._all if other is not one]
                self._views = {key: view for key, view in self._views.items() if view.registered is not one}
            one.free()

    def _tell(self, error: Exception) -> None:
        if not self.refusal:
            log.warning(
                "GPU %d does not read the memory of worker processes by itself (%s): their images are copied once "
                "more",
                self._context.index,
                error,
            )
        self.refusal = str(error)


def get_address(array: npt.NDArray[np.uint8]) -> int:
    """Return the address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address
