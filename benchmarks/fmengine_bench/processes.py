"""Watches the processes of a job: what each takes of the machine, and which resource holds the job.

All is read from Linux's /proc before a turn and after it; another system does not say.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from fmengine.system.cores import usable_cores
from fmengine.system.memory import read_pss

from .timing import Figure, estimate_median

PROC = Path("/proc")
PARENT, SERVER, ENDED = "parent", "fork server", "workers that ended"
WORKER = "worker "  # before its number
NEAR = 0.9  # of a core, or of all cores: whoever takes so much can hardly take more
DISK_WAIT = 0.1  # cores that have nothing to do but to wait for a disk, from which on it holds the job

Holder = Literal["parent", "cores", "workers", "disk", "nothing"]


@dataclass(frozen=True)
class Usage:
    """What the processes of a job took while it ran, over some turns.

    Attributes:
        batch: of the job.
        cores: that it may use.
        shares: of a core, by process.
        idle: cores that nobody used, this job or another.
        disk_wait: those of them that waited for a disk.
        disk_read: bytes a second that came from a disk and not from memory; None where nobody says.
        memory: bytes of the parent and of the largest worker, shared pages in equal parts (PSS), by process.
        held_by: the resource without which it would be faster.
        why: in words.
    """

    batch: int
    cores: int
    shares: dict[str, Figure]
    idle: Figure
    disk_wait: Figure
    disk_read: Figure | None
    memory: dict[str, int]
    held_by: Holder
    why: str


class Counters(NamedTuple):
    """What a process has taken since its start: seconds of CPU, those of its ended children, bytes from a disk."""

    cpu: float = 0.0
    ended: float = 0.0
    disk: int | None = 0


class Reading(NamedTuple):
    """All counters at one moment. `idle` and `disk_wait` are seconds of the cores that the scheduler allows."""

    at: float
    processes: dict[int, Counters]
    idle: float
    disk_wait: float


class Turn(NamedTuple):
    """What was taken between two readings, a second."""

    shares: dict[str, float]
    idle: float
    disk_wait: float
    disk_read: float | None


class Watch:
    """Watches this process and its workers, turn by turn.

    Args:
        list_workers: the process IDs of the fork server, which comes first, and of the workers at this moment.
    """

    def __init__(self, list_workers: Callable[[], Sequence[int]]) -> None:
        self._list_workers = list_workers
        self._turns: list[Turn] = []
        self._memory: dict[str, int] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch a turn."""
        before = read_counters(self._list_processes())
        yield
        pids = self._list_processes()
        after = read_counters(pids)
        if before is not None and after is not None:
            self._turns.append(compare_readings(before, after, pids))
            self._memory = _read_memory(pids)

    def summarise(self, batch: int) -> Usage | None:
        """Summarise the turns of a job with a batch; None where the system does not say."""
        if not self._turns:
            return None
        names = dict.fromkeys(name for turn in self._turns for name in turn.shares)
        shares = {name: estimate_median([turn.shares.get(name, 0.0) for turn in self._turns]) for name in names}
        idle = estimate_median([turn.idle for turn in self._turns])
        disk_wait = estimate_median([turn.disk_wait for turn in self._turns])
        read = [turn.disk_read for turn in self._turns if turn.disk_read is not None]
        disk_read = estimate_median(read) if len(read) == len(self._turns) else None
        cores = usable_cores()
        medians = {name: share.median for name, share in shares.items()}
        reads = None if disk_read is None else disk_read.median
        holder = find_holder(medians, cores, idle.median, disk_wait.median, reads)
        return Usage(batch, cores, shares, idle, disk_wait, disk_read, self._memory, *holder)

    def _list_processes(self) -> list[int]:
        listed = list(self._list_workers())
        return [os.getpid(), *listed[:1], *sorted(listed[1:])]


