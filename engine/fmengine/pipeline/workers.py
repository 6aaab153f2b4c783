"""Decoding in worker processes: a decoder that crashes, hangs or takes all memory costs one picture.

No thread can end a decoder written in C that hangs, and its crash is the crash of the whole process. A worker is
a process of its own with a limit on memory, which the kernel holds it to, and on the seconds of a picture. One
that dies is replaced. A picture is blamed only for what it does to a worker that answered for no other before it:
else it is tried once more in a fresh one, for what broke the worker may have been an earlier picture.

What goes through the pipe are lengths and bytes, and nothing is unpickled, so that a decoder that was taken over
can give wrong pixels to the engine, and no code. It is no sandbox all the same: a worker has the user's rights.

Not `multiprocessing`, nor what stands on it: it pickles, forks beside threads, or runs the caller's main module
again.
"""

import dataclasses
import json
import logging
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import Kind, SourceError, UnavailableError
from ..image.decode import decode
from ..image.faults import as_source_error
from ..image.flatness import Prepared, is_flat_input
from ..image.pillow import raise_pillow_limit
from ..image.preprocess import preprocess
from ..image.source import get_bytes, get_path
from ..model.spec import InputSpec, ModelSpec
from ..options import Isolation, Limits
from ..system import fork
from ..system.files import make_read_error
from ..types import Color, Encoded, Fit, InputBatch, NetworkInput

log = logging.getLogger(__name__)

Work = Callable[..., bytes]  # of a path or encoded bytes, and the settings

START_SECONDS = 60.0  # that a worker may take to import what it needs, on a busy machine
GRACE_SECONDS = 2.0  # after which a worker whose engine is gone ends itself
MAX_ANSWER = 64 * 1024 * 1024  # bytes; far above any, and below what a broken worker could claim

_HEAD = struct.Struct("<cQ")  # what a message is, and its bytes
_READY, _PATH, _DATA, _DONE, _FAILED = b"R", b"P", b"D", b"O", b"F"


class _DiedError(Exception):
    """A worker ended, or had to be ended, before it answered."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Workers:
    """Processes that all do one task, as many as threads need at once. Thread-safe.

    Args:
        task: `module:function` of ours; called with a path or encoded bytes, and the settings.
        settings: the task's keyword arguments, as JSON; those of `Limits` are among them.
        isolation: a worker's limits.
        count: workers at most.
    """

    def __init__(self, task: str, settings: dict[str, Any], isolation: Isolation, count: int) -> None:
        self._arguments = (task, settings, isolation)
        self._count = count
        self._begin()
        fork.register(self)

    def run(self, source: Encoded) -> bytes:
        """Do the task.

        Raises:
            SourceError: what the task raised, or `timeout`, `crashed` or `out_of_memory`.
            UnavailableError: if no worker can be started.
        """
        request = _make_request(source)
        with self._slots:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = self._start()
            try:
                answer = self._request_with_retry(worker, request)
            except _DiedError as death:
                raise SourceError(death.kind, str(death)) from death
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def close(self) -> None:
        """End the workers that are idle; those at work end when they are done."""
        while self._idle:
            self._idle.pop().end()

    def reset_after_fork(self) -> None:
        """Leave the workers to the parent: two processes that read one socket get each other's pictures."""
        for worker in self._all:
            worker.let_go()
        self._begin()

    def _begin(self) -> None:
        self._slots = threading.BoundedSemaphore(self._count)
        self._idle: list[_Worker] = []  # last in, first out: a worker that is not needed stays asleep
        self._all: weakref.WeakSet[_Worker] = weakref.WeakSet()

    def _start(self) -> "_Worker":
        worker = _Worker(*self._arguments)
        self._all.add(worker)
        return worker

    def _request_with_retry(self, worker: "_Worker", request: tuple[bytes, bytes]) -> bytes | SourceError:
        """Send a request to a worker, and to a fresh one where the first had answered others and died."""
        if worker.answered:
            try:
                return self._request(worker, request)
            except _DiedError as death:
                log.info("a worker ended (%s); the picture is tried once more in a fresh one", death)
            worker = self._start()
        return self._request(worker, request)

    def _request(self, worker: "_Worker", request: tuple[bytes, bytes]) -> bytes | SourceError:
        try:
            answer = worker.request(*request)
        except BaseException:  # such as Ctrl-C, which leaves an answer under way that nobody waits for
            worker.end()
            raise
        self._idle.append(worker)
        return answer


