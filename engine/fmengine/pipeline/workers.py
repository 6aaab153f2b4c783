"""Worker processes: a decoder that crashes, hangs or answers nonsense costs one picture, and every core works.

No thread can end a decoder written in C that hangs, its crash is the crash of the whole process, and Python runs
in one thread at a time. Where a worker dies, its chunk is done again, one picture at a time. A picture is blamed
only for what it does to a worker that answered for no other before: what broke the worker may have been an earlier
one.
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import cast

from ..errors import ClosedError, SourceError, UnavailableError
from ..system import fork
from ..types import DecodedImage, Failure
from .arena import Memory
from .batch import Batch, Task
from .chunk import Chunk
from .death import KilledError, WorkerDiedError
from .forkserver import ForkServer, take_server
from .stages import Observe
from .worker_process import Owner, Worker
from .worker_setup import MAX_WAIT, Setup

log = logging.getLogger(__name__)

KILLS = 3  # by SIGKILL, which others may send, until it is the picture's doing


class Workers:
    """The workers of one engine. Thread-safe.

    Args:
        setup: what they do.
        count: workers at most.
    """

    _server: ForkServer | None
    _starter: threading.Thread | None

    def __init__(self, setup: Setup, count: int) -> None:
        self.setup, self.count = setup, count
        self._begin()
        fork.register(self)

    @property
    def capacity(self) -> int:
        """Return how many pictures a worker is given at most."""
        return self.setup.layout.capacity

    def start(self) -> None:
        """Start those that do not run, in a thread of its own, unless that is under way, or failed before."""
        with self._lock:
            under_way = self._starter is not None and self._starter.is_alive()
            if under_way or self._failed or self._closed or len(self._all) + self._starting >= self.count:
                return
            self._starter = threading.Thread(target=self._start_all, name="fmengine-start", daemon=True)
            self._starter.start()

    @property
    def started(self) -> bool:
        """Return whether all are started, or being so."""
        return self._starter is not None

    def list_processes(self) -> list[int]:
        """List the process IDs of the workers, and of the server that forks them, which comes first."""
        with self._lock:
            server = [self._server.process.pid] if self._server else []
            return server + [worker.pid for worker in self._all]

    def take(self, owner: "Owner | None" = None) -> "Worker | None":
        """Take an idle worker, if there is one."""
        try:
            worker = self._idle.pop()
        except IndexError:
            return None
        worker.owner = owner
        return worker

    def wait_for_one(self, owner: "Owner | None" = None) -> "Worker":
        """Take a worker: an idle one, a new one, or the first that is given back.

        Raises:
            UnavailableError: if none can be started.
            ClosedError: if the owner is stopped meanwhile, or all workers are.
        """
        with self._returned:
            while (worker := self.take(owner)) is None:
                self._check_wanted(owner)
                if self._count_apart_from(owner) + self._starting < self.count:
                    self._starting += 1
                    break
                self._returned.wait(MAX_WAIT)
        return worker or self._start_one(owner)

    def give_back(self, worker: "Worker") -> None:
        """Give an idle worker back. One that is not wanted any more is ended."""
        worker.owner = None
        surplus = self._count_apart_from(None) > self.count
        if worker.outstanding or worker.tainted or worker.ended or surplus or self._closed:
            self.end(worker)
            return
        with self._returned:
            self._idle.append(worker)
            self._returned.notify()

    def end(self, worker: "Worker") -> list[Chunk]:
        """End a worker, and return the chunks that it had; another worker may take its place."""
        chunks = [chunk for _, _, chunk in worker.outstanding]
        worker.outstanding.clear()
        worker.end()
        with self._returned:
            self._all.discard(worker)
            self._returned.notify()
        return chunks

    def kill_those_of(self, owner: "Owner") -> None:
        """Kill the workers that an owner has, whose threads are told that they died."""
        with self._lock:
            workers = [worker for worker in self._all if worker.owner is owner]
        for worker in workers:
            worker.kill()

    def prepare(self, tasks: Sequence[Task], batch: Batch, observer: Observe | None) -> None:
        """Have paths and encoded pictures read, decoded, and preprocessed unless a GPU does that.

        Each takes a row of the batch, or gets its `Failure`.

        Raises:
            UnavailableError: if no worker can be started.
        """
        rest = list(tasks)
        while rest:
            chunk, rest = Chunk.of(rest[: self.capacity]), rest[self.capacity :]
            worker = self.wait_for_one()
            try:
                worker.submit(chunk, network=False, observe=observer is not None)
                rest += worker.wait(observer).fill(batch, chunk.expand())
            except WorkerDiedError as death:
                self.end(worker)
                self.redo(chunk, worker, death, batch, observer)
            except BaseException:  # such as Ctrl-C, which leaves an answer under way that nobody waits for
                self.end(worker)
                raise
            else:
                self.give_back(worker)

    def decode(self, content: str | bytes) -> DecodedImage | SourceError:
        """Have one picture decoded, by workers that give images, and return its image or its error."""
        task, batch = Task(content, content), Batch.of_images()
        self.prepare([task], batch, None)
        if isinstance(task.result, Failure):
            return SourceError(task.result.kind, task.result.message)
        return cast(DecodedImage, batch.images[0])

    def redo(
        self, chunk: Chunk, worker: "Worker", death: WorkerDiedError, batch: Batch, observer: Observe | None
    ) -> None:
        """Do a chunk again, one picture at a time.

        Args:
            chunk: that it was at.
            worker: that died of it, and is ended.
            death: of the worker.
            batch: that the pictures take a row of, unless they get their `Failure`.
            observer: of the stages.

        Raises:
            UnavailableError: if no worker can be started.
            ClosedError: if its owner is stopped meanwhile.
        """
        order = list(chunk.expand())
        log.info("a worker ended (%s); its %d pictures are done again", death, len(order))
        if death.suspect is not None:  # first, in a worker that answered for no other
            order.insert(0, order.pop(death.suspect))
        fresh: Worker | None = None
        for task in order:
            fresh = fresh or self._start_fresh(worker.owner)
            fresh = self._do_alone(fresh, task, batch, observer, worker.network)
        if fresh is not None:
            self.give_back(fresh)

    def close(self) -> None:
        """End all of them. What they were at is not answered."""
        with self._returned:
            self._closed = True
            idle, server = list(self._idle), self._server
            self._all.clear()
            self._idle.clear()
            self._server = None
            self._returned.notify_all()
        if server is not None:
            server.close()
        for worker in idle:  # whoever has another sees it die, and closes its socket
            worker.let_go()

    def reset_after_fork(self) -> None:
        """Leave the workers to the parent: two processes that read one socket get each other's answers."""
        for worker in self._all:
            worker.let_go()
        closed = self._closed
        self._begin()
        self._closed = closed

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._returned = threading.Condition(self._lock)  # a worker is idle, or there is room for another
        self._idle: list[Worker] = []  # last in, first out: a worker that is not needed stays asleep
        self._all: set[Worker] = set()
        self._starting = 0
        self._server = None
        self._server_lock = threading.Lock()
        self._starter = None
        self._failed = False
        self._closed = False

    def _count_apart_from(self, owner: "Owner | None") -> int:
        """Count the workers that no other owner has: an iterator that nobody reads on keeps what it has."""
        with self._lock:
            return sum(worker.owner in (None, owner) for worker in self._all)

    def _check_wanted(self, owner: "Owner | None") -> None:
        if self._closed or (owner is not None and owner.stopped):
            raise ClosedError

    def _start_all(self) -> None:
        try:
            while True:
                with self._lock:
                    if self._closed or len(self._all) + self._starting >= self.count:
                        return
                    self._starting += 1
                self.give_back(self._start_one())
        except ClosedError:
            pass
        except UnavailableError as error:
            self._failed, ready = True, len(self._all)
            log.warning("%d of %d worker processes run, threads do the rest: %s", ready, self.count, error)

    def _start_fresh(self, owner: "Owner | None") -> "Worker":
        with self._lock:
            self._check_wanted(owner)
            self._starting += 1
        return self._start_one(owner)

    def _start_one(self, owner: "Owner | None" = None) -> "Worker":
        """Start a worker that `_starting` counts already."""
        worker = None
        try:
            worker = self._make_worker()
            worker.owner = owner
            return worker
        finally:
            with self._lock:
                self._starting -= 1
                if worker is not None:
                    self._all.add(worker)

    def _make_worker(self) -> "Worker":
        """Make a worker, and another one where somebody kills it, or the fork server, before it is ready."""
        for _ in range(KILLS - 1):
            with suppress(KilledError):
                return Worker(self._get_server(), self.setup)
        return Worker(self._get_server(), self.setup)

    def _get_server(self) -> ForkServer:
        """Return the fork server; start one where there is none, or it died."""
        with self._server_lock:
            server = self._server
            if server is not None and server.process.poll() is None:
                return server
            if server is not None:
                server.close()
            server = _start_server(self.setup)
            with self._lock:
                self._server = server
                if self._closed:
                    server.close()
                    raise ClosedError
            return server

    def _do_alone(
        self, worker: "Worker", task: Task, batch: Batch, observer: Observe | None, network: bool
    ) -> "Worker | None":
        """Do one task, and return the worker that can do the next."""
        kills, owner = 0, worker.owner
        while True:
            fresh = not worker.answered
            try:
                worker.submit(Chunk.of([task]), network=network, observe=observer is not None)
                worker.wait(observer).fill(batch, [task])
            except WorkerDiedError as death:
                self.end(worker)
                kills += death.killed
                if fresh and (not death.killed or kills >= KILLS):
                    task.result = Failure(death.kind, str(death), task.source)
                    return None
                worker = self._start_fresh(owner)
            except BaseException:
                self.end(worker)
                raise
            else:
                if not worker.tainted:
                    return worker
                self.end(worker)
                return None


def _start_server(setup: Setup) -> ForkServer:
    isolation = setup.isolation
    common = {
        "limits": asdict(setup.limits),
        "min_side": setup.min_side,
        "capacity": setup.layout.capacity,
        "seconds": isolation.seconds if isolation else 0.0,
        "memory": isolation.memory if isolation else 0,
    }
    with closing(Memory(1)) as turn, closing(Memory(max(1, len(setup.model)), setup.model)) as model:
        server = take_server()
        try:
            server.set_up(setup.service, setup.settings | common, [turn.descriptor, model.descriptor])
        except UnavailableError:
            server.close()
            raise
    return server
