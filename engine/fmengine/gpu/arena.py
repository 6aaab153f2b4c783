"""Memory of a GPU and pinned memory of the host, allocated as it is needed and freed by name."""

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import NoRoomError
from .context import Context

ALIGNMENT = 256  # bytes; TensorRT wants it of a tensor's address, and coalesced reads gain by it


def align(size: int) -> int:
    """Round a size up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Freeable(Protocol):
    """What holds memory, and is freed by name."""

    def free(self) -> None:
        """Release it. Freeing twice is no error."""
        ...


T = TypeVar("T", bound=Freeable)


class Owned:
    """The parts of something, which are freed together, last first."""

    def __init__(self) -> None:
        self._parts: list[Freeable] = []

    def add(self, part: T) -> T:
        """Add a part, and return it."""
        self._parts.append(part)
        return part

    def free(self) -> None:
        """Free all of them. Freeing twice is no error."""
        while self._parts:
            self._parts.pop().free()


class PinnedMemory:
    """Pinned memory of the host, which kernels read and write too.

    Attributes:
        host: its bytes, uint8 `[size]`.
        address: of the same bytes for the GPU.
    """

    def __init__(self, context: Context, size: int) -> None:
        """Allocate it. Raises NoRoomError if the system does not pin as much."""
        cuda = context.cuda
        try:
            self._memory = cuda.pagelocked_empty(size, np.uint8, mem_flags=cuda.host_alloc_flags.DEVICEMAP)
        except cuda.MemoryError as error:
            raise NoRoomError(
                f"GPU {context.index} has no room: {size:,} bytes are needed in pinned memory of the host "
                f"({error}); `ulimit -l` says how many a process may have"
            ) from error
        self.host: npt.NDArray[np.uint8] = self._memory
        self.address = int(self._memory.base.get_device_pointer())

    def free(self) -> None:
        """Release it. Freeing twice is no error."""
        memory, self._memory, self.host = self._memory, None, np.empty(0, np.uint8)
        if memory is not None:
            memory.base.free()


class Buffer:
    """Bytes on the GPU, with `pinned` as many pinned on the host. It grows on demand, and loses what it held.

    Attributes:
        address: on the GPU; 0 while empty.
        host: the pinned bytes, uint8 `[size]`; empty without them.
        host_address: of the pinned bytes, for the GPU; 0 without them.
        size: bytes.
    """

    def __init__(self, context: Context, size: int = 0, *, pinned: bool = False) -> None:
        self._context = context
        self._pinned = pinned
        self._memory: Any = None
        self._pinned_memory: PinnedMemory | None = None
        self.host: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self.address = self.host_address = self.size = 0
        self.reserve(size)

    def reserve(self, size: int) -> None:
        """Grow to `size` bytes or more; nothing in flight may use the buffer.

        Raises:
            NoRoomError: with what was needed and what was free. The buffer is empty then.
        """
        if size <= self.size:
            return
        self.free()
        # Growth by powers of two is rare; where that much does not fit, what is needed may.
        for attempt in (1 << (size - 1).bit_length(), align(size)):
            try:
                self._memory = self._context.cuda.mem_alloc(attempt)
                if self._pinned:
                    memory = self._pinned_memory = PinnedMemory(self._context, attempt)
                    self.host, self.host_address = memory.host, memory.address
            except (self._context.cuda.MemoryError, NoRoomError):
                self.free()
            else:
                self.address, self.size = int(self._memory), attempt
                return
        free, total = self._context.free_memory()
        raise NoRoomError(
            f"GPU {self._context.index} has no room: {size:,} bytes are needed"
            f"{', and as many pinned in host memory' if self._pinned else ''}; {free:,} of its {total:,} are "
            "free. Choose a smaller batch, or free memory on it"
        )

    def trim(self, max_size: int) -> None:
        """Free the buffer if it is larger than `max_size` bytes; nothing in flight may use it."""
        if self.size > max_size:
            self.free()

    def free(self) -> None:
        """Release everything. Freeing twice is no error."""
        memory, pinned = self._memory, self._pinned_memory
        self._memory, self._pinned_memory, self.host = None, None, np.empty(0, np.uint8)
        self.address = self.host_address = self.size = 0
        if memory is not None:
            memory.free()
        if pinned is not None:
            pinned.free()