class InputWorkers:
    """Workers that make the network's input; see `Workers`."""

    def __init__(
        self, spec: ModelSpec, limits: Limits, isolation: Isolation, *, min_side: int, count: int
    ) -> None:
        self._shape = spec.input.shape
        settings = {name: getattr(spec, name) for name in ("height", "width", "color", "fit")}
        settings |= dataclasses.asdict(limits) | {"min_side": min_side}
        self._workers = Workers(f"{__name__}:make_input", settings, isolation, count)
        self.close = self._workers.close

    def prepare(self, source: Encoded) -> Prepared:
        """Decode and preprocess a picture. Raises as `Workers.run` does."""
        data = self._workers.run(source)
        if len(data) != math.prod(self._shape) + 1:
            raise SourceError(Kind.CRASHED, f"its decoder gave {len(data)} bytes; expected {self._shape} and one")
        pixels = np.frombuffer(data, np.uint8, len(data) - 1).reshape(self._shape)
        return Prepared(NetworkInput(pixels), data[-1] != 0)


class _Worker:
    """One process and our end of its socket. `answered`: requests so far."""

    def __init__(self, task: str, settings: dict[str, Any], isolation: Isolation) -> None:
        self.answered = 0
        self._seconds = isolation.seconds
        self._socket, theirs = socket.socketpair()
        # Modules come from where the engine's came from, and `-P` keeps the current folder out until that is set.
        # Applications put anything into `sys.path`, such as a `pathlib.Path`: Python passes over all but text.
        path = [entry for entry in sys.path if isinstance(entry, str)]
        setup = json.dumps([path, theirs.fileno(), task, settings, isolation.seconds, isolation.memory])
        program = "import json, sys; setup = json.loads(sys.argv[1]); sys.path[:] = setup[0]; "
        program += f"from {__name__} import serve; serve(*setup[1:])"
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", program, setup],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # decoders in C complain there of what is answered with a row
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the engine, which ends its workers
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._socket.close()
            raise UnavailableError(f"cannot start a worker process to decode in: {error}") from error
        try:
            _receive(self._socket, time.monotonic() + START_SECONDS, max_bytes=0)
        except OSError as error:
            self.end()
            raise UnavailableError(
                f"a worker process to decode in ended with {self._process.returncode} before it was ready; "
                f"does `{sys.executable} -c 'import fmengine'` work?"
            ) from error

    def request(self, what: bytes, content: bytes) -> bytes | SourceError:
        """Send a request and wait for its answer, or the error that the task raised. Raises _DiedError."""
        until = time.monotonic() + self._seconds
        try:
            self._socket.settimeout(self._seconds)
            _send(self._socket, what, content)
            answer = _parse_answer(*_receive(self._socket, until, MAX_ANSWER))
        except TimeoutError as error:
            raise _DiedError(Kind.TIMEOUT, f"not decoded within {self._seconds:g} seconds") from error
        except OSError as error:  # it closed its end
            raise _DiedError(*self._cause()) from error
        if isinstance(answer, SourceError) and answer.kind is Kind.OUT_OF_MEMORY:
            # It lives, but what it could not free would count against the next picture.
            raise _DiedError(answer.kind, answer.message)
        self.answered += 1
        return answer

    def end(self) -> None:
        """Kill it. One that sleeps in the kernel, on a drive that does not answer, is not waited for."""
        self._socket.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)

    def let_go(self) -> None:
        """Close this process's copy of our end: the worker goes on for the process that started it."""
        self._socket.close()

    def _cause(self) -> tuple[Kind, str]:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        if code == -signal.SIGALRM:
            return Kind.TIMEOUT, f"not decoded within {self._seconds:g} seconds"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            return Kind.CRASHED, f"its decoder died of {name}{hint}"
        return Kind.CRASHED, f"its decoder ended the process{'' if code is None else f' with exit code {code}'}"


