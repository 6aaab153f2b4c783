"""Many pictures, answered in order by worker processes, which the thread that takes the results speaks for."""

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty
from typing import cast

from ..backend.protocol import Backend
from ..errors import ClosedError, UnavailableError
from ..types import Channels, Source
from .arena import SLOTS
from .batch import Batch, Task
from .chunk import Chunk
from .death import WorkerDiedError
from .executor import ThreadExecutor
from .reply import Reply
from .stages import Stages, is_delegable
from .worker_process import Worker
from .workers import Workers

log = logging.getLogger(__name__)

WITHOUT_BELL = 0.01  # seconds between looks at whether there is news


class ProcessExecutor(ThreadExecutor):
    """Has paths and encoded pictures answered by workers.

    Until workers are ready the threads compute, and so they do for what is decoded already, as arrays are. A
    worker has two chunks at a time: it works on one while this process reads the answers of the other.
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
            threads: that compute.
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
        self._delegates = self._must_delegate  # since a worker is ready; until then threads compute
        self._ready: deque[Task | Chunk] = deque()  # for workers
        self._held: dict[int, Worker] = {}  # by the descriptor of their socket
        self._free: deque[Worker] = deque()  # once for each chunk that they can take, those without any first
        self._poll = select.poll()
        self._bell: socket.socket | None  # wakes a `poll` when its button is pressed
        self._button: socket.socket | None
        self._bell, self._button = _make_bell()
        self._sleeps = False
        self._computing: dict[int, tuple[Chunk, float]] = {}  # by thread, and since when
        self._looked_at = time.monotonic()  # when pulses were looked at
        self._taker: int | None = None  # the thread that takes the results

    @property
    def stopped(self) -> bool:
        """Return whether what its workers do is of no use any more."""
        return self._stopped

    def _start(self) -> None:
        if self._bell is not None:
            self._poll.register(self._bell, select.POLLIN)
        self._count_computed(0)
        self._taker = threading.get_ident()
        if not self._delegates:
            self._begin_to_delegate()
        super()._start()

    def _count_computed(self, pictures: int) -> None:
        """Count pictures that threads answered, and start workers once they are many."""
        self._start_after -= pictures
        if self._start_after <= 0:
            self._workers.start()

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

    def _enqueue(self, unit: Task | Chunk) -> None:
        if self._delegates and _can_delegate(unit):
            self._ready.append(unit)
            self._wake()
        else:
            super()._enqueue(unit)

    def _announce(self) -> None:
        super()._announce()
        self._wake()

    def _wake(self) -> None:
        if self._sleeps and self._button is not None:
            with suppress(OSError):  # it is awake, or closed
                self._button.send(b"\0")

    # What the threads do.

    def _work(self) -> None:
        batch = Batch(self._stages.spec, self._batch_size)
        while (unit := self._waiting.get()) is not None and not self._stopped:
            if isinstance(unit, Task):
                pictures = self._batch_size if is_delegable(unit) else 0  # of images workers could do nothing with
                self._compute(unit, batch)
                self._count_computed(pictures)
            else:
                self._compute_chunk(unit, batch)
                self._announce()
                self._count_computed(unit.weight)
        self._waiting.put(None)  # for the next thread

    def _compute_chunk(self, chunk: Chunk, batch: Batch) -> None:
        """Compute those pictures of a chunk that have no result."""
        thread = threading.get_ident()
        self._computing[thread] = chunk, time.monotonic()
        try:
            self._stages.run([task for task in chunk.expand() if task.result is None], batch, self._backend)
            chunk.settle()
        except BaseException as error:  # for whoever takes the results
            chunk.set_error(error)
            batch.clear()
        self._computing.pop(thread, None)

    # What the thread does that takes the results.

    def _wait(self) -> None:
        self._taker = threading.get_ident()
        if not self._delegates and not self._begin_to_delegate():
            super()._wait()
            return
        self._sleeps = True  # from here on whoever has news wakes it
        self._dispatch()
        if self._ready and not self._held:
            self._cease_to_delegate()
        if self._is_first_known() or self._stopped or not self._delegates:
            self._sleeps = False
            return
        events = self._poll.poll(1000 * (self._workers.setup.look_every if self._bell else WITHOUT_BELL))
        self._sleeps = False
        for descriptor, _ in events:
            if worker := self._held.get(descriptor):
                self._collect(worker)
            elif self._bell is not None:
                with suppress(BlockingIOError):
                    self._bell.recv(4096)
        if time.monotonic() - self._looked_at > self._workers.setup.look_every:
            self._look_at_pulses()

    def _begin_to_delegate(self) -> bool:
        """Take a worker, if one is ready; then threads are left what workers cannot do."""
        worker = self._workers.take(self)
        if worker is None:
            return False
        self._hold(worker)
        self._delegates = True
        units: list[Task | Chunk | None] = []
        with suppress(Empty):
            while True:
                units.append(self._waiting.get_nowait())
        for unit in units:
            if unit is not None:
                self._enqueue(unit)
        if None in units:
            self._waiting.put(None)
        return True

    def _cease_to_delegate(self) -> None:
        """Leave everything to threads again, where all workers died and no other can be had now."""
        self._delegates = False
        while self._ready:
            self._enqueue(self._ready.popleft())
        self._workers.start()

    def _hold(self, worker: Worker) -> None:
        self._held[worker.descriptor] = worker
        self._poll.register(worker.descriptor, select.POLLIN)
        self._free.appendleft(worker)

    def _let_go(self, worker: Worker) -> None:
        """Do without a worker: give it back, or end it if it is at work."""
        self._poll.unregister(worker.descriptor)
        del self._held[worker.descriptor]
        while worker in self._free:
            self._free.remove(worker)
        self._workers.give_back(worker)

    def _dispatch(self) -> None:
        """Give workers what is ready for them; one that has nothing to do may be of use to others."""
        while self._ready and (worker := self._find_free()):
            chunk = self._next_chunk(worker)
            if chunk is None:
                self._free.appendleft(worker)
                return
            self._submit(worker, chunk)
        if not self._ready:
            for worker in list(self._held.values()):
                if not worker.outstanding:
                    self._let_go(worker)

    def _find_free(self) -> Worker | None:
        """Find a worker that can take a chunk; another one is taken before one gets its second."""
        if self._free and not self._free[0].outstanding:
            return self._free.popleft()
        worker = self._workers.take(self)
        if worker is None and self._must_delegate:
            if not self._held:
                worker = self._workers.wait_for_one(self)
            self._workers.start()
        if worker is not None:
            self._hold(worker)
        return self._free.popleft() if self._free else None

    def _next_chunk(self, worker: Worker) -> Chunk | None:
        """Take a worker's share of what is ready; None where it is to wait until that is more."""
        if isinstance(self._ready[0], Chunk):
            return cast(Chunk, self._ready.popleft())
        if worker.outstanding and len(self._ready) < self._chunk_size and not self._ended:
            return None
        share = max(1, min(self._chunk_size, len(self._ready) // self._workers.count))
        tasks: list[Task] = []
        while len(tasks) < share and self._ready and isinstance(self._ready[0], Task):
            tasks.append(cast(Task, self._ready.popleft()))
        return Chunk.of(tasks)

    def _submit(self, worker: Worker, chunk: Chunk) -> None:
        try:
            worker.submit(chunk, network=self._stages.device is None, observe=self._stages.observer is not None)
        except WorkerDiedError as death:
            self._recover(worker, death)
        else:
            if len(worker.outstanding) < SLOTS and worker.may_take_another:
                self._free.append(worker)

    def _collect(self, worker: Worker) -> None:
        """Take a worker's first answer, if it is there, and give the pictures their results."""
        chunk = worker.outstanding[0][2] if worker.outstanding else Chunk([])
        try:
            reply = worker.collect(self._stages.observer)
        except WorkerDiedError as death:
            self._recover(worker, death)
            return
        except UnavailableError as error:
            self._compute_instead(self._end(worker), error)
            return
        if reply is None:
            return
        left = self._settle(chunk, reply)
        if worker.tainted:
            self._ready.extendleft(self._end(worker))
        elif worker not in self._free:
            self._free.append(worker) if worker.outstanding else self._free.appendleft(worker)
        self._ready.extendleft(left)

    def _settle(self, chunk: Chunk, reply: Reply) -> list[Chunk]:
        """Give the pictures of a chunk their results; those that there was no room for are a chunk to do again."""
        if chunk.tasks is None and (answered := self._finish(reply)):
            answers = answered.make_answers(cast("list[str]", chunk.contents), self._stages.spec.labels)
            self._stages.post_columns(answers)
            chunk.result = answers
            return []
        batch = Batch(self._stages.spec, self._chunk_size)
        left = reply.fill(batch, chunk.expand())
        self._answer(batch)
        chunk.settle()
        return [Chunk.of(left, chunk)] if left else []

    def _finish(self, reply: Reply) -> Reply | None:
        """Have a GPU do the rest of a reply, if there is one; None where its pictures must be looked at singly."""
        device = self._stages.device
        if device is None or not (reply.images or reply.unplaced):
            return reply
        if reply.unplaced or (answers := self._stages.infer_images(device, reply.images)) is None:
            return None
        return reply._replace(probabilities=answers[0], flat=answers[1])

    def _answer(self, batch: Batch) -> None:
        """Give the tasks of a batch that workers filled their results."""
        if self._stages.device is None:
            self._stages.post(batch)
        else:
            self._stages.answer(batch, self._backend)

    def _look_at_pulses(self) -> None:
        """Find the workers that hang."""
        self._looked_at = time.monotonic()
        for worker in list(self._held.values()):
            try:
                worker.check_pulse()
            except WorkerDiedError as death:
                self._recover(worker, death)

        for thread, (chunk, since) in list(self._computing.items()):
            if self._looked_at - since > self._workers.setup.seconds:
                self._abandon(thread, chunk)

    def _abandon(self, thread: int, chunk: Chunk) -> None:
        """Give a chunk to a worker that a thread does not get done with: its decoder cannot be ended."""
        log.warning("a decoder hangs in a thread; a worker process tries again what it was at")
        del self._computing[thread]
        self._threads = [other for other in self._threads if other.ident != thread]  # not to be waited for
        self._ready.appendleft(chunk.renew())

    def _end(self, worker: Worker) -> list[Chunk]:
        chunks = self._workers.end(worker)
        self._let_go(worker)
        return chunks

    def _recover(self, worker: Worker, death: WorkerDiedError) -> None:
        """Do again what a worker had when it died."""
        chunks = self._end(worker)
        if self._stopped:
            raise ClosedError
        if not chunks:
            return
        batch = Batch(self._stages.spec, self._chunk_size)
        self._ready.extendleft(reversed(chunks[1:]))
        try:
            self._workers.redo(chunks[0], worker, death, batch, self._stages.observer)
        except UnavailableError as error:
            self._answer(batch)
            self._compute_instead(chunks[:1], error)
        else:
            self._answer(batch)
            chunks[0].settle()

    def _compute_instead(self, chunks: list[Chunk], error: UnavailableError) -> None:
        """Compute what no worker can be had for, where threads may."""
        if self._must_delegate:
            raise error
        log.warning("threads do what a worker process was to: %s", error)
        for chunk in chunks:
            self._compute_chunk(chunk, Batch(self._stages.spec, self._chunk_size))

    def _join(self, timeout: float | None) -> None:
        if self._taker in (None, threading.get_ident()):
            for worker in list(self._held.values()):
                self._let_go(worker)
            for end in filter(None, (self._bell, self._button)):
                end.close()
        else:
            self._workers.kill_those_of(self)  # whatever their decoders do
        super()._join(timeout)


def _make_bell() -> tuple[socket.socket, socket.socket] | tuple[None, None]:
    """Make a connection for signs, or none where too many files are open."""
    try:
        ends = socket.socketpair()
    except OSError:
        return None, None
    for end in ends:
        end.setblocking(False)
    return ends


def _can_delegate(unit: Task | Chunk) -> bool:
    return isinstance(unit, Chunk) or is_delegable(unit)
