"""Worker processes: a decoder that crashes, hangs or answers nonsense costs one picture, and every core works.

No thread can end a decoder written in C that hangs, its crash is the crash of the whole process, and Python runs
in one thread at a time. Where a worker dies, its chunk is done again, one picture at a time. A picture is blamed
only for what it does to a worker that answered for no other before: what broke the worker may have been an earlier
one.

What a worker answers is not trusted: numbers are checked, nothing is unpickled, and it can write to its own arena
only, whose size is sealed.
"""

import fcntl
import logging
import mmap
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, Kind, SourceError, UnavailableError
from ..model.file import ModelFile
from ..model.spec import ModelSpec
from ..options import Isolation, Limits
from ..system import fork
from ..types import DecodedImage, Failure
from .arena import SLOTS, Arena, Layout, Slot
from .batch import Batch, Task
from .chunk import Answers, Chunk
from .death import KilledError, WorkerDiedError
from .forkserver import START_SECONDS, ForkServer, take_server
from .messages import Answer, AnswerReader, NonsenseError, Request, send, wait_for
from .stages import Observe

log = logging.getLogger(__name__)

CAPACITY = 64  # pictures a chunk, unless the network's batch is smaller
PIXEL_BYTES = 16 * 1024 * 1024  # of decoded images a chunk
HANG_SECONDS = 30.0  # that a picture may take without `Isolation`: six times what `Limits` lets any take
TURNS = 20  # times that, in which a picture may wait until large ones before it are decoded
MIN_WAIT, MAX_WAIT = 0.01, 1.0  # seconds between looks at a worker's pulse
KILLS = 3  # by SIGKILL, which others may send, until it is the picture's doing
ROUNDING = 1e-3  # by which probabilities, rounded each, may miss 1 in their sum
SMALL = 64 * 1024  # bytes of a request that a socket takes while its worker is at work on another
BROKEN = frozenset({Kind.CORRUPT, Kind.TRUNCATED, Kind.INTERNAL})  # that may have broken the decoder's memory


class Setup(NamedTuple):
    """What workers do.

    Attributes:
        service: `module:Class` of a `worker.ChunkService`.
        settings: its keyword arguments, as JSON, but for those that all have.
        layout: of a worker's arena.
        limits: of what a picture may cost.
        isolation: limits of the process; None for none.
        min_side: rows and columns that a JPEG keeps at least where it is decoded smaller.
        model: bytes of a model file; empty for none.
    """

    service: str
    settings: dict[str, Any]
    layout: Layout
    limits: Limits
    isolation: Isolation | None
    min_side: int = 0
    model: bytes = b""

    @property
    def seconds(self) -> float:
        """Return how long a picture may take."""
        return self.isolation.seconds if self.isolation else HANG_SECONDS

    @property
    def look_every(self) -> float:
        """Return the seconds between looks at a worker's pulse."""
        return min(MAX_WAIT, max(MIN_WAIT, self.seconds / 8))


def set_up_answers(
    backend: str, model: ModelFile, limits: Limits, isolation: Isolation | None, *, min_side: int, max_batch: int
) -> Setup:
    """Set up workers that read, decode, preprocess, and run the network on one core each."""
    layout = Layout(min(CAPACITY, max_batch), model.spec)
    settings = {"backend": backend, "model": str(model.path)}
    return Setup(f"{__package__}.worker:AnswerService", settings, layout, limits, isolation, min_side, model.data)


def set_up_images(spec: ModelSpec, limits: Limits, isolation: Isolation | None, *, min_side: int) -> Setup:
    """Set up workers that read and decode, for a GPU that does the rest."""
    shape = {"height": spec.height, "width": spec.width, "color": spec.color, "fit": spec.fit}
    make = f"{__package__}.worker:make_holdable"
    return set_up_shrinking(spec.color, limits, isolation, make=make, arguments={"spec": shape}, min_side=min_side)


def set_up_shrinking(
    color: str,
    limits: Limits,
    isolation: Isolation | None,
    *,
    make: str,
    arguments: dict[str, Any],
    min_side: int = 0,
) -> Setup:
    """Set up workers that read and decode, and make each image smaller by a function `module:function` of ours."""
    settings = {"color": color, "pixel_bytes": PIXEL_BYTES, "make": make, "arguments": arguments}
    layout = Layout(CAPACITY, pixel_bytes=PIXEL_BYTES)
    return Setup(f"{__package__}.worker:ImageService", settings, layout, limits, isolation, min_side)


