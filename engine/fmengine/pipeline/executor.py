"""Many pictures, answered in order: in the caller's thread, or by several threads; see also `process_executor.py`.

The contract, whatever the body:

- Results come in the order of the sources, and an error of the sources after the results before it.
- Memory is bounded: so many pictures are in flight at most, read and not answered yet; one that takes much memory
  counts for several.
- A source is taken over before the next one is asked for: what becomes of it afterwards changes nothing.
- No result waits for a source that does not come. Lists and tuples are read ahead in the caller's thread. Any
  other iterator is advanced by one daemon thread, the feeder; with `feed="caller"` by the caller's own thread, and
  then a result may wait for the next source.
- Dropped half-read, it ends. A feeder that is blocked in the caller's own `next()` may outlive it, and keeps no
  interpreter alive.
- In a forked child it is an error: its threads and processes are the parent's.
"""

import atexit
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Literal, cast, get_args

import numpy as np

from ..backend.protocol import Backend
from ..errors import ClosedError, FmengineError
from ..types import Channels, Result, Source
from .batch import Batch, Task
from .chunk import Chunk
from .stages import Stages

Feed = Literal["auto", "caller"]
FEEDS: tuple[Feed, ...] = get_args(Feed)

WINDOW = 2  # batches a thread that are in flight at most, unless told otherwise
CHUNK = 16  # pictures that a thread takes at once: of fewer, not many are of one size
HELD_BYTES = 512 * 1024  # of a source in memory: as many more count as another picture in flight
LAST_WAIT = 5.0  # seconds that the interpreter's end waits for batches that are being answered

_running: "weakref.WeakSet[Executor]" = weakref.WeakSet()


