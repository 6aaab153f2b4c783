"""An arena: the memory that a worker process shares with the engine, and nobody else.

It begins with a pulse, by which the engine sees that the worker is alive, and holds slots, each for one chunk of
pictures on its way: while the engine reads one, the worker writes the other.
"""

import fcntl
import mmap
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import UnavailableError
from ..model.spec import ModelSpec
from .batch import ALIGNMENT, Batch, align

SLOTS = 2
NO_PICTURE = 0xFFFF  # the index of `Pulse` where no single picture is being worked on


class Layout(NamedTuple):
    """What an arena has room for.

    Attributes:
        capacity: pictures a slot.
        spec: of the model whose inputs and probabilities a slot holds; None for none.
        pixel_bytes: of decoded images a slot.
    """

    capacity: int
    spec: ModelSpec | None = None
    pixel_bytes: int = 0

    @property
    def slot_bytes(self) -> int:
        """Return the bytes of a slot."""
        batch = Batch.size_of(self.spec, self.capacity) if self.spec else 0
        return align(2 * self.capacity) + align(16 * self.capacity) + batch + align(self.pixel_bytes)

    @property
    def size(self) -> int:
        """Return the bytes of an arena, whole pages."""
        size = ALIGNMENT + SLOTS * self.slot_bytes
        return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class Slot:
    """The memory of one chunk.

    Attributes:
        rows: which picture of the chunk is in each row, uint16 `[capacity]`.
        places: offset into `pixels`, height, width and channels of each row's image, int32 `[capacity, 4]`;
            no channels for an image `[H, W]`.
        batch: inputs and probabilities; None where the layout has none.
        pixels: of decoded images, uint8.
    """

    __slots__ = ("batch", "pixels", "places", "rows")

    def __init__(self, layout: Layout, memory: memoryview) -> None:
        at = align(2 * layout.capacity)
        self.rows: npt.NDArray[np.uint16] = np.frombuffer(memory, np.uint16, layout.capacity)
        self.places: npt.NDArray[np.int32] = np.frombuffer(memory, np.int32, 4 * layout.capacity, at).reshape(
            -1, 4
        )
        at += align(16 * layout.capacity)
        self.batch = None
        if layout.spec:
            self.batch = Batch(layout.spec, layout.capacity, memory[at:])
            at += Batch.size_of(layout.spec, layout.capacity)
        self.pixels: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8, layout.pixel_bytes, at)


class Arena:
    """Shared memory, laid out.

    Attributes:
        pulse: uint32 `[3]`: a number that changes with each picture; the index, within its chunk, of the picture
            at work; whether it waits for its turn, which takes as long as others do.
        slots: of the chunks.
    """

    def __init__(self, layout: Layout, memory: Any) -> None:
        """Lay out a writable buffer of `layout.size` bytes."""
        view = memoryview(memory)
        self.layout = layout
        self.pulse: npt.NDArray[np.uint32] = np.frombuffer(view, np.uint32, 3)
        starts = [ALIGNMENT + number * layout.slot_bytes for number in range(SLOTS)]
        self.slots = [Slot(layout, view[start : start + layout.slot_bytes]) for start in starts]


class Memory:
    """Memory to share with another process, which nobody can resize; `closing` closes its descriptor.

    Args:
        size: in bytes.
        content: that it begins with.

    Raises:
        UnavailableError: if the system has no room for it.
    """

    def __init__(self, size: int, content: bytes = b"") -> None:
        try:
            self.descriptor = os.memfd_create("fmengine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise UnavailableError(f"cannot make memory to share with worker processes: {error}") from error
        try:
            os.ftruncate(self.descriptor, size)
            with open(self.descriptor, "wb", closefd=False) as file:
                file.write(content)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            self.close()
            raise UnavailableError(f"no room for memory to share with worker processes: {error}") from error

    def close(self) -> None:
        """Close the descriptor; what is mapped stays."""
        os.close(self.descriptor)