class Owner(Protocol):
    """Whoever has workers at work. `stopped`: what they do is of no use any more."""

    @property
    def stopped(self) -> bool: ...


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


class Worker:
    """One process, our end of its socket, and its arena. Used by one thread at a time.

    Attributes:
        pid: its process ID.
        answered: pictures that it answered for.
        outstanding: generation and slot of the chunks, and the chunks, that it was given and did not answer yet.
        network: whether it was asked to run the network on them.
        tainted: whether it is to be given no more.
        may_take_another: whether it can be given a chunk while it is at work on the one that it was given last.
        descriptor: of our end of its socket.
        ended: whether it was ended.
        owner: whoever has it now.
    """

    def __init__(self, server: ForkServer, setup: Setup) -> None:
        self.owner: Owner | None = None
        self.answered, self.network, self.tainted, self.may_take_another = 0, False, False, True
        self._ending, self.ended = threading.Lock(), False
        self._code: int | None = None
        self.outstanding: deque[tuple[int, int, Chunk]] = deque()
        self._generation = 0
        self._server, self._setup = server, setup
        with closing(_File(_make_memory(setup.layout.size))) as file:
            try:
                self._arena = Arena(setup.layout, mmap.mmap(file.descriptor, setup.layout.size))
                self._socket, theirs = socket.socketpair()
            except OSError as error:  # no room, or too many open files
                raise UnavailableError(f"cannot start another worker process: {error}") from error
            with theirs:
                try:
                    self.pid = server.fork(theirs.fileno(), file.descriptor)
                except UnavailableError:
                    self._socket.close()
                    raise
        self.descriptor = self._socket.fileno()
        self._socket.setblocking(False)
        self._reader = AnswerReader(self._socket)
        try:
            wait_for(self._socket, select.POLLIN, START_SECONDS)
            self._reader.read()
        except (OSError, NonsenseError) as error:
            code = self.end()
            killed = code is None or code == -signal.SIGKILL
            raise (KilledError if killed else UnavailableError)(
                f"a worker process ended with {code} before it was ready"
            ) from error

    def submit(self, chunk: Chunk, *, network: bool, observe: bool) -> None:
        """Give it a chunk. Raises WorkerDiedError."""
        used = {slot for _, slot, _ in self.outstanding}
        slot = next(number for number in range(SLOTS) if number not in used)
        self._generation += 1
        self.network = network
        if not self.outstanding:
            self._begin_watch()
        self.outstanding.append((self._generation, slot, chunk))
        contents = cast("Sequence[str | bytes]", chunk.contents)
        parts = Request(self._generation, slot, network, observe, _get_folder(), contents).pack()
        self.may_take_another = sum(map(len, parts)) <= SMALL
        try:
            send(self._socket, parts, partial(self._wait, select.POLLOUT))
        except OSError as error:  # it closed its end
            raise self._find_cause() from error

    def wait(self, observer: Observe | None) -> "Reply":
        """Wait for the first chunk's answer; as `collect`, but images are copies."""
        while (reply := self.collect(observer, copy=True)) is None:
            self._wait(select.POLLIN)
        return reply

    def collect(self, observer: Observe | None, *, copy: bool = False) -> "Reply | None":
        """Take the first chunk's answer, and check it; None where it is not there yet.

        Args:
            observer: is told what the worker observed.
            copy: copy images out of the arena; otherwise they are there until its next use of the slot.

        Raises:
            WorkerDiedError: if it ends, hangs, or answers nonsense.
            UnavailableError: if it cannot answer, for a reason that is no picture's.
        """
        try:
            answer = self._reader.read()
            if answer is None:
                return None
            if not self.outstanding:
                raise NonsenseError("an answer to no request")
            generation, number, chunk = self.outstanding[0]
            if answer.error:
                raise UnavailableError(f"a worker process cannot answer: {answer.error}")
            if (answer.generation, answer.slot, answer.pictures) != (generation, number, chunk.weight):
                raise NonsenseError(f"an answer to another request: {answer}")
            reply = _read_reply(answer, self._arena.slots[number], self.network, copy)
        except NonsenseError as error:
            message = f"its decoder gave an answer that makes no sense: {error}"
            raise WorkerDiedError(Kind.CRASHED, message, suspect=self._get_suspect()) from error
        except OSError as error:  # it closed its end
            raise self._find_cause() from error
        for index, kind, message in answer.failures:
            # What a decoder that had no room could not free would count against the next picture.
            if kind is Kind.OUT_OF_MEMORY:
                raise WorkerDiedError(kind, message, suspect=index)
            self.tainted |= self._setup.isolation is not None and kind in BROKEN
        if observer is not None:
            for stage, begin, end in answer.observed:
                observer(stage, begin, end)
        self.answered += chunk.weight
        self.outstanding.popleft()
        self._begin_watch()
        return reply

    def end(self) -> int | None:
        """Kill it, and return its exit code, if that is known."""
        self._socket.close()
        with self._ending:
            if not self.ended:
                self.ended, self._code = True, self._server.reap(self.pid)
            return self._code

    def kill(self) -> None:
        """Kill it from another thread than the one that uses it, which is told that it died."""
        with self._ending:
            if not self.ended:  # else its process ID may be another's
                with suppress(OSError):
                    os.kill(self.pid, signal.SIGKILL)

    def let_go(self) -> None:
        """Close this process's copy of our end: it goes on for the process that started it."""
        self._socket.close()

    def check_pulse(self) -> None:
        """Raise WorkerDiedError if a picture takes longer than it may; it may wait for its turn some time more."""
        pulse, _, waits = map(int, self._arena.pulse)
        if pulse != self._pulse or not self.outstanding:
            self._begin_watch()
        if time.monotonic() - self._since > self._setup.seconds * (TURNS if waits else 1):
            raise self._make_timeout()

    def _wait(self, event: int) -> None:
        """Wait for an event of its socket, or some time. Raises WorkerDiedError if it hangs."""
        try:
            wait_for(self._socket, event, self._setup.look_every)
        except TimeoutError:
            self.check_pulse()

    def _begin_watch(self) -> None:
        self._pulse, self._since = int(self._arena.pulse[0]), time.monotonic()

    def _get_suspect(self) -> int | None:
        index = int(self._arena.pulse[1])
        return index if self.outstanding and index < self.outstanding[0][2].weight else None

    def _make_timeout(self) -> WorkerDiedError:
        message = f"not decoded within {self._setup.seconds:g} seconds"
        return WorkerDiedError(Kind.TIMEOUT, message, suspect=self._get_suspect())

    def _find_cause(self) -> WorkerDiedError:
        code, suspect = self.end(), self._get_suspect()
        if code == -signal.SIGALRM:
            return self._make_timeout()
        if code is None or code == -signal.SIGKILL:
            message = "its decoder died of SIGKILL, as the system does when memory runs out"
            return WorkerDiedError(Kind.CRASHED, message, suspect=suspect, killed=True)
        how = f"died of {_get_signal_name(-code)}" if code < 0 else f"ended the process with exit code {code}"
        return WorkerDiedError(Kind.CRASHED, f"its decoder {how}", suspect=suspect)