class Executor(ABC):
    """Answers for the sources of one job; see the contract above.

    Args:
        stages: of a picture's way.
        backend: that runs the network.
        batch_size: pictures a run of the network.
        max_in_flight: pictures that are read and not answered yet, at most; `batch_size` or more.
    """

    def __init__(self, stages: Stages, backend: Backend, *, batch_size: int, max_in_flight: int) -> None:
        self._stages, self._backend = stages, backend
        self._batch_size, self._max_in_flight = batch_size, max_in_flight
        self._pending: deque[Task | Chunk] = deque()  # in order, until their results are taken
        self._waiting: SimpleQueue[Task | Chunk | None] = SimpleQueue()  # for whoever computes; None: no more come
        self._changed = threading.Event()  # results are known, or the feeder ended
        self._room = threading.Semaphore(max_in_flight)  # what the feeder may still read
        self._taken = 0  # pictures in flight that the results taken last counted for
        self._feeder: threading.Thread | None = None
        self._reading = False  # the feeder is in the caller's `next()`
        self._ended = self._stopped = False
        self._error: BaseException | None = None  # that ended the sources
        self._process = os.getpid()

    def map(
        self, sources: Iterable[Source], channels: Channels, feed: Feed = "auto"
    ) -> Iterator[Sequence[Result]]:
        """Yield the results in order and as soon as they are known, in lists of those that are.

        Raises:
            Exception: of the sources, after the results before it.
            DeviceError: if a GPU fails.
            ClosedError: if the executor was closed meanwhile.
            FmengineError: in a forked child.
        """
        iterator = iter(sources)
        _running.add(self)
        try:
            self._start()
            if feed == "caller" or isinstance(sources, list | tuple):
                yield from self._map_from_caller(iterator, channels)
            else:
                yield from self._map_from_feeder(iterator, channels)
            if self._error is not None:
                raise self._error
        finally:
            self.close()

    def close(self, timeout: float | None = None) -> None:
        """Stop: what waits is dropped, what runs is waited for. A feeder in the caller's `next()` is not."""
        if self._process != os.getpid():
            return
        self._stopped = True
        self._room.release(self._max_in_flight)
        self._waiting.put(None)
        self._announce()
        self._join(timeout)
        feeder = self._feeder
        while feeder and feeder is not threading.current_thread() and feeder.is_alive() and not self._reading:
            feeder.join(0.001)

    @abstractmethod
    def _start(self) -> None:
        """Start the threads that compute."""

    @abstractmethod
    def _wait(self) -> None:
        """Return once more results may be known, or the sources ended."""

    @abstractmethod
    def _join(self, timeout: float | None) -> None:
        """Wait for the threads that compute."""

    def _map_from_caller(self, sources: Iterator[Source], channels: Channels) -> Iterator[Sequence[Result]]:
        pending, in_flight = self._pending, 0
        while not self._ended:
            for unit in self._read(sources, channels, self._max_in_flight - in_flight):
                in_flight += unit.weight
                pending.append(unit)
                self._enqueue(unit)
            while pending and (pending[0].result is not None or in_flight >= self._max_in_flight):
                yield self._take_results()
                in_flight -= self._taken
        while pending:
            yield self._take_results()

    def _read(self, sources: Iterator[Source], channels: Channels, room: int) -> "Sequence[Task | Chunk]":
        """Read some sources, as many as there is room for at most; `_ended` says whether that was all."""
        try:
            source = next(sources)
        except StopIteration:
            self._ended = True
        except Exception as error:
            self._error, self._ended = error, True
        else:
            return (Task(source, source) if type(source) is str else self._admit(source, channels),)
        return ()

    def _map_from_feeder(self, sources: Iterator[Source], channels: Channels) -> Iterator[Sequence[Result]]:
        arguments = sources, channels
        self._feeder = threading.Thread(target=self._feed, args=arguments, name="fmengine-feeder", daemon=True)
        self._feeder.start()
        while results := self._take_results():
            taken = self._taken
            yield results
            self._room.release(taken)

    def _feed(self, sources: Iterator[Source], channels: Channels) -> None:
        """Read sources as long as there is room for more: what the feeder's thread does."""
        try:
            while self._room.acquire() and not self._stopped:
                self._reading = True
                source = next(sources)
                self._reading = False
                task = self._admit(source, channels)
                for _ in range(task.weight - 1):
                    self._room.acquire()
                self._pending.append(task)
                self._enqueue(task)
            self._error = ClosedError()
        except StopIteration:
            pass
        except BaseException as error:  # whatever it is, it ends the sources, and no thread would show it
            self._error = error
        finally:
            self._reading, self._ended = False, True
            self._waiting.put(None)
            self._announce()

    def _enqueue(self, unit: Task | Chunk) -> None:
        """Give what was read to whoever computes."""
        self._waiting.put(unit)

    def _announce(self) -> None:
        """Wake whoever waits for results: some are known, or no more come."""
        self._changed.set()

    def _is_first_known(self) -> bool:
        """Return whether the first result is known, or there is none to wait for."""
        ended = self._ended  # before `pending` is looked at: once ended, nothing more becomes pending
        return self._pending[0].result is not None if self._pending else ended

    def _admit(self, source: Source, channels: Channels) -> Task:
        """Take a source over, and weigh what it holds in memory: photographs must not fill it."""
        task = self._stages.admit(source, channels)
        content = task.content
        size = content.nbytes if isinstance(content, np.ndarray) else len(content) if type(content) is bytes else 0
        task.weight = min(1 + size // HELD_BYTES, self._max_in_flight)
        return task

    def _take_results(self) -> Sequence[Result]:
        """Take the first result, once it is known, and those behind it that are known by then.

        None are left where the list is empty.
        """
        pending = self._pending
        while not self._is_first_known():
            if self._process != os.getpid():
                raise FmengineError(
                    f"these results were begun by process {self._process} and are read after a fork by "
                    f"{os.getpid()}: begin anew in the child"
                )
            if self._stopped:
                raise ClosedError
            self._wait()
        results: list[Result] = []
        self._taken = 0
        while pending and (result := pending[0].result) is not None:
            if isinstance(result, BaseException):
                if results:  # they come first
                    break
                raise result
            if isinstance(result, Sequence):  # of a chunk
                if results:
                    break
                self._taken = pending.popleft().weight
                return result
            results.append(cast(Result, result))  # photographs have scenes
            self._taken += pending.popleft().weight
        return results


class InlineExecutor(Executor):
    """Computes in the thread that takes the results."""

    def _start(self) -> None:
        self._batch = Batch(self._stages.spec, self._batch_size)

    def _wait(self) -> None:
        tasks: list[Task] = []
        task = self._waiting.get()
        while isinstance(task, Task):
            tasks.append(task)
            task = take_waiting(self._waiting) if len(tasks) < self._batch_size else None
        self._stages.run(tasks, self._batch, self._backend)

    def _join(self, timeout: float | None) -> None:
        """There are none."""


class ThreadExecutor(Executor):
    """Computes in threads, each of which decodes for a batch of its own and runs the network on it.

    Decoding in one thread overlaps the network in another, no picture is handed from thread to thread, and near
    the end the threads share what is left.
    """

    def __init__(
        self, stages: Stages, backend: Backend, *, threads: int, batch_size: int, max_in_flight: int
    ) -> None:
        super().__init__(stages, backend, batch_size=batch_size, max_in_flight=max_in_flight)
        # Daemons: the interpreter does not wait for them but in `_close_all`, which stops them first.
        self._threads = [
            threading.Thread(target=self._work, name=f"fmengine-worker-{i}", daemon=True) for i in range(threads)
        ]

    def _start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _wait(self) -> None:
        self._changed.clear()
        if not (self._is_first_known() or self._stopped):  # what came before `clear` sets the event no second time
            self._changed.wait()

    def _join(self, timeout: float | None) -> None:
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout)

    def _work(self) -> None:
        batch = Batch(self._stages.spec, self._batch_size)
        while isinstance(task := self._waiting.get(), Task) and not self._stopped:
            self._compute(task, batch)
        self._waiting.put(None)  # for the next thread

    def _compute(self, first: Task, batch: Batch) -> None:
        """Compute a batch: a first task, and what waits behind it. One that is not full waits for nothing else."""
        task: Task | Chunk | None = first
        taken: list[Task] = []
        try:
            while isinstance(task, Task) and not self._stopped:
                chunk = self._take_chunk(task, min(CHUNK, batch.room))
                taken += chunk
                self._stages.prepare(chunk, batch)
                task = take_waiting(self._waiting) if batch.room else None
            if isinstance(task, Chunk):
                self._waiting.put(task)
            self._stages.answer(batch, self._backend)
        except BaseException as error:  # for whoever takes the results
            set_error(taken, error)
        batch.clear()
        self._announce()

    def _take_chunk(self, first: Task, room: int) -> list[Task]:
        """Take a thread's share of what waits, so that all threads end together."""
        chunk: list[Task] = [first]
        share = min(room, self._waiting.qsize() // len(self._threads))
        with suppress(Empty):
            for _ in range(share - 1):
                unit = self._waiting.get_nowait()
                if not isinstance(unit, Task):
                    self._waiting.put(unit)  # for whoever waits for it
                    break
                chunk.append(unit)
        return chunk


def set_error(tasks: Iterable[Task], error: BaseException) -> None:
    for task in tasks:
        if task.result is None:
            task.result = error


def take_waiting(waiting: "SimpleQueue[Task | Chunk | None]") -> Task | Chunk | None:
    """Take what waits, if anything does."""
    try:
        task = waiting.get_nowait()
    except Empty:
        return None
    if task is None:
        waiting.put(None)  # for whoever waits for it
    return task


@atexit.register
def _close_all() -> None:
    """Stop what still runs, so that no thread is in a library when the interpreter is gone."""
    for executor in list(_running):
        executor.close(LAST_WAIT)
