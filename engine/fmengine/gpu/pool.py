"""A pool of runners: a thread takes one for each batch, and several for a large batch."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, NoRoomError
from ..model.spec import ModelSpec
from ..types import DecodedImage, ImageOutputs, InputBatch, Outputs, PackedImages
from .context import CLOSE_TIMEOUT
from .preprocessor import count_device_bytes
from .runner import Images, Runner, as_pictures

# Bytes on the GPU that the pictures of one part need: enough that copying is efficient, few enough that runners
# stay small. A larger picture is a part of its own.
MAX_PART_BYTES = 64 * 1024 * 1024

log = logging.getLogger(__name__)
T = TypeVar("T")


class Pool:
    """The runners of one engine. Use them within the context."""

    def __init__(self, runners: Sequence[Runner], spec: ModelSpec) -> None:
        self._free: SimpleQueue[Runner | None] = SimpleQueue()
        self._count = len(runners)
        self._callers: set[object] = set()  # threads that wait for answers, one entry each
        self._max_batch, self._spec = runners[0].max_batch, spec
        for runner in runners:
            self._free.put(runner)

    def run(self, images: InputBatch) -> Outputs:
        """Run preprocessed pictures, uint8 `[N, C, H, W]`, with features. Raises as `run_pictures` does."""
        features: list[npt.NDArray[np.float32]] | None = [] if self._spec.features else None
        outputs = self._join(self._run(as_pictures(images), features))
        return Outputs(
            outputs.logits, outputs.probabilities, None if features is None else np.concatenate(features)
        )

    def run_pictures(self, pictures: Images) -> ImageOutputs:
        """Run pictures of any sizes, or one array of those of one size, uint8 `[N, H, W]` or `[N, H, W, C]`.

        Raises:
            NoRoomError: if there is no room for one picture alone.
        """
        return self._join(self._run(pictures))

    def _join(self, answers: list[ImageOutputs]) -> ImageOutputs:
        """Join the answers of a batch's parts."""
        return answers[0] if len(answers) == 1 else ImageOutputs(*map(np.concatenate, zip(*answers, strict=True)))

    def _run(self, batch: Images, features: list[npt.NDArray[np.float32]] | None = None) -> list[ImageOutputs]:
        """Run a batch of any size, in parts that fit, as many at once as runners are free.

        Args:
            batch: of pictures.
            features: takes those of each part, in order; None where nobody wants them.
        """
        parts = deque(split_batch(batch, self._max_batch, self._spec))
        in_flight: deque[Runner] = deque()
        answers: list[ImageOutputs] = []
        caller = object()
        self._callers.add(caller)
        try:
            while parts or in_flight:
                # Threads wait for a runner only while they hold none, so that no two wait for each other.
                runner = self._take(wait=not in_flight) if parts else None
                if runner is None:
                    answers.append(self._collect(in_flight, features))
                    continue
                in_flight.append(runner)
                part = parts.popleft()
                try:
                    runner.submit(part)
                except NoRoomError:
                    self._free.put(in_flight.pop())
                    if len(part) == 1:
                        raise
                    middle = len(part) // 2
                    parts.extendleft((part[middle:], part[:middle]))
        finally:
            self._callers.discard(caller)
            self._abandon(in_flight)
        return answers

    def with_runner(self, work: Callable[[Runner], T]) -> T:
        """Call a function with a runner."""
        runner = self._take(wait=True)
        assert runner is not None  # it waited for one
        try:
            return work(runner)
        except BaseException:
            runner.wait()
            raise
        finally:
            self._free.put(runner)

    def close(self) -> None:
        """Free the runners, each as soon as its batch is done; threads that wait for one get an error."""
        for _ in range(self._count):
            try:
                runner = self._free.get(timeout=CLOSE_TIMEOUT)
            except Empty:  # a thread was interrupted while it held one
                log.warning("a batch does not end; its memory goes with the context")
                break
            if runner is None:  # closed already
                break
            runner.free()
        self._free.put(None)

    def _take(self, *, wait: bool) -> Runner | None:
        """Take a free runner; None where there is none and `wait` is false."""
        try:
            runner = self._free.get(block=wait)
        except Empty:
            return None
        if runner is None:
            self._free.put(None)
            raise ClosedError
        return runner

    def _collect(self, in_flight: deque[Runner], features: list[npt.NDArray[np.float32]] | None) -> ImageOutputs:
        runner = in_flight[0]
        outputs = runner.collect(poll=len(self._callers) == 1)
        if features is not None:
            features.append(runner.read_features(len(outputs.logits)))
        in_flight.popleft()
        self._free.put(runner)
        return outputs

    def _abandon(self, in_flight: deque[Runner]) -> None:
        """Put runners back after an error, once nothing of theirs is in flight."""
        for runner in in_flight:
            with suppress(Exception):  # the error that is being raised explains more
                runner.wait()
            self._free.put(runner)


def make_runners(make: Callable[[], Runner], count: int) -> list[Runner]:
    """Make `count` runners, or as many as there is room for.

    Raises:
        NoRoomError: if there is no room for one.
    """
    runners: list[Runner] = []
    try:
        while len(runners) < count:
            runners.append(make())
    except BaseException as error:
        if isinstance(error, NoRoomError) and runners:
            log.warning("%s streams instead of %s: %s", len(runners), count, error)
            return runners
        for runner in runners:
            runner.free()
        raise
    return runners


def split_batch(batch: Images, max_batch: int, spec: ModelSpec) -> list[Images]:
    """Cut a batch into parts of at most `max_batch` pictures and about `MAX_PART_BYTES` bytes, in order."""
    if isinstance(batch, PackedImages):  # one memory of their pixels has no more than fits
        return [batch[start : start + max_batch] for start in range(0, len(batch), max_batch)]
    if isinstance(batch, np.ndarray):
        step = max(1, min(max_batch, MAX_PART_BYTES // count_device_bytes(DecodedImage(batch[0]), spec)))
        return [batch[start : start + step] for start in range(0, len(batch), step)]
    parts: list[Images] = []
    start = size = 0
    for index, picture in enumerate(batch):
        needed = count_device_bytes(picture, spec)
        if index > start and (index - start == max_batch or size + needed > MAX_PART_BYTES):
            parts.append(batch[start:index])
            start, size = index, 0
        size += needed
    parts.append(batch[start:])
    return parts
