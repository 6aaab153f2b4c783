"""The fork server: a process that imports what workers need, once, and is forked for each of them.

It has one thread, so that a fork copies no lock that another thread holds, and none of the engine's memory. A
worker is there in some milliseconds, and shares the pages of the libraries with all others. It ends when the other
end of its socket is closed, however the engine ended, and the kernel ends its workers with it.

Not `multiprocessing`'s fork server, which runs the caller's main module again, and pickles.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn, Protocol

from ..errors import UnavailableError
from ..system import fork
from ..system.imports import load_object
from .death import KilledError

START_SECONDS = 60.0  # that it may take to import what workers need, on a busy machine
REAP_SECONDS = 1.0  # that a killed process is waited for: one on a drive that does not answer sleeps in the kernel
MAX_BYTES = 1 << 20  # of a message

PR_SET_PDEATHSIG = 1  # of prctl, from linux/prctl.h


class Service(Protocol):
    """What workers do. It is made in the fork server, and served in each worker."""

    def serve(self, connection: socket.socket, memory: int) -> None:
        """Answer requests until the connection is closed. `memory` is the descriptor of the worker's arena."""
        ...


class ForkServer:
    """The engine's end of a fork server. Thread-safe.

    Args:
        start: starts a process that serves a connection, whose descriptor it is given.

    Raises:
        UnavailableError: if it cannot be started.
    """

    def __init__(self, start: "Callable[[int], ServerProcess]") -> None:
        self._lock = threading.Lock()
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise UnavailableError(f"cannot start worker processes: {error}") from error
        fork.register(self)
        try:
            with theirs:
                self.process = start(theirs.fileno())
        except OSError as error:
            self._control.close()
            raise UnavailableError(f"cannot start worker processes: {error}") from error
        self._control.settimeout(START_SECONDS)

    def set_up(self, service: str, settings: dict[str, Any], files: list[int]) -> None:
        """Say what its workers do, and wait until it can fork them.

        Args:
            service: `module:Class` of a `Service` of ours.
            settings: its keyword arguments, as JSON.
            files: descriptors that it is given besides, as `files`; they stay the caller's.

        Raises:
            UnavailableError: if it cannot.
        """
        request = json.dumps([service, settings]).encode()
        try:
            socket.send_fds(self._control, [request], files, socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass  # it ended already, which is said below
        except OSError as error:
            raise UnavailableError(f"cannot start worker processes: {error}") from error
        with self._lock:
            self._receive()

    def fork(self, connection: int, memory: int) -> int:
        """Start a worker with its end of a connection and its arena, and return its process ID.

        Raises:
            UnavailableError: if the system has no room for another process.
            KilledError: if somebody killed the server.
        """
        with self._lock:
            try:
                socket.send_fds(self._control, [b"[]"], [connection, memory], socket.MSG_NOSIGNAL)
            except OSError:
                raise self._find_cause() from None
            return int(self._receive())

    def reap(self, pid: int) -> int | None:
        """Kill a worker, and return its exit code as of `subprocess`; None where it is not known."""
        with self._lock:
            try:
                self._control.send(json.dumps([pid]).encode(), socket.MSG_NOSIGNAL)
                code = self._receive()
            except (OSError, UnavailableError):
                return None
        return None if code is None else int(code)

    def close(self) -> None:
        """End it, and all its workers."""
        self._control.close()
        self.process.kill()
        self.process.wait(REAP_SECONDS)

    def reset_after_fork(self) -> None:
        """Leave it to the parent, also while it starts: a copy of our end would keep it alive after the parent."""
        self._control.close()

    def _receive(self) -> Any:
        """Receive a reply, which is a result or an error's text."""
        try:
            data = self._control.recv(MAX_BYTES)
        except TimeoutError as error:
            self.process.kill()  # what it answers late would be taken for the answer to another request
            raise UnavailableError(
                f"the server of worker processes did not answer for {START_SECONDS:g} seconds"
            ) from error
        except OSError:  # reset, where it did not read all that was sent
            data = b""
        if not data:
            raise self._find_cause()
        result, problem = json.loads(data)
        if problem:
            raise UnavailableError(problem)
        return result

    def _find_cause(self) -> UnavailableError:
        """Say why the server is gone."""
        code = self.process.wait(REAP_SECONDS)
        return (KilledError if code == -signal.SIGKILL else UnavailableError)(
            f"the server of worker processes ended with {code}; does `{sys.executable} -c 'import fmengine'` work?"
        )


_ahead: list[ForkServer] = []  # forked before it was needed


def take_server() -> ForkServer:
    """Take the server that was forked ahead, or start one. Raises UnavailableError if it cannot be started."""
    return _ahead.pop() if _ahead else ForkServer(_spawn)


def fork_ahead() -> None:
    """Fork a server from this process, for the engine that will need one: it is there at once.

    Only for a program of our own, at its start: what other threads do is not forked, and locks that they hold
    would be held for ever. Where there are other threads, or no room for a process, nothing happens.
    """
    if threading.active_count() == 1 and not _ahead:
        with suppress(UnavailableError), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's threads are no danger: nothing uses them
            _ahead.append(ForkServer(_fork))


class ServerProcess:
    """The child process that a server is. `returncode`: as of `subprocess.Popen`; None while it runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else waited for it
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        """Wait for its end, and return its exit code; None where it still runs after so many seconds."""
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        return self.returncode

    def kill(self) -> None:
        """Send it SIGKILL, unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _spawn(control: int) -> ServerProcess:
    """Start a server as a program of its own.

    `subprocess` would wait until nobody holds the other end of a pipe, which a child that another thread forks
    meanwhile holds as long as it lives.
    """
    # Modules come from where the engine's came from, and `-P` keeps the current folder out until that is set.
    # Applications put anything into `sys.path`, such as a `pathlib.Path`: Python passes over all but text.
    path = [entry for entry in sys.path if isinstance(entry, str)]
    number = 4 if control == 3 else 3  # of its end of the socket, there
    program = "import json, sys; path, control = json.loads(sys.argv[1]); sys.path[:] = path; "
    program += f"from {__name__} import run_server; run_server(control)"
    inherited = [file for file in _list_files() if file > 2 and file != control and _is_inheritable(file)]
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-c", program, json.dumps([path, number])],
        os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        file_actions=[
            *((os.POSIX_SPAWN_CLOSE, file) for file in inherited),
            (os.POSIX_SPAWN_DUP2, control, number),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),  # decoders in C complain there of what is answered with a row
        ],
        setsigmask=[signal.SIGINT],  # until it is ignored
    )
    return ServerProcess(pid)


