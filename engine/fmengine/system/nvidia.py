"""Find NVIDIA's driver and its version without any library, and describe a GPU."""

import ctypes
import re
from typing import NamedTuple

from ..errors import UnavailableError

DRIVER = "libcuda.so.1"
NO_DRIVER = f"no NVIDIA driver: {DRIVER} is not on this machine"


class Gpu(NamedTuple):
    """A GPU and its driver.

    Attributes:
        name: as the driver gives it.
        compute_capability: such as (8, 6).
        multiprocessors: their number, in which cards of one name may differ.
        driver: its version, and the newest CUDA that it speaks.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    driver: str

    @property
    def capability(self) -> str:
        """Its compute capability, as `8.6`."""
        return ".".join(map(str, self.compute_capability))

    @property
    def model(self) -> str:
        """What an engine that is built on it depends on, but for the driver."""
        return f"{self.name}, compute capability {self.capability}, {self.multiprocessors} multiprocessors"


def require_driver() -> None:
    """Check that there is a driver, before anything large is imported.

    Raises:
        UnavailableError: if there is no driver.
    """
    try:
        ctypes.CDLL(DRIVER)
    except OSError as error:
        raise UnavailableError(NO_DRIVER) from error


def find_version(text: str) -> str:
    """Find a driver's version in a text, which may be a sentence; return the text itself where it holds none."""
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return version[0] if version else " ".join(text.split())
