"""`fmengine bench`: the parity verdict, then what was measured on this machine in this run."""

import datetime
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from fmengine.backends import PictureBackend
from fmengine.cores import usable_cores
from fmengine.doctor import environment
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.model_file import load_model_file

from .contenders import Contender, against, require
from .energy import joules_of
from .limits import Peak, Roofline, Work, holds_back, measure_peak, roofline, work_of
from .scenarios import LOWEST, Server, offline, server, single_stream
from .stages import Overlapped, Serial, overlapped, serial
from .timing import Call, Figure, Summary, time_in_turn
from .verdict import Verdict, judge

SCHEMA = "fmengine.bench/1"
JUDGED = 256  # pictures that the verdict is on
BATCHES = (1, 32)  # of the roofline
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of each measurement, at least.
        least: calls of each latency, at least.
        rounds: of A/B turns.
        deadline: of the server scenario, in milliseconds.
        threads: of the peers and of the machine's peak, as many as the engine has.
    """

    seconds: float = 3.0
    least: int = 1000
    rounds: int = 5
    deadline: float = 10.0
    threads: int = field(default_factory=usable_cores)


@dataclass(frozen=True)
class Report:
    """Everything that one run measured; without a passed verdict, nothing."""

    about: dict[str, str]
    verdict: Verdict
    serial: Serial | None = None
    overlapped: Overlapped | None = None
    single_stream: dict[str, Summary] = field(default_factory=dict)
    offline: dict[int, Figure] = field(default_factory=dict)
    server: Server | None = None
    work: Work | None = None
    peak: Peak | None = None
    rooflines: list[Roofline] = field(default_factory=list)
    holds_back: list[str] = field(default_factory=list)
    pictures_a_joule: float | None = None
    contenders: list[Contender] = field(default_factory=list)

    def as_document(self) -> dict[str, Any]:
        """For JSON: schema `SCHEMA`, figures as the attributes' classes describe them, in their units."""
        document = asdict(self) | {"schema": SCHEMA, "passed": self.verdict.passed}
        for line, roof in zip(document["rooflines"], self.rooflines, strict=True):
            line |= {"bound": roof.bound, "share": roof.share}
        strict: dict[str, Any] = json.loads(json.dumps(document), parse_constant=lambda _: None)  # no Infinity
        return strict


def run(
    engine: Engine,
    paths: Sequence[str],
    effort: Effort,
    peers: Sequence[str] = (),
    targets: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure an engine on pictures.

    Args:
        engine: on any backend.
        paths: picture files; those that cannot be read take no part.
        effort: how long to measure.
        peers: names of `peers.PEERS` to measure beside it.
        targets: the right label by path, where it is known, so that accuracy stands beside speed.
        say: told what is being measured.

    Raises:
        DataError: if no picture can be read.
        UnavailableError: for a peer that is unknown, not installed, or fails.
    """
    require(peers)
    say("the verdict")
    good = [path for path, made in zip(paths, engine.predict_many(paths), strict=True) if hasattr(made, "label")]
    if not good:
        raise DataError(f"none of the {len(paths)} files is a picture")
    about = describe(engine, len(good))
    verdict = judge(engine, good[:JUDGED])
    if not verdict.passed:
        return Report(about, verdict)
    say("stages")
    one_by_one = serial(engine, good, effort.seconds, min(effort.least, 200))
    together = overlapped(engine, good)
    say("single stream")
    streams = single_stream(engine, good, effort.seconds, effort.least)
    say("offline")
    throughput = offline(engine, good, effort.seconds, effort.rounds)
    say("server")
    served = server(engine, good, effort.deadline, effort.seconds / 3)
    say("the limit")
    work, peak, rooflines = _limit(engine, effort.threads)
    alone = streams["the network alone"]
    means = {name: stage.mean for name, stage in one_by_one.stages.items()}
    device = {name: part.mean for name, part in one_by_one.device.items()}
    joules = joules_of(lambda: sum(1 for _ in engine.predict_many(good)))
    return Report(
        about,
        verdict,
        one_by_one,
        together,
        streams,
        throughput,
        served,
        work,
        peak,
        rooflines,
        holds_back(means, device, (alone.p90 - alone.p50) / alone.p50),
        len(good) / joules if joules else None,
        against(engine, good, peers, effort.rounds, effort.threads, targets or {}, say) if peers else [],
    )


def _limit(engine: Engine, threads: int) -> tuple[Work, Peak | None, list[Roofline]]:
    """The model's work, and on a CPU the machine's peak and the roofline; a GPU's peak is not measured here."""
    work = work_of(load_model_file(engine.model_path))
    if isinstance(engine.backend, PictureBackend):
        return work, None, []
    peak = measure_peak(threads)
    batches = [batch for batch in BATCHES if batch <= engine.max_batch]
    calls: dict[str, Call] = {
        str(batch): partial(engine.backend.run, np.zeros(engine.spec.input_shape(batch), dtype=np.uint8))
        for batch in batches
    }
    taken = time_in_turn(calls, rounds=5)
    rooflines = [
        roofline(work, peak, engine.spec.precision, batch, float(np.median(taken[str(batch)])))
        for batch in batches
    ]
    return work, peak, rooflines


def describe(engine: Engine, pictures: int) -> dict[str, str]:
    """The machine, the libraries, the model and the date: what a figure is worth nothing without."""
    spec = engine.spec
    facts = {key: value for key, value in environment().items() if value != "not installed"}
    facts |= {f"backend {key}": value for key, value in engine.backend.describe().items()}
    facts |= {
        "model": f"{spec.name}.{spec.precision}",
        "model sha256": spec.file_sha256,
        "pictures": str(pictures),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "governor": GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.exists() else "not told",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return facts | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})


