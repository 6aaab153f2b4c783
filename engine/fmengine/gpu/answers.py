"""The answers of one stream on their way to the host: where the network writes, and where the host reads them.

A kernel publishes them into pinned memory, the number of the batch last: whoever sees that number has the answers,
and answers under another number are those of another batch.
"""

import time
from typing import Any

import numpy as np

from ..errors import DeviceError
from ..model.spec import ModelSpec
from ..types import ImageOutputs
from .arena import Buffer, Owned, PinnedMemory
from .context import Context
from .kernels import Kernels
from .launch import InputShape
from .publish import FLAT, REFUSED, AnswerLayout, make_publish_launch

FLOAT = np.dtype(np.float32).itemsize
POLL_SECONDS = 0.0005  # that one caller looks for its answers before it sleeps: waking up takes longer


class StreamAnswers:
    """Make, use and free it within the context.

    Attributes:
        logits: address where the network writes them, for at most `most` pictures.
        probabilities: the same of them.
    """

    def __init__(self, context: Context, kernels: Kernels, stream: Any, spec: ModelSpec, most: int) -> None:
        self._kernels, self._stream = kernels, stream
        self._shape, self._labels = InputShape(*spec.input.shape), len(spec.labels)
        self._layout = AnswerLayout(most, self._labels)
        self._sequence = 0  # of the batch that was started last
        self._owned = Owned()
        try:
            logits, probabilities = (
                self._owned.add(Buffer(context, most * self._labels * FLOAT)) for _ in range(2)
            )
            counters = self._owned.add(Buffer(context, 2 * FLOAT))
            published = self._owned.add(PinnedMemory(context, self._layout.size))
        except BaseException:
            self.free()
            raise
        context.cuda.memcpy_htod(counters.address, np.zeros(2, np.uint32))
        published.host[...] = 0
        self.logits, self.probabilities = logits.address, probabilities.address
        self._counters, self._published = counters.address, self._layout.list_addresses(published.address)
        self._views = self._layout.view(published.host)

    def enqueue(self, batch: int, shown: int, images: int, most: int) -> None:
        """Put the publishing of a batch into the stream; it may be captured.

        Args:
            batch: address of its `BATCH`.
            shown: address of its `SHOWN`.
            images: address of the network's input.
            most: pictures that there may be.
        """
        launch = make_publish_launch(
            self._shape,
            self._labels,
            batch,
            shown,
            images,
            self.logits,
            self.probabilities,
            self._published,
            self._counters,
            most=most,
        )
        self._kernels.enqueue(launch, self._stream)

    def expect(self) -> None:
        """Count a batch that was started."""
        self._sequence = (self._sequence + 1) % 2**32

    def poll(self) -> bool:
        """Look for the answers for a while, which keeps other threads from running; say whether they are there."""
        flag, wanted = self._views.flag, self._sequence
        until = time.perf_counter() + POLL_SECONDS
        while flag[0] != wanted:
            if time.perf_counter() > until:
                return False
        return True

    def wait(self) -> None:
        """Wait for the stream.

        Raises:
            DeviceError: if the answers that are there then are those of another batch.
        """
        self._stream.synchronize()
        if (found := int(self._views.sequence[0])) != self._sequence:
            raise DeviceError(f"batch {self._sequence} is done, and the answers are those of batch {found}")

    def read(self, count: int) -> ImageOutputs:
        """Read the answers of as many pictures. Raises DeviceError if one of them was refused."""
        marks = self._views.marks[:count]
        if marks.any() and (refused := marks & REFUSED).any():
            raise DeviceError(f"picture {int(refused.argmax())} of a batch leads out of its memory")
        # Copies: the next batch writes over them.
        return ImageOutputs(
            self._views.logits[:count].copy(), self._views.probabilities[:count].copy(), marks == FLAT
        )

    def forget(self) -> None:
        """Expect what is there, whatever was started: the stream is done."""
        self._sequence = int(self._views.sequence[0])

    def free(self) -> None:
        """Release everything; nothing may be in flight."""
        self._views = None  # type: ignore[assignment]  # views of memory that is freed
        self._stream = None
        self._owned.free()
