"""Single pictures from many callers, answered in batches: what `Engine.apredict` stands on.

Threads prepare what is submitted; one more gathers what is prepared, runs the network on it, and sets the results.
A batch waits for pictures that are being prepared, but never longer than the delay, and a lone picture does not
wait at all.
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ..backend.protocol import Backend
from ..errors import BusyError, ClosedError
from ..types import Channels, Failure, Prediction, Source
from .batch import Batch, Task
from .stages import Stages, make_error


class Request(NamedTuple):
    """A prepared picture in a batch of its own, and the future of whoever waits for its result."""

    batch: Batch
    future: "Future[Prediction]"


class Coalescer:
    """A bounded queue in front of the network.

    Args:
        stages: of a picture's way.
        backend: that runs the network.
        max_batch: pictures of the largest batch.
        threads: that prepare.
        delay: seconds that a batch waits at most for pictures that are in flight.
        size: pictures that are in flight at most.
    """

    def __init__(
        self, stages: Stages, backend: Backend, *, max_batch: int, threads: int, delay: float, size: int
    ) -> None:
        self._stages, self._backend = stages, backend
        self._max_batch, self._delay, self._size = max_batch, delay, size
        self._preparing = ThreadPoolExecutor(threads, thread_name_prefix="fmengine-prepare")
        self._prepared: SimpleQueue[Request | None] = SimpleQueue()  # None: the last one was before it
        self._lock = threading.Lock()
        self._in_flight = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fmengine-coalesce", daemon=True)
        self._thread.start()

    def submit(self, source: Source, channels: Channels, *, inline: bool = False) -> "Future[Prediction]":
        """Request one picture's result. To cancel the future is to give the picture up.

        Args:
            source: the picture.
            channels: their order in an array.
            inline: prepare in this thread, as what is in device memory must be: the work that writes it is ordered
                by the thread that made it.

        Raises:
            BusyError: if as many pictures are in flight as may be.
            ClosedError: after `close`.
        """
        with self._lock:
            if self._closed:
                raise ClosedError
            if self._in_flight >= self._size:
                raise BusyError(
                    f"{self._size} pictures are under way already, as many as the queue takes: ask again later, "
                    "or load the engine with a larger queue_size"
                )
            self._in_flight += 1
            future: Future[Prediction] = Future()
            future.add_done_callback(self._leave)
            if not inline:
                self._preparing.submit(self._prepare, source, channels, future)
        if inline:
            self._prepare(source, channels, future)
        return future

    def close(self) -> None:
        """Answer what is in flight, and stop. Closing twice is no error."""
        with self._lock:
            closed, self._closed = self._closed, True
        self._preparing.shutdown()
        if not closed:
            self._prepared.put(None)
        self._thread.join()

    def _leave(self, future: "Future[Prediction]") -> None:
        with self._lock:
            self._in_flight -= 1

    def _prepare(self, source: Source, channels: Channels, future: "Future[Prediction]") -> None:
        if future.cancelled():  # its deadline passed while it waited
            return
        try:
            task, batch = self._stages.admit(source, channels, copy=False), self._stages.borrow_row()
            self._stages.prepare([task], batch)
        except BaseException as error:
            _set_error(future, error)
            return
        if batch.tasks:
            self._prepared.put(Request(batch, future))
        else:
            _set_result(future, task)

    def _run(self) -> None:
        batch = Batch(self._stages.spec, self._max_batch)
        while (first := self._prepared.get()) is not None:
            requests, is_last = self._gather(first)
            wanted = [request for request in requests if request.future.set_running_or_notify_cancel()]
            if wanted:
                batch.add_batches([request.batch for request in wanted])
            for request in wanted:
                request.batch.clear()
                self._stages.return_row(request.batch)
            tasks = list(batch.tasks)
            try:
                self._stages.answer(batch, self._backend)
            except Exception as error:  # that is no picture's
                for task in tasks:
                    task.result = task.result or error
            batch.clear()
            for request, task in zip(wanted, tasks, strict=True):
                _settle(request.future, task)
            if is_last:
                return

    def _gather(self, first: Request) -> tuple[list[Request], bool]:
        """Gather a batch; also return whether it is the last one."""
        requests, until = [first], time.monotonic() + self._delay
        while len(requests) < self._max_batch:
            # Where nobody else is in flight there is nothing to wait for.
            wait = until - time.monotonic() if self._in_flight > len(requests) else 0.0
            try:
                request = self._prepared.get(timeout=wait) if wait > 0 else self._prepared.get_nowait()
            except Empty:
                break
            if request is None:
                return requests, True
            requests.append(request)
        return requests, False


def _set_error(future: "Future[Prediction]", error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _set_result(future: "Future[Prediction]", task: Task) -> None:
    if future.set_running_or_notify_cancel():
        _settle(future, task)


def _settle(future: "Future[Prediction]", task: Task) -> None:
    """Set a running future to a task's result."""
    match task.result:
        case Prediction() as prediction:
            future.set_result(prediction)
        case Failure() as failure:
            future.set_exception(make_error(failure))
        case BaseException() as error:
            future.set_exception(error)
        case None:
            future.set_exception(ClosedError())
