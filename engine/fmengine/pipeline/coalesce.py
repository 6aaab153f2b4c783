"""Single pictures from many callers, answered in batches: what `Engine.apredict` stands on.

Threads decode what is submitted; one more gathers what is decoded, runs the network on it, and hands the answers
out. A batch waits for pictures that are being decoded, but never longer than the delay, and a lone picture does
not wait at all.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from ..errors import CLOSED, BusyError, FmengineError, SourceError
from ..types import AnyImage, Channels, Failure, Prediction, Source

if TYPE_CHECKING:
    from ..image.flatness import Prepared

    Item = AnyImage | Prepared  # what the backend is given

Decode = Callable[[Source, Channels], "Item | Failure"]
Answer = Callable[["list[tuple[Source, Item]]"], list[Prediction | Failure]]


class Ready(NamedTuple):
    """A decoded picture, and who waits for its answer."""

    source: Source
    picture: "Item"
    asked: "Future[Prediction]"


class Batcher:
    """A bounded queue in front of the network.

    Args:
        decode: what is submitted, in a thread of its own.
        answer: a batch, in one thread.
        max_batch: pictures of the largest batch.
        workers: threads that decode.
        delay: seconds that a batch waits at most for pictures that are under way.
        size: pictures that are under way at most.
    """

    def __init__(
        self, decode: Decode, answer: Answer, *, max_batch: int, workers: int, delay: float, size: int
    ) -> None:
        self._decode, self._answer = decode, answer
        self._max_batch, self._delay, self._size = max_batch, delay, size
        self._decoding = ThreadPoolExecutor(workers, thread_name_prefix="fmengine-decode")
        self._ready: SimpleQueue[Ready | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._under_way = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fmengine-batch", daemon=True)
        self._thread.start()

    def submit(self, source: Source, channels: Channels, here: bool = False) -> "Future[Prediction]":
        """Ask for one picture's answer. To cancel the future is to give the picture up.

        Args:
            source: the picture.
            channels: their order in an array.
            here: decode in this thread, as what lies on a GPU must be: it is ordered by the thread that made it.

        Raises:
            BusyError: if as many pictures are under way as may be.
        """
        with self._lock:
            if self._closed:
                raise FmengineError(CLOSED)
            if self._under_way >= self._size:
                raise BusyError(
                    f"{self._size} pictures are under way already, as many as the queue takes: ask again later, "
                    "or load the engine with a larger queue_size"
                )
            self._under_way += 1
            asked: Future[Prediction] = Future()
            asked.add_done_callback(self._done)
            if not here:
                self._decoding.submit(self._prepare, source, channels, asked)
        if here:
            self._prepare(source, channels, asked)
        return asked

    def close(self) -> None:
        """Answer what is under way, and stop. Closing twice is no error."""
        with self._lock:
            closed, self._closed = self._closed, True
        self._decoding.shutdown()
        if not closed:
            self._ready.put(None)
        self._thread.join()

    def _done(self, asked: "Future[Prediction]") -> None:
        with self._lock:
            self._under_way -= 1

    def _prepare(self, source: Source, channels: Channels, asked: "Future[Prediction]") -> None:
        if asked.cancelled():  # its deadline passed while it waited
            return
        try:
            picture = self._decode(source, channels)
        except Exception as error:
            _settle(asked, error)
        else:
            if isinstance(picture, Failure):
                _settle(asked, SourceError(picture.kind, picture.message))
            else:
                self._ready.put(Ready(source, picture, asked))

    def _run(self) -> None:
        while (first := self._ready.get()) is not None:
            batch, last = self._gather(first)
            wanted = [ready for ready in batch if ready.asked.set_running_or_notify_cancel()]
            try:
                answers = self._answer([(ready.source, ready.picture) for ready in wanted]) if wanted else []
            except Exception as error:
                for ready in wanted:
                    ready.asked.set_exception(error)
            else:
                for ready, answer in zip(wanted, answers, strict=True):
                    if isinstance(answer, Failure):
                        ready.asked.set_exception(SourceError(answer.kind, answer.message))
                    else:
                        ready.asked.set_result(answer)
            if last:
                return

    def _gather(self, first: Ready) -> tuple[list[Ready], bool]:
        """A batch, and whether it is the last one."""
        batch, until = [first], time.monotonic() + self._delay
        while len(batch) < self._max_batch:
            # Nobody else is under way: there is nothing to wait for.
            patience = until - time.monotonic() if self._under_way > len(batch) else 0.0
            try:
                ready = self._ready.get(timeout=patience) if patience > 0 else self._ready.get_nowait()
            except Empty:
                break
            if ready is None:
                return batch, True
            batch.append(ready)
        return batch, False


def _settle(asked: "Future[Prediction]", error: Exception) -> None:
    if asked.set_running_or_notify_cancel():
        asked.set_exception(error)
