"""What each process of a job takes, by a /proc that the test writes, and which resource holds the job."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fmengine.engine import Engine
from fmengine.pipeline.worker_count import WorkerCount
from fmengine.system import memory
from fmengine_bench import bench_cli, processes, scenarios
from fmengine_bench.bench_page import _plot_usage, draw_plot
from fmengine_bench.bench_text import MAX_LISTED, _format_usage
from fmengine_bench.drawn import draw_pictures
from fmengine_bench.limits import explain_bounds
from fmengine_bench.processes import Usage, Watch, find_holder, read_counters
from fmengine_bench.timing import Figure

from .conftest import Clock

MB = 1024**2
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Proc:
    """A /proc of two cores; `server` and `workers` are those that a job would list."""

    root: Path
    parent: int = field(default_factory=os.getpid)
    server: int = 100
    workers: list[int] = field(default_factory=list)

    def write(self, pid: int, cpu: float, *, ended: float = 0.0, disk: int | None = 0, pss: int = MB) -> None:
        """Write what a process took so far, a third of it in the kernel; its name could mislead."""
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        times = [int(TICKS * share * seconds) for seconds in (cpu, ended) for share in (2 / 3, 1 / 3)]
        (folder / "stat").write_text(
            f"{pid} (a) R 1 (b) S 1 2 3 4 5 6 7 8 9 10 {' '.join(map(str, times))} 20 0\n"
        )
        (folder / "smaps_rollup").write_text(f"0-1 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss: {pss // 1024} kB\n")
        (folder / "io").unlink(missing_ok=True)
        if disk is not None:
            (folder / "io").write_text(f"rchar: 99\nread_bytes: {disk}\n")

    def write_cores(self, idle: float, disk_wait: float) -> None:
        """Write the seconds that both cores together were idle, or waited; a third core is not this job's."""
        halves = f"{int(TICKS * idle / 2)} {int(TICKS * disk_wait / 2)}"
        lines = [f"cpu{number} 5 5 5 {halves} 0 0 0" for number in (0, 1)]
        (self.root / "stat").write_text(
            "\n".join(["cpu 9 9 9 9 9 9", *lines, f"cpu2 5 5 5 {9 * TICKS * idle:.0f} 9", "intr 1"])
        )

    def list_workers(self) -> list[int]:
        return [self.server, *self.workers] if self.workers else []


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    found = Proc(tmp_path)
    found.write_cores(0, 0)
    for module in (processes, memory):
        monkeypatch.setattr(module, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return found


def test_each_process_has_its_share(proc: Proc, clock: Clock) -> None:
    proc.workers = [103, 102]
    proc.write(proc.parent, 9)
    proc.write(proc.server, 1, ended=5)
    proc.write(102, 2, disk=1000)
    watch = Watch(proc.list_workers)
    with watch.watch():
        clock.sleep(10)
        proc.write(proc.parent, 12, pss=130 * MB)
        proc.write(proc.server, 1, ended=5, pss=999 * MB)
        proc.write(102, 11, disk=41_000, pss=40 * MB)
        proc.write(103, 6, disk=20_000, pss=60 * MB)  # which was started meanwhile
        proc.write_cores(idle=3, disk_wait=1)
    usage = watch.summarise(64)
    assert usage is not None
    shares = {name: share.median for name, share in usage.shares.items()}
    assert shares == pytest.approx({"parent": 0.3, "fork server": 0, "worker 1": 0.9, "worker 2": 0.6}, abs=0.01)
    assert (usage.idle.median, usage.disk_wait.median) == pytest.approx((0.4, 0.1))
    assert usage.disk_read is not None
    assert usage.disk_read.median == pytest.approx(6000)
    assert usage.memory == {"parent": 130 * MB, "worker 2": 60 * MB}
    assert (usage.batch, usage.shares["parent"].rounds) == (64, 1)


def test_a_worker_that_ended_counts_for_what_it_took_since(proc: Proc, clock: Clock) -> None:
    proc.workers = [102, 103]
    for pid, cpu in ((proc.parent, 0), (proc.server, 0), (102, 50), (103, 0)):
        proc.write(pid, cpu, ended=7 if pid == proc.server else 0)
    watch = Watch(proc.list_workers)
    with watch.watch():
        clock.sleep(10)
        proc.workers = [103]
        proc.write(proc.server, 0, ended=7 + 54)
    usage = watch.summarise(64)
    assert usage is not None
    assert usage.shares["workers that ended"].median == pytest.approx(0.4, abs=0.01)
    assert list(usage.shares) == ["parent", "fork server", "worker 1", "workers that ended"]


def test_turns_are_rounds(proc: Proc, clock: Clock) -> None:
    watch = Watch(proc.list_workers)
    for cpu in (10, 30, 60):
        proc.write(proc.parent, 0)
        with watch.watch():
            clock.sleep(100)
            proc.write(proc.parent, cpu, disk=None)  # a container may keep that back
    usage = watch.summarise(1)
    assert usage is not None
    share = usage.shares["parent"]
    assert (share.median, share.rounds) == (pytest.approx(0.3, abs=0.01), 3)
    assert share.low < share.median < share.high
    assert usage.disk_read is None


def test_a_system_without_proc_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    watch = Watch(list)
    with watch.watch():
        pass
    assert watch.summarise(64) is None
    assert _format_usage(None) == ["  what each process takes: this system does not say"]
    assert not any("from files" in words for words in explain_bounds({"infer": 1.0}, {}, 0.0, None))
    monkeypatch.undo()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert read_counters([os.getpid()]) is None


@pytest.mark.parametrize(
    ("shares", "idle", "waits", "read", "holder", "why"),
    [
        ((0.97, 0.6, 0.6), 1.8, 0, 0, "parent", "its process takes 97% of a core, and Python has no second one"),
        ((0.97, 0.5, 0.5), 0, 0, 0, "parent", "97%"),  # more cores would be of no use to it
        ((0.2, 0.9, 0.9), 0.0, 0, 0, "cores", "none is idle; the job has 2.0 of 2"),
        ((0.2, 0.4, 0.4), 0.1, 0, 0, "cores", "none is idle; the job has 1.0 of 2, other work 0.9"),
        (
            (0.2, 0.95, 0.92),
            2.0,
            0,
            0,
            "workers",
            "all 2 are busy while 2.0 cores are idle; try more, by --workers",
        ),
        ((0.2, 0.95, 0.3), 1.5, 0.6, 5e6, "disk", "0.6 cores have nothing to do but to wait for it"),
        ((0.2, 0.95, 0.3), 1.5, 0.6, None, "disk", "0.6"),
        ((0.2, 0.95, 0.3), 1.5, 0.6, 0, "nothing", "they wait for one another, or for a GPU"),  # another's disk
        ((0.2, 0.3, 0.3), 1.5, 0, 0, "nothing", ""),
        ((1.9,), 0.1, 0, 0, "cores", "none is idle; the job has 1.9 of 2"),
        ((1.3,), 0.7, 0, 0, "parent", "its threads take 1.3 of 2 cores, and Python runs in one at a time"),
        ((0.4,), 1.6, 0, 0, "nothing", ""),
    ],
)
def test_what_holds_a_job(
    shares: tuple[float, ...], idle: float, waits: float, read: float | None, holder: str, why: str
) -> None:
    cores = 4 if len(shares) == 3 and sum(shares) + idle > 2.1 else 2
    names = ["parent", "worker 1", "worker 2"]
    found = find_holder(dict(zip(names, shares, strict=False)), cores, idle, waits, read)
    assert found[0] == holder
    assert why in found[1]


def make_usage(workers: int) -> Usage:
    share, some = Figure(0.5, 0.4, 0.6, 3), Figure(0.25, 0.2, 0.3, 3)
    names = ["parent", "fork server", *(f"worker {number}" for number in range(1, workers + 1))]
    known = {"parent": 130_000_000, "worker 9": 50_000_000} if workers else {"parent": 130_000_000}
    shares = dict.fromkeys(names, share)
    return Usage(64, 2, shares, some, some, replace(some, median=3e6), known, "cores", "none is idle")


def test_usage_in_words() -> None:
    lines = _format_usage(make_usage(0))
    assert re.fullmatch(r" {4}parent +50% \[40%, 60%\] +130 MB", lines[1])
    assert re.fullmatch(r" {4}fork server +50% \[40%, 60%\]", lines[2])
    assert lines[3] == "    of 2 cores 0.25 are idle, 0.25 of them for want of the disk"
    assert lines[4] == "    3.0 MB/s come from the disk, the rest from memory"
    assert explain_bounds({"infer": 1.0}, {}, 0.0, make_usage(0))[-1] == "from files, cores-bound: none is idle"


def test_many_workers_are_few_lines() -> None:
    usage = make_usage(MAX_LISTED + 56)
    lines = _format_usage(usage)
    assert len(lines) == 7
    assert [line for line in lines if "worker 9 " in line and "50 MB" in line]
    assert "    all 64 workers: 50% to 50%" in lines


@pytest.mark.slow
def test_a_page_has_room_for_many_workers() -> None:
    drawn = draw_plot(lambda axes: _plot_usage(axes, make_usage(64)))
    assert "worker 5 " not in drawn  # of each fifth one alone the name is given
    assert len(re.findall("<!-- (?:parent|fork server|worker \\d+) -->", drawn)) <= 16


def test_an_engines_workers_are_watched(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path, 200)
    with Engine.load(backend="onnxruntime", workers=1) as engine:
        assert engine.list_processes() == []  # until they are needed
        rates, usage = scenarios.measure_offline(engine, paths, 0.5, rounds=2)
        assert len(engine.list_processes()) == 2
    assert list(rates) == [1, 4, 16, 64]
    assert usage is not None
    assert usage.batch == 64
    assert list(usage.shares) == ["parent", "fork server", "worker 1"]
    assert usage.shares["worker 1"].high > 0
    assert set(usage.memory) == {"parent", "worker 1"}


def test_a_child_that_ended_is_read_for_real() -> None:
    before = read_counters([os.getpid()])
    burn = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = read_counters([os.getpid()])
    assert before is not None
    assert after is not None
    assert after.processes[os.getpid()].ended - before.processes[os.getpid()].ended >= 0.05


@pytest.mark.parametrize(
    ("options", "workers"), [([], 3), (["--workers", "threads"], "threads"), (["--workers", "5"], 5)]
)
def test_bench_measures_with_the_workers_of_a_long_job(
    options: list[str], workers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(Exception):  # noqa: N818
        pass

    def load(*arguments: object, **given: object) -> None:
        assert given["workers"] == workers
        raise Loaded

    monkeypatch.setattr(bench_cli.Engine, "load", load)
    monkeypatch.setattr(bench_cli, "choose_worker_count", lambda *_: WorkerCount(3, "for a reason"))
    assert isinstance(CliRunner().invoke(bench_cli.bench, options).exception, Loaded)


def test_bench_refuses_workers_that_cannot_be() -> None:
    result = CliRunner().invoke(bench_cli.bench, ["--workers", "many"])
    assert result.exit_code == 2
    assert "expected a number from 1 to" in result.stderr