def _make_request(source: Encoded) -> tuple[bytes, bytes]:
    if not isinstance(source, str | os.PathLike):
        return _DATA, get_bytes(source)
    path = get_path(source)
    try:
        return _PATH, os.fsencode(os.path.abspath(path))  # the engine's current folder may not be the worker's
    except (OSError, ValueError) as error:
        raise make_read_error(error) from error


def _parse_answer(what: bytes, content: bytes) -> bytes | SourceError:
    """Read an answer, which a decoder that was taken over may have made up; _DiedError if it makes no sense."""
    try:
        if what == _DONE:
            return content
        if what == _FAILED:
            kind, message = json.loads(content)
            return SourceError(Kind(kind), message)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _DiedError(Kind.CRASHED, f"its decoder gave an answer that makes no sense: {error}") from error
    raise _DiedError(Kind.CRASHED, f"its decoder gave an answer that makes no sense: {what!r}")


def _send(to: socket.socket, what: bytes, content: bytes) -> None:
    to.sendall(_HEAD.pack(what, len(content)))
    to.sendall(content)


def _receive(
    connection: socket.socket, until: float | None = None, max_bytes: int | None = None
) -> tuple[bytes, bytes]:
    """Receive a message of so many bytes or fewer; TimeoutError, or ConnectionError where there is none."""
    what, size = _HEAD.unpack(_receive_exactly(connection, _HEAD.size, until))
    if max_bytes is not None and size > max_bytes:
        raise ConnectionError(f"an answer of {size} bytes")
    return what, _receive_exactly(connection, size, until)


def _receive_exactly(connection: socket.socket, size: int, until: float | None) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if until is not None:
            connection.settimeout(max(1e-3, until - time.monotonic()))
        got = connection.recv_into(view)
        if not got:
            raise ConnectionError("closed")
        view = view[got:]
    return bytes(data)


# In the worker.


def make_input(
    source: Encoded,
    *,
    height: int,
    width: int,
    color: Color,
    fit: Fit,
    max_bytes: int,
    max_pixels: int,
    min_side: int,
) -> bytes:
    """Make the network's input, uint8 `[C, height, width]`, and one byte, whether it is flat: an engine's task."""
    spec = InputSpec(height, width, color, fit)
    image = decode(source, color, Limits(max_bytes, max_pixels), min_side=min_side)
    made = preprocess(image, spec)
    (flat,) = is_flat_input(InputBatch(made[np.newaxis]), [(image.shape[1], image.shape[0])], spec)
    return made.tobytes() + bytes([int(flat)])


def serve(descriptor: int, task: str, settings: dict[str, Any], seconds: float, memory: int) -> None:
    """Do a task for every request, until the other end is closed."""
    module, name = task.split(":")
    do: Work = getattr(import_module(module), name)
    raise_pillow_limit(settings["max_pixels"])
    _confine(memory)
    with socket.socket(fileno=descriptor) as pipe:
        _send(pipe, _READY, b"")
        with suppress(ConnectionError):
            while True:
                what, content = _receive(pipe)
                # By then the engine has ended this process, or it is gone. The kernel ends it even in a loop in C.
                signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
                _send(pipe, *_answer(do, os.fsdecode(content) if what == _PATH else content, settings))
                signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(do: Work, source: Encoded, settings: dict[str, Any]) -> tuple[bytes, bytes]:
    try:
        return _DONE, do(source, **settings)
    except Exception as error:
        failure = as_source_error(error)
        return _FAILED, json.dumps([failure.kind, failure.message]).encode()


def _confine(memory: int) -> None:
    """Limits that the kernel holds this process to, from here on."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # pictures in a core file would outlive the run
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder has nothing to write
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out all the same, not the engine is to be killed