def drawn_pictures(folder: Path, count: int = 512) -> list[str]:
    """Pictures for whoever has none at hand: smooth noise in JPEG, 48 to 200 pixels. They are no faces."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        side = int(rng.integers(48, 201))
        waves = np.add.outer(
            np.sin(np.arange(side) / rng.uniform(2, 20)), np.cos(np.arange(side) / rng.uniform(2, 20))
        )
        levels = np.clip(128 + 50 * waves + rng.normal(0, 6, (side, side)), 0, 255).astype(np.uint8)
        path = folder / f"{number:04d}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(levels[..., None]), 90, "GRAY"))
        paths.append(str(path))
    return paths


def as_text(report: Report) -> str:
    """The report as tables for a terminal."""
    lines = [report.verdict.as_text()]
    if not report.verdict.passed:
        return "\n".join([*lines, "no figures: a backend whose answers differ gets none"])
    about = report.about
    lines += [f"{about['model']} on {about['backend backend']}, {about['cpu']}, {about['cores']} cores", ""]
    assert report.serial
    assert report.overlapped
    assert report.server
    lines += _latency_lines("stages, one picture at a time", report.serial.stages | {"whole": report.serial.whole})
    verdict = "agree with" if report.serial.agrees else "DIFFER BY MORE THAN 5 % FROM"
    lines.append(f"the stages add up to {report.serial.share:.1%} of the whole: they {verdict} it")
    if report.serial.device:
        lines += ["", *_latency_lines("on the GPU, by its events", report.serial.device)]
    together = report.overlapped
    lines += ["", f"overlapped: {together.pictures} pictures in {together.wall:.3f} s"]
    for stage, busy in together.busy.items():
        behind = f"{together.hidden[stage] / busy:7.0%} of it behind compute" if stage in together.hidden else ""
        lines.append(f"  {stage:<12}{busy:8.3f} s of threads{behind}")
    lines += ["", *_latency_lines("single stream", report.single_stream), "", "offline, from files"]
    lines += [
        f"  batch {batch:<6}{rate.median:10,.0f} pictures/s   [{rate.low:,.0f}, {rate.high:,.0f}]"
        for batch, rate in report.offline.items()
    ]
    rate = f"{report.server.rate:,.0f}" if report.server.rate else f"under {LOWEST:,.0f}"
    lines.append(f"server: {rate} pictures/s, Poisson, with 99 % within {report.server.deadline:g} ms")
    lines += ["", *_limit_lines(report)]
    if report.contenders:
        lines += ["", *_contender_lines(report.contenders)]
    return "\n".join(lines)


def _latency_lines(title: str, rows: dict[str, Summary]) -> list[str]:
    heads = ("min", "mean", "p50", "p90", "p95", "p99", "max")
    lines = [f"{title + ', ms':<38}" + "".join(f"{head:>9}" for head in heads)]
    for name, row in rows.items():
        lines.append(f"  {name:<36}" + "".join(f"{getattr(row, head):9.3f}" for head in heads))
    return lines


def _limit_lines(report: Report) -> list[str]:
    assert report.work
    work = report.work
    lines = [f"a picture: {work.operations / 1e6:.0f} million operations, {work.weights / 1e6:.2f} MB of weights"]
    if peak := report.peak:
        lines.append(
            f"this machine: {peak.int8:,.0f} INT8, {peak.fp32:,.0f} FP32 GOP/s, {peak.copy:.1f} GB/s copied"
        )
    lines += [
        f"  batch {r.batch}: {r.measured:.3f} ms, {r.share:.0%} of the roofline ({r.bound}-bound)"
        for r in report.rooflines
    ]
    if report.pictures_a_joule is None:
        lines.append("energy: this machine does not tell")
    else:
        lines.append(f"energy: {report.pictures_a_joule:,.0f} pictures a second a watt (packages, RAPL)")
    return [*lines, *(f"what holds it back: {words}" for words in report.holds_back)]


def _contender_lines(contenders: list[Contender]) -> list[str]:
    lines = [
        f"{'the same pictures, in turn':<28}{'pictures/s':>12}{'95 % interval':>20}{'ours is':>10}{'right':>11}"
    ]
    for c in contenders:
        right = "not known" if c.accuracy is None else f"{c.accuracy:.1%}"
        interval = f"[{c.rate.low:,.0f}, {c.rate.high:,.0f}]"
        times = "" if c.times is None else f"{c.times.median:.1f} ×"
        lines.append(f"  {c.name:<26}{c.rate.median:>12,.0f}{interval:>20}{times:>10}{right:>11}  {c.what}")
    return lines
