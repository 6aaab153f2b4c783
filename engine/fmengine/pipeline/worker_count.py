"""Choose how many worker processes a job takes on this machine, and say why."""

import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import UnavailableError

Requested = int | Literal["auto", "threads"]

WORKER_BYTES = 128 * 1024**2  # that a worker takes at most while it decodes faces, its arena included
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # of a container


class WorkerCount(NamedTuple):
    """How many worker processes, 0 where threads do it, and why."""

    number: int
    reason: str


def choose_worker_count(requested: Requested, cores: int, *, isolated: bool = False) -> WorkerCount:
    """Choose how many workers a job takes.

    Args:
        requested: a number, `threads`, or `auto`: one a core where there are several, and memory for them.
        cores: that a job may use.
        isolated: whether threads must not decode.

    Raises:
        UnavailableError: if there can be none, and they were asked for.
    """
    if requested == "threads":
        return WorkerCount(0, "threads were asked for")
    obstacle = find_obstacle()
    if obstacle and (isolated or requested != "auto"):
        raise UnavailableError(f"worker processes cannot run here: {obstacle}; leave them to threads")
    if requested != "auto":
        return WorkerCount(requested, "as many as were asked for")
    if obstacle:
        return WorkerCount(0, obstacle)
    room = _find_free_memory() // WORKER_BYTES
    if room < cores and not isolated:
        why = f"memory is free for {room}, of {WORKER_BYTES // 1024**2} MB each"
        return WorkerCount(room, why) if room > 1 else WorkerCount(0, why)
    if cores == 1 and not isolated:
        return WorkerCount(0, "it has one core, which its process takes")
    return WorkerCount(cores, "one a core")


def find_long_job(cores: int) -> int:
    """Find how many pictures make it worth while to start workers, of which the start takes a quarter of a second.

    Measured with faces (benchmarks/RESULTS.md): two threads are nearly as fast as two workers, and on 16 cores
    threads are 1.5 times as fast as two.
    """
    return 6000 if cores <= 2 else 2000


def find_obstacle() -> str:
    """Find what keeps worker processes from running in this interpreter; empty if nothing does."""
    if not hasattr(os, "memfd_create"):
        return f"they need Linux's memfd, and this is {sys.platform}"
    if getattr(sys, "frozen", False):
        return "this program is frozen, and starting it again would not start a Python interpreter"
    name = os.path.basename(sys.executable or "")
    if not name.lower().startswith(("python", "pypy")):
        return f"Python is embedded: sys.executable is {sys.executable!r}, which may be no Python interpreter"
    return ""


def _find_free_memory() -> int:
    """Find how many bytes are free to this process, on the machine and in its container."""
    free = sys.maxsize
    try:
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        return min(free, _find_free_in_container())
    except (OSError, ValueError):  # no such file, or no limit: a system, or a container, that does not say
        return free


def _find_free_in_container() -> int:
    """Find how many bytes a container may still take. Files that the system only caches are free.

    Raises:
        OSError: if there is none.
        ValueError: if it has no limit.
    """
    limit, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    fields = (line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    cached = sum(int(size) for name, size in fields if name in ("active_file", "inactive_file"))
    return max(0, limit - max(0, used - cached))
