"""Many pictures, answered in order by worker processes, each of which a thread here speaks for."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

from ..backend.protocol import Backend
from ..errors import ClosedError, UnavailableError
from ..types import Channels, Source
from .arena import SLOTS
from .batch import Batch, Task
from .chunk import Chunk
from .death import WorkerDiedError
from .executor import ThreadExecutor, take_waiting
from .stages import Stages, is_delegable
from .workers import Reply, Worker, Workers

log = logging.getLogger(__name__)


class ProcessExecutor(ThreadExecutor):
    """Has paths and encoded pictures answered by workers.

    Until workers are ready the threads compute, and so they do for what is decoded already, as arrays are. A
    worker has two chunks at a time: it writes the answers of one while the thread reads those of the other.
    """

    def __init__(
        self,
        stages: Stages,
        backend: Backend,
        *,
        threads: int,
        batch_size: int,
        max_in_flight: int,
        workers: Workers,
        start_after: int,
    ) -> None:
        """Set it up.

        Args:
            stages: as of `Executor`; where they have workers themselves, threads must not decode.
            backend: as of `Executor`.
            threads: as many as there are workers at most.
            batch_size: as of `Executor`.
            max_in_flight: as of `Executor`.
            workers: that answer.
            start_after: pictures that threads answer before workers are started.
        """
        super().__init__(stages, backend, threads=threads, batch_size=batch_size, max_in_flight=max_in_flight)
        self._workers = workers
        self._chunk_size = min(batch_size, workers.capacity)
        self._must_delegate = stages.workers is not None
        self._start_after = start_after

    @property
    def stopped(self) -> bool:
        """Return whether what its workers do is of no use any more."""
        return self._stopped

    def _start(self) -> None:
        self._count_computed(0)
        super()._start()

    def _count_computed(self, pictures: int) -> None:
        """Count pictures that a thread answered, and start workers once they are many."""
        self._start_after -= pictures
        if self._start_after <= 0:
            self._workers.start()

    def _join(self, timeout: float | None) -> None:
        self._workers.kill_those_of(self)  # whatever their decoders do
        super()._join(timeout)

    def _read(self, sources: Iterator[Source], channels: Channels, room: int) -> Sequence[Task | Chunk]:
        """Read a chunk of paths; what is none of them has a task of its own."""
        paths: list[str] = []
        units: list[Task | Chunk] = []
        size = min(self._chunk_size, max(1, room))
        try:
            for source in islice(sources, size):
                if type(source) is not str:
                    units.append(self._admit(source, channels))
                    break
                paths.append(source)
            self._ended = not units and len(paths) < size
        except Exception as error:
            self._error, self._ended = error, True
        return [Chunk(paths), *units] if paths else units

    def _work(self) -> None:
        batch = Batch(self._stages.spec, self._batch_size)
        worker: Worker | None = None
        while not self._stopped:
            outstanding = worker is not None and len(worker.outstanding) > 0
            unit = take_waiting(self._waiting) if outstanding else self._waiting.get()
            if unit is None and not outstanding:
                break
            try:
                if unit is not None:
                    worker = self._begin(worker, unit, batch)
                if worker is not None and (unit is None or len(worker.outstanding) == SLOTS):
                    worker = self._collect(worker, batch)
            except BaseException as error:  # for whoever takes the results
                if isinstance(unit, Chunk):
                    unit.set_error(error)
                elif unit is not None:
                    unit.result = unit.result or error
                self._drop(worker, error)
                worker = None
            batch.clear()
            self._changed.set()
            if worker is not None and not worker.outstanding and not self._waiting.qsize():
                self._workers.give_back(worker)  # others may have work for it
                worker = None
        self._drop(worker, ClosedError())
        self._waiting.put(None)  # for the next thread

    def _begin(self, worker: Worker | None, unit: Task | Chunk, batch: Batch) -> Worker | None:
        """Give what waits to a worker, or compute it, and return the worker that this thread has then."""
        if isinstance(unit, Chunk):
            return self._give(worker, unit, batch)
        if is_delegable(unit) and (worker := worker or self._take_worker()):
            tasks = self._take_chunk(unit, self._chunk_size)
            if not all(map(is_delegable, tasks)):
                self._stages.run([task for task in tasks if not is_delegable(task)], batch, self._backend)
                tasks = [task for task in tasks if is_delegable(task)]
            return self._give(worker, Chunk.of(tasks), batch) if tasks else worker
        self._compute(unit, batch)
        self._count_computed(self._batch_size)
        return worker

    def _take_worker(self) -> Worker | None:
        """Take a worker; None where none is ready and threads may compute."""
        return self._workers.wait_for_one(self) if self._must_delegate else self._workers.take(self)

    def _give(self, worker: Worker | None, chunk: Chunk, batch: Batch) -> Worker | None:
        """Give a chunk to a worker, or compute it, and return the worker that has what else there is to do."""
        worker = worker or self._take_worker()
        if worker is None:
            self._compute_chunk(chunk, batch)
            self._count_computed(chunk.weight)
            return None
        try:
            worker.submit(chunk, network=self._stages.device is None, observe=self._stages.observer is not None)
        except WorkerDiedError as death:
            return self._recover(worker, death, batch)
        return worker

    def _collect(self, worker: Worker, batch: Batch) -> Worker | None:
        """Take a worker's first answer, and return the worker that has what else there is to do."""
        chunk = worker.outstanding[0][2]
        try:
            reply = worker.collect(self._stages.observer)
        except WorkerDiedError as death:
            return self._recover(worker, death, batch)
        except UnavailableError as error:
            self._compute_instead(self._workers.end(worker), batch, error)
            return None
        again = self._settle(chunk, reply, batch)
        others = self._workers.end(worker) if worker.tainted else []
        after = None if worker.tainted else worker
        for other in [*again, *others]:
            after = self._give(after, other, batch)
        return after

    def _settle(self, chunk: Chunk, reply: Reply, batch: Batch) -> list[Chunk]:
        """Give the pictures of a chunk their results; those that there was no room for are a chunk to do again."""
        if chunk.tasks is None and self._stages.device is None:
            answers = reply.make_answers(cast("list[str]", chunk.contents), self._stages.spec.labels)
            self._stages.post_columns(answers)
            chunk.result = answers
            return []
        left = reply.fill(batch, chunk.expand())
        self._answer(batch)
        chunk.settle()
        return [Chunk.of(left, chunk)] if left else []

    def _recover(self, worker: Worker, death: WorkerDiedError, batch: Batch) -> Worker | None:
        """Do again what a worker had when it died, and return the worker that has what else there is to do."""
        first, *others = self._workers.end(worker)
        try:
            self._workers.redo(first, worker, death, batch, self._stages.observer)
        except UnavailableError as error:
            self._answer(batch)
            self._compute_instead([first, *others], batch, error)
            return None
        except BaseException as error:
            for chunk in (first, *others):
                chunk.set_error(error)
            raise
        self._answer(batch)
        first.settle()
        self._changed.set()
        after: Worker | None = None
        for chunk in others:
            after = self._give(after, chunk, batch)
        return after

    def _answer(self, batch: Batch) -> None:
        """Give the tasks of a batch that workers filled their results."""
        if self._stages.device is None:
            self._stages.post(batch)
        else:
            self._stages.answer(batch, self._backend)

    def _compute_chunk(self, chunk: Chunk, batch: Batch) -> None:
        self._stages.run([task for task in chunk.expand() if task.result is None], batch, self._backend)
        chunk.settle()

    def _compute_instead(self, chunks: list[Chunk], batch: Batch, error: UnavailableError) -> None:
        """Compute what no worker can be had for, where threads may."""
        if not self._must_delegate:
            log.warning("threads do what a worker process was to: %s", error)
        for chunk in chunks:
            if self._must_delegate:
                chunk.set_error(error)
            else:
                self._compute_chunk(chunk, batch)

    def _drop(self, worker: Worker | None, error: BaseException) -> None:
        """Give a worker back, or end it if it is at work on what nobody wants any more."""
        if worker is not None:
            for chunk in self._workers.end(worker) if worker.outstanding else ():
                chunk.set_error(error)
            self._workers.give_back(worker)
