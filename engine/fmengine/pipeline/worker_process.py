"""A worker as the engine sees it: a process, our end of its socket, and its arena.

What it answers is not trusted: numbers are checked, nothing is unpickled, and it can write to its own arena only,
whose size is sealed.
"""

import mmap
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Protocol, cast

import numpy as np

from ..errors import Kind, UnavailableError
from .arena import SLOTS, Arena, Memory
from .chunk import Chunk
from .death import KilledError, WorkerDiedError
from .forkserver import START_SECONDS, ForkServer
from .messages import AnswerReader, NonsenseError, Request, send, wait_for
from .reply import Reply, read_reply
from .stages import Observe
from .worker_setup import Setup

TURNS = 20  # times that, in which a picture may wait until large ones before it are decoded
SMALL = 64 * 1024  # bytes of a request that a socket takes while its worker is at work on another
BROKEN = frozenset({Kind.CORRUPT, Kind.TRUNCATED, Kind.INTERNAL})  # that may have broken the decoder's memory


class Owner(Protocol):
    """Whoever has workers at work. `stopped`: what they do is of no use any more."""

    @property
    def stopped(self) -> bool: ...


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
        self._unregister: Callable[[], None] = _do_nothing
        self.outstanding: deque[tuple[int, int, Chunk]] = deque()
        self._generation = 0
        self._server, self._setup = server, setup
        with closing(Memory(setup.layout.size)) as file:
            try:
                memory = mmap.mmap(file.descriptor, setup.layout.size)
                self._arena = Arena(setup.layout, memory)
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
        self._wait_until_ready()
        if setup.register is not None:
            self._unregister = setup.register(np.frombuffer(memory, np.uint8))

    def _wait_until_ready(self) -> None:
        try:
            wait_for(self._socket, select.POLLIN, START_SECONDS)
            ready = self._reader.read()
        except (OSError, NonsenseError) as error:
            code = self.end()
            killed = code is None or code == -signal.SIGKILL
            raise (KilledError if killed else UnavailableError)(
                f"a worker process ended with {code} before it was ready"
            ) from error
        if ready is None or ready.error:
            self.end()
            raise UnavailableError(ready.error if ready else "a worker process did not say whether it is ready")

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
            reply = read_reply(answer, self._arena.slots[number], self.network, copy)
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
        self.let_go()
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
        self._unregister()

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


def _do_nothing() -> None:
    pass


def _get_signal_name(number: int) -> str:
    """Return a signal's name; Python has none for most real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _get_folder() -> bytes:
    """Return the current folder; one that was removed holds no file."""
    try:
        return os.getcwdb()
    except OSError:
        return b"/proc/self/fd/none"  # which there never is
