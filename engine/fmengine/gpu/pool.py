"""Slots, lent to whoever runs a batch: from several threads at once, and several to one large batch."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import numpy as np

from ..errors import ClosedError, NoRoomError
from ..model.spec import ModelSpec
from ..types import ImageOutputs, InputBatch, Outputs
from .context import LAST_WAIT
from .interop import Picture
from .preprocessor import weigh
from .runner import Slot

# Bytes on the GPU that the pictures of one part take: enough that copying is efficient, few enough that slots stay
# small. One larger picture still goes, alone.
UPLOAD = 64 * 1024 * 1024

log = logging.getLogger(__name__)
T = TypeVar("T")
Batch = InputBatch | Sequence[Picture]


class Pool:
    """The slots of one engine. Use it within the context."""

    def __init__(self, slots: Sequence[Slot], spec: ModelSpec) -> None:
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        self._count = len(slots)
        self._most, self._spec = slots[0].most, spec
        for slot in slots:
            self._free.put(slot)

    def run(self, images: InputBatch) -> Outputs:
        """Answer for preprocessed pictures, uint8 `[N, C, H, W]`. Raises as `run_pictures` does."""
        return Outputs(*map(np.concatenate, zip(*self._run(images), strict=True)))

    def run_pictures(self, pictures: Sequence[Picture]) -> ImageOutputs:
        """Answer for pictures of any sizes.

        Raises:
            NoRoomError: if there is no room for one picture alone.
        """
        answers = cast("list[ImageOutputs]", self._run(pictures))
        return ImageOutputs(*map(np.concatenate, zip(*answers, strict=True)))

    def _run(self, batch: Batch) -> list[Outputs | ImageOutputs]:
        """Answer for a batch of any size, in parts that fit, as many under way as slots are free."""
        parts = deque(split(batch, self._most, self._spec))
        flying: deque[Slot] = deque()
        answers: list[Outputs | ImageOutputs] = []
        try:
            while parts or flying:
                # Waiting for a slot only while holding none, two threads never wait for each other.
                slot = self._take(wait=not flying) if parts else None
                if slot is None:
                    answers.append(self._collect(flying))
                    continue
                flying.append(slot)
                part = parts.popleft()
                try:
                    slot.submit(part)
                except NoRoomError:
                    self._free.put(flying.pop())
                    if len(part) == 1:
                        raise
                    middle = len(part) // 2
                    parts.extendleft(cast("tuple[Batch, Batch]", (part[middle:], part[:middle])))
        finally:
            self._abandon(flying)
        return answers

    def with_slot(self, work: Callable[[Slot], T]) -> T:
        """Do something else with a slot."""
        slot = self._take(wait=True)
        assert slot is not None  # it was waited for
        try:
            return work(slot)
        except BaseException:
            slot.wait()
            raise
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Free the slots, each as soon as its batch is done; whoever waits for one gets an error."""
        for _ in range(self._count):
            try:
                slot = self._free.get(timeout=LAST_WAIT)
            except Empty:  # a thread was interrupted in a bad moment
                log.warning("a batch does not end; its memory goes with the context")
                break
            if slot is None:  # closed already
                break
            slot.free()
        self._free.put(None)

    def _take(self, *, wait: bool) -> Slot | None:
        """A free slot; None where there is none and `wait` is false."""
        try:
            slot = self._free.get(block=wait)
        except Empty:
            return None
        if slot is None:
            self._free.put(None)
            raise ClosedError
        return slot

    def _collect(self, flying: deque[Slot]) -> Outputs | ImageOutputs:
        slot = flying[0]
        outputs = slot.collect()
        flying.popleft()
        self._free.put(slot)
        return outputs

    def _abandon(self, flying: deque[Slot]) -> None:
        """After an error: slots go back when nothing of theirs is in flight."""
        for slot in flying:
            with suppress(Exception):  # the error that is on its way already says what went wrong
                slot.wait()
            self._free.put(slot)


def make_slots(make: Callable[[], Slot], count: int) -> list[Slot]:
    """As many slots as were asked for, or as there is room for.

    Raises:
        NoRoomError: if there is no room for one.
    """
    slots: list[Slot] = []
    try:
        while len(slots) < count:
            slots.append(make())
    except BaseException as error:
        if isinstance(error, NoRoomError) and slots:
            log.warning("%s streams instead of %s: %s", len(slots), count, error)
            return slots
        for slot in slots:
            slot.free()
        raise
    return slots


def split(batch: Batch, most: int, spec: ModelSpec) -> list[Batch]:
    """Cut a batch into parts of at most `most` pictures and about `UPLOAD` bytes, in order."""
    if isinstance(batch, np.ndarray):
        return [InputBatch(batch[start : start + most]) for start in range(0, len(batch), most)]
    parts: list[Batch] = []
    start = size = 0
    for index, picture in enumerate(batch):
        more = weigh(picture, spec)
        if index > start and (index - start == most or size + more > UPLOAD):
            parts.append(batch[start:index])
            start, size = index, 0
        size += more
    parts.append(batch[start:])
    return parts
