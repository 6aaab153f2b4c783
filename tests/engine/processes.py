"""Worker processes, seen and disturbed from outside: whose they are, and decoders with planted faults."""

import os
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fmengine import Engine, Kind

SERVER = b"fmengine.pipeline.forkserver"  # in its command
WAIT = 60  # seconds after which something hangs

# What a worker imports at its start, before anything of ours: a decoder with planted faults.
FAULTY_DECODER = """
    import os, signal, sys, time
    import simplejpeg

    whole = simplejpeg.decode_jpeg_header
    broken = []

    def decode_jpeg_header(data, *arguments):
        fault = bytes(data[-8:])
        if fault == b"segfault": os.kill(os.getpid(), signal.SIGSEGV)
        if fault == b"exit____": os._exit(7)
        if fault == b"sysexit_": sys.exit(9)
        if fault == b"killed__": os.kill(os.getpid(), signal.SIGKILL)
        if fault == b"realtime": os.kill(os.getpid(), 40)
        if fault == b"hang____":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
            while True: pass
        if fault == b"deaf____":
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
            while True: pass
        if fault == b"sleep___": time.sleep(3600)
        if fault == b"memory__":
            while True: broken.append(bytes(1 << 24))
        if fault == b"poisons_": broken.append(1)  # answers, and breaks whatever comes after it
        elif broken: os.abort()
        if fault == b"writes__": open(os.environ["FMENGINE_TEST_FILE"], "w").write("x" * 100)
        if fault == b"raises__": raise RuntimeError("of no kind that is foreseen")
        return whole(data, *arguments)

    simplejpeg.decode_jpeg_header = decode_jpeg_header
"""

# By the last eight bytes of a JPEG: the kind of its failure, and what the message says.
FAULTS = {
    "segfault": (Kind.CRASHED, "SIGSEGV"),
    "exit____": (Kind.CRASHED, "exit code 7"),
    "sysexit_": (Kind.CRASHED, "exit code 1"),
    "killed__": (Kind.CRASHED, "SIGKILL, as the system does when memory runs out"),
    "realtime": (Kind.CRASHED, "died of signal 40"),
    "hang____": (Kind.TIMEOUT, "not decoded within"),
    "deaf____": (Kind.TIMEOUT, "not decoded within"),
    "sleep___": (Kind.TIMEOUT, "not decoded within"),
}


def plant(code: str, folder: Path) -> dict[str, str]:
    """Have the interpreters that this process starts run code first; the variables that do it."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def children(pid: int | None = None) -> set[int]:
    """Processes that a process, by default this one, started."""
    found: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
                found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def servers(pid: int | None = None) -> set[int]:
    """Fork servers that a process, by default this one, started, or forked from itself as `infer` does."""
    own = read_command(pid) if pid else None
    commands = {child: read_command(child) for child in children(pid)}
    return {child for child, command in commands.items() if SERVER in command or command == own}


def workers(pid: int | None = None) -> set[int]:
    """Worker processes of a process, by default this one, which a server forks."""
    found: set[int] = set()
    for server in servers(pid):
        found |= {child for child in children(server) if is_running(child)}
    return found


def read_command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until, f"no {what} within {WAIT} seconds"
        time.sleep(0.005)


def start_workers(engine: Engine, count: int = 2) -> set[int]:
    """Start an engine's workers and wait until all are idle, so that no thread does what they are to do."""
    before = workers()
    engine.start_workers()
    starting = {thread for thread in threading.enumerate() if thread.name == "fmengine-start"}
    for thread in starting:
        thread.join(WAIT)
    wait_until(lambda: len(workers() - before) == count, "worker")  # what /proc lists may lack one for a moment
    return workers() - before
