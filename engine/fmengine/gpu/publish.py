"""The launch that publishes a batch's answers into memory of the host, and what they are there.

Nothing here uses a GPU.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .arena import align
from .launch import InputShape, Launch

THREADS = 256  # a block, as in preprocess.cu
FLAT, REFUSED = 1, 2  # bits of a mark


class Published(NamedTuple):
    """Device addresses of memory of the host.

    Attributes:
        logits: float32 `[N, K]`.
        probabilities: float32 `[N, K]`.
        marks: uint8 `[N]`: `FLAT` where the picture shows nothing, `REFUSED` where it was not within the batch.
        sequence: uint32, the number of batches that were published, written last.
    """

    logits: int
    probabilities: int
    marks: int
    sequence: int


def make_publish_launch(
    shape: InputShape,
    labels: int,
    batch: int,
    shown: int,
    images: int,
    logits: int,
    probabilities: int,
    published: Published,
    counters: int,
    *,
    most: int,
) -> Launch:
    """Make the launch for device addresses.

    Args:
        shape: of the network's input.
        labels: of the network.
        batch: of a `BATCH`.
        shown: of a `SHOWN` for each picture.
        images: of the network's input.
        logits: that the network wrote.
        probabilities: that the network wrote.
        published: where it all goes.
        counters: of two uint32, 0 at first: blocks that are done, and batches that were published.
        most: pictures that there may be.
    """
    numbers: list[np.generic] = [np.int32(number) for number in (*shape, labels)]
    before = [np.uint64(at) for at in (batch, shown, images)]
    after = [np.uint64(at) for at in (logits, probabilities, *published[:3], counters, counters + 4)]
    arguments = (*before, *numbers, *after, np.uint64(published.sequence))
    return Launch("publish", most, (THREADS, 1), arguments)


class AnswerViews(NamedTuple):
    """Answers in memory of the host: the arrays of `Published`, and the number once more as what reads faster."""

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    marks: npt.NDArray[np.uint8]
    sequence: npt.NDArray[np.uint32]
    flag: memoryview


class AnswerLayout(NamedTuple):
    """Where the answers of at most `most` pictures with `labels` labels are, in bytes from the start."""

    most: int
    labels: int

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._list_offsets()[-1] + 4

    def list_addresses(self, address: int) -> Published:
        """List the addresses where the memory has this one."""
        return Published(*(address + offset for offset in self._list_offsets()))

    def view(self, memory: npt.NDArray[np.uint8]) -> AnswerViews:
        """View the memory as answers."""
        logits, probabilities, marks, sequence = self._list_offsets()
        rows = 4 * self.most * self.labels
        number = memory[sequence : sequence + 4].view(np.uint32)
        return AnswerViews(
            memory[logits : logits + rows].view(np.float32).reshape(self.most, self.labels),
            memory[probabilities : probabilities + rows].view(np.float32).reshape(self.most, self.labels),
            memory[marks : marks + self.most],
            number,
            memoryview(number),  # type: ignore[arg-type]
        )

    def _list_offsets(self) -> tuple[int, int, int, int]:
        rows = align(4 * self.most * self.labels)
        return 0, rows, 2 * rows, 2 * rows + align(self.most)