def _get_signal_name(number: int) -> str:
    """Return a signal's name; Python has none for most real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Reply(NamedTuple):
    """What a worker made of a chunk, copied and checked.

    Attributes:
        rows: which picture of the chunk is in which row of what follows.
        failures: index, kind and message of those that have none.
        unplaced: indices of those that there was no room for.
        flat: whether each shows nothing.
        probabilities: a tuple for each row; none where the network did not run.
        inputs: of the network, uint8; None where it ran.
        images: decoded ones, where a GPU is to do the rest.
    """

    rows: Sequence[int]
    failures: list[tuple[int, Kind, str]]
    unplaced: list[int]
    flat: Sequence[bool] = ()
    probabilities: Sequence[tuple[float, ...]] = ()
    inputs: npt.NDArray[np.uint8] | None = None
    images: Sequence[DecodedImage] = ()

    def fill(self, batch: Batch, tasks: list[Task]) -> list[Task]:
        """Append rows to a batch, give tasks without one their `Failure`, and return those to ask for again."""
        for index, kind, message in self.failures:
            tasks[index].result = Failure(kind, message, tasks[index].source)
        placed = [tasks[row] for row in self.rows]
        if self.images:
            for task, image in zip(placed, self.images, strict=True):
                batch.add_image(task, image)
        elif placed:
            rows = slice(len(batch.tasks), len(batch.tasks) + len(placed))
            batch.flat[rows] = self.flat
            if self.inputs is None:
                batch.probabilities[rows] = self.probabilities
            else:
                batch.inputs[rows] = self.inputs
            batch.tasks += placed
        return [tasks[index] for index in self.unplaced]

    def make_answers(self, paths: list[str], names: tuple[str, ...]) -> Answers:
        """Make the results of paths, without an object for each."""
        failures = {index: Failure(kind, text, paths[index]) for index, kind, text in self.failures}
        if self.rows == range(len(paths)):
            return Answers(names, paths, self.probabilities, self.flat, failures)
        probabilities, flat = [(0.0,) * len(names)] * len(paths), [False] * len(paths)
        for row, values, is_flat in zip(self.rows, self.probabilities, self.flat, strict=True):
            probabilities[row], flat[row] = values, is_flat
        return Answers(names, paths, probabilities, flat, failures)


def _read_reply(answer: Answer, slot: Slot, network: bool, copy: bool) -> Reply:
    """Read what a slot holds: copied first, then checked, for the worker could change it between."""
    rows = _read_rows(slot, answer)
    reply, count = Reply(rows, answer.failures, answer.unplaced), len(rows)
    if slot.batch is None:
        images = [_get_image(slot, shape) for shape in slot.shapes[:count].tolist()]
        return reply._replace(images=[DecodedImage(image.copy()) for image in images] if copy else images)
    flat = slot.batch.flat[:count].tolist()
    if not network:
        return reply._replace(flat=flat, inputs=slot.batch.inputs[:count].copy())
    copied = slot.batch.probabilities[:count]
    values: list[float] = copied.reshape(-1).tolist()
    # Of all rows together: each adds up to 1, and where one is not a number their sum is none.
    if count and not (min(values) >= 0 and max(values) <= 1 and abs(sum(values) / count - 1) < ROUNDING):
        raise NonsenseError(f"probabilities from {min(values)} to {max(values)}, {sum(values) / count} a picture")
    return reply._replace(flat=flat, probabilities=list(zip(*[iter(values)] * copied.shape[1], strict=True)))


def _read_rows(slot: Slot, answer: Answer) -> Sequence[int]:
    """Read which picture is in which row; every one of them must be in a row, or be without."""
    without = [*(index for index, _, _ in answer.failures), *answer.unplaced]
    pictures = range(answer.pictures)
    rows: list[int] = slot.rows[: max(0, answer.pictures - len(without))].tolist()
    if rows == list(pictures) and not without:
        return pictures
    if sorted([*rows, *without]) != list(pictures):
        raise NonsenseError("not every picture has a row")
    return rows


def _get_image(slot: Slot, shape: list[int]) -> DecodedImage:
    at, height, width, channels = shape
    size = height * width * (channels or 1)
    if not (at >= 0 and height > 0 and width > 0 and channels in (0, 1, 3) and at + size <= len(slot.pixels)):
        raise NonsenseError(f"an image of {shape}")
    pixels = slot.pixels[at : at + size]
    return DecodedImage(pixels.reshape(height, width, channels) if channels else pixels.reshape(height, width))


def _start_server(setup: Setup) -> ForkServer:
    isolation = setup.isolation
    common = {
        "limits": asdict(setup.limits),
        "min_side": setup.min_side,
        "capacity": setup.layout.capacity,
        "seconds": isolation.seconds if isolation else 0.0,
        "memory": isolation.memory if isolation else 0,
    }
    turn, model = _File(_make_memory(1)), _File(_make_memory(max(1, len(setup.model)), setup.model))
    with closing(turn), closing(model):
        server = take_server()
        try:
            server.set_up(setup.service, setup.settings | common, [turn.descriptor, model.descriptor])
        except UnavailableError:
            server.close()
            raise
    return server


def _make_memory(size: int, content: bytes = b"") -> int:
    """Make shared memory that nobody can resize, and return its descriptor.

    Raises:
        UnavailableError: if the system has no room for it, which a write to it would be killed for later.
    """
    try:
        descriptor = os.memfd_create("fmengine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise UnavailableError(f"cannot make memory to share with worker processes: {error}") from error
    try:
        os.ftruncate(descriptor, size)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(descriptor)
        raise UnavailableError(f"no room for memory to share with worker processes: {error}") from error
    return descriptor


class _File(NamedTuple):
    """An open descriptor, which `closing` closes."""

    descriptor: int

    def close(self) -> None:
        os.close(self.descriptor)


def _get_folder() -> bytes:
    """Return the current folder; one that was removed holds no file."""
    try:
        return os.getcwdb()
    except OSError:
        return b"/proc/self/fd/none"  # which there never is