def _fork(control: int) -> ServerProcess:
    """Start a server as a copy of this process, which holds none of its files."""
    pid = os.fork()
    if pid:
        return ServerProcess(pid)
    try:
        gc.freeze()  # what is collected might close a file whose number is another's by then
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        for file in _list_files():
            if file > 2 and file != control:
                with suppress(OSError):  # the one that listed them
                    os.close(file)
        run_server(control)
    finally:
        os._exit(1)


def _list_files() -> list[int]:
    """List this process's file descriptors."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except FileNotFoundError:  # no /proc: as many as a process may have by default
        return list(range(1024))


def _is_inheritable(file: int) -> bool:
    try:
        return os.get_inheritable(file)
    except OSError:  # closed meanwhile
        return False


# In the server.


def run_server(control: int) -> NoReturn:
    """Serve the engine at the other end of a socket, until it is gone."""
    os.setsid()  # Ctrl-C is for the engine, which ends its workers
    _reset_signals()
    with suppress(Exception):  # which the next attempt says
        import_module(f"{__package__}.worker")  # while the engine does other things
    with socket.socket(fileno=control) as connection:
        request, files, _, _ = socket.recv_fds(connection, MAX_BYTES, 8)
        try:
            target, settings = json.loads(request)
            service = load_object(target)(files=files, **settings)
            bind = partial(_die_with, os.getpid(), ctypes.CDLL(None))
        except Exception as error:
            _reply(connection, error=f"worker processes cannot be set up: {type(error).__name__}: {error}")
            os._exit(1)
        _reply(connection)
        _serve_engine(connection, service, bind)
    os._exit(0)  # nothing of the libraries' is to run, and no exit handler of ours


def _reset_signals() -> None:
    """Begin as a process does that nothing was asked of: what the engine ignores or blocks is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how workers end
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _serve_engine(connection: socket.socket, service: Service, bind: Callable[[], None]) -> None:
    while True:
        try:
            request, files, _, _ = socket.recv_fds(connection, MAX_BYTES, 2)
        except OSError:
            return
        if not request:
            return
        words = json.loads(request)
        if words:
            _reply(connection, _reap(words[0]))
            continue
        try:
            pid = os.fork()
        except OSError as error:
            _reply(connection, error=f"cannot start another worker process: {error}")
        else:
            if pid == 0:
                _run_worker(connection, service, files, bind)
            _reply(connection, pid)
        for file in files:
            os.close(file)


def _run_worker(control: socket.socket, service: Service, files: list[int], bind: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        bind()
        control.close()
        # Closed by its end alone: the engine, which sees that, would kill it before it ended with its own code.
        service.serve(socket.socket(fileno=files[0]), files[1])
        code = 0
    finally:
        os._exit(code)


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Have the kernel kill this process when the fork server ends, whatever it is doing then."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _reap(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + REAP_SECONDS
    while True:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.001)


def _reply(connection: socket.socket, result: int | None = None, error: str = "") -> None:
    with suppress(OSError):
        connection.send(json.dumps([result, error]).encode(), socket.MSG_NOSIGNAL)