def read_counters(pids: Sequence[int]) -> Reading | None:
    """Read the counters of processes, without those that have ended; None where the system has none."""
    try:
        allowed = os.sched_getaffinity(0)
        lines = (PROC / "stat").read_text(encoding="ascii").splitlines()
    except (AttributeError, OSError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    # cpu0 user nice system idle iowait …
    cores = [line.split() for line in lines if line[:3] == "cpu" and line[3].isdecimal()]
    cores = [fields for fields in cores if int(fields[0][3:]) in allowed]
    idle, disk_wait = (sum(int(fields[column]) for fields in cores) / tick for column in (4, 5))
    processes = {pid: counters for pid in pids if (counters := _read_process(pid, tick)) is not None}
    return Reading(time.perf_counter(), processes, idle + disk_wait, disk_wait)


def _read_process(pid: int, tick: int) -> Counters | None:
    try:
        # From the state on, which follows the name: that may hold anything.
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    user, system, ended_user, ended_system = (int(field) / tick for field in fields[11:15])
    return Counters(user + system, ended_user + ended_system, _read_disk(pid))


def _read_disk(pid: int) -> int | None:
    try:
        lines = (PROC / str(pid) / "io").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
    except (OSError, StopIteration):  # a container may keep it back
        return None


def compare_readings(before: Reading, after: Reading, pids: Sequence[int]) -> Turn:
    """Compute what was taken between two readings.

    Args:
        before: where a process is missing, it was started since.
        after: where one is missing, it has ended.
        pids: of the parent, the fork server, and the workers, as they were listed last.
    """
    seconds = after.at - before.at
    shares: dict[str, float] = {}
    ended, read, disk_known = 0.0, 0, True
    for name, pid in zip(_name_processes(len(pids)), pids, strict=True):
        was, now = before.processes.get(pid, Counters()), after.processes.get(pid)
        if now is None:
            continue
        shares[name] = (now.cpu - was.cpu) / seconds
        ended += now.ended - was.ended
        if now.disk is None or was.disk is None:
            disk_known = False
        else:
            read += now.disk - was.disk
    gone = [before.processes[pid] for pid in before.processes.keys() - after.processes.keys()]
    ended -= sum(counters.cpu + counters.ended for counters in gone)  # which they had taken before
    if ended > 0:
        shares[ENDED] = ended / seconds
    idle, disk_wait = (
        max(0.0, now - was) / seconds
        for now, was in ((after.idle, before.idle), (after.disk_wait, before.disk_wait))
    )
    return Turn(shares, idle, disk_wait, read / seconds if disk_known else None)


def find_holder(
    shares: dict[str, float], cores: int, idle: float, disk_wait: float, disk_read: float | None
) -> tuple[Holder, str]:
    """Find which resource holds a job, and say why. The arguments are as those of `Usage`."""
    workers = [share for name, share in shares.items() if name.startswith(WORKER)]
    parent, taken = shares[PARENT], sum(shares.values())
    if workers and parent >= NEAR:
        return "parent", f"its process takes {parent:.0%} of a core, and Python has no second one"
    if min(cores - taken, idle) <= (1 - NEAR) * cores:
        others = max(0.0, cores - taken - idle)
        also = f", other work {others:.1f}" if others > (1 - NEAR) * cores else ""
        return "cores", f"none is idle; the job has {taken:.1f} of {cores}{also}"
    if workers and min(workers) >= NEAR:
        return "workers", f"all {len(workers)} are busy while {idle:.1f} cores are idle; try more, by --workers"
    if disk_wait >= DISK_WAIT and disk_read != 0:
        return "disk", f"{disk_wait:.1f} cores have nothing to do but to wait for it"
    if not workers and parent >= NEAR:
        return "parent", f"its threads take {parent:.1f} of {cores} cores, and Python runs in one at a time"
    return "nothing", "no process, core or disk is at its limit: they wait for one another, or for a GPU"


def _name_processes(count: int) -> list[str]:
    return [PARENT, SERVER, *(f"{WORKER}{number}" for number in range(1, count - 1))][:count]


def _read_memory(pids: Sequence[int]) -> dict[str, int]:
    """Read the memory of the parent and of the largest worker, as far as the system says."""
    known = {name: read_pss(pid) for name, pid in zip(_name_processes(len(pids)), pids, strict=True)}
    sizes = {name: size for name, size in known.items() if size is not None}
    largest = max((name for name in sizes if name.startswith(WORKER)), key=sizes.__getitem__, default=PARENT)
    return {name: sizes[name] for name in (PARENT, largest) if name in sizes}
