"""`fmengine bench`: the parity verdict, then what was measured on this machine in this run."""

import datetime
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from fmengine.backend.diagnose import environment
from fmengine.backend.registry import DeviceBackend
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.model.file import load_model_file
from fmengine.system.cores import usable_cores
from fmengine.types import Failure

from .contenders import Contender, against, device_of
from .energy import joules_of
from .limits import Peak, Roofline, Work, holds_back, measure_gpu_peak, measure_peak, roofline, work_of
from .metrics import Accuracy, accuracy_of
from .on_gpu import Way, network_time, ways
from .peers import require
from .scenarios import NETWORK, Server, offline, server, single_stream
from .stages import Overlapped, Serial, overlapped, serial
from .timing import Figure, Summary, figure, latencies, random_inputs, summary
from .verdict import Verdict, judge

SCHEMA = "fmengine.bench/3"
JUDGED = 256  # pictures that the verdict is on
BATCHES = (1, 32)  # of the roofline
BUSY = 0.5  # cores: a higher load before is worth a warning
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of each measurement, at least, in all its rounds.
        least: calls of each latency, at least, in all its rounds.
        rounds: that everything is measured in, and that its interval is over.
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
    warnings: list[str] = field(default_factory=list)
    accuracy: Accuracy | None = None  # where labels are known
    serial: Serial | None = None
    overlapped: Overlapped | None = None
    single_stream: dict[str, Summary] = field(default_factory=dict)
    offline: dict[int, Figure] = field(default_factory=dict)
    server: Server | None = None
    work: Work | None = None
    peak: Peak | None = None
    rooflines: list[Roofline] = field(default_factory=list)
    holds_back: list[str] = field(default_factory=list)
    pictures_a_joule: Figure | None = None
    ways_on_gpu: list[Way] = field(default_factory=list)
    contenders: list[Contender] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # peers that failed, and why

    def as_document(self) -> dict[str, Any]:
        """For JSON: schema `SCHEMA`, figures as the attributes' classes describe them, in their units."""
        document = asdict(self) | {"schema": SCHEMA, "passed": self.verdict.passed}
        strict: dict[str, Any] = json.loads(json.dumps(document), parse_constant=lambda _: None)  # no Infinity
        return strict


def run(
    engine: Engine,
    paths: Sequence[str],
    effort: Effort,
    peers: Sequence[str] = (),
    targets: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
    load: float | None = None,
) -> Report:
    """Measure an engine on pictures.

    Args:
        engine: on any backend.
        paths: picture files; those that cannot be read take no part.
        effort: how long to measure.
        peers: names of `peers.PEERS` to measure beside it.
        targets: the right label by path, where it is known, so that accuracy stands beside speed.
        say: told what is being measured.
        load: of the machine before the engine was loaded, as `os.getloadavg` gives it; by default as it is now.

    Raises:
        DataError: if no picture can be read.
        FmengineError: for a peer that is unknown.
        UnavailableError: for one that is not installed, or needs a GPU that the engine is not on.
    """
    load = os.getloadavg()[0] if load is None else load
    require(peers, device_of(engine))
    say("the verdict")
    answers = _readable(engine, paths, say)
    about = describe(engine, len(answers), load)
    warnings = warnings_of(load)
    # Folders are in order of label and source; what is measured on some pictures is to stand for all.
    good = random.Random(0).sample(list(answers), len(answers))
    verdict = judge(engine, good[:JUDGED])
    if not verdict.passed:
        return Report(about, verdict, warnings)
    targets = targets or {}
    known = [path for path in good if path in targets]
    say("stages")
    one_by_one = serial(engine, good, effort.seconds, min(effort.least, 200), effort.rounds)
    together = overlapped(engine, list(answers), effort.rounds)
    say("single stream")
    streams = single_stream(engine, good, effort.seconds, effort.least, effort.rounds)
    say("offline")
    throughput = offline(engine, list(answers), effort.seconds, effort.rounds)
    say("server")
    served = server(engine, good, effort.deadline, effort.seconds / 5, effort.rounds)
    say("the limit")
    alone = streams[NETWORK]
    work, peak, rooflines = _limit(engine, effort, alone)
    means = {name: stage.mean for name, stage in one_by_one.stages.items()}
    device = {name: part.mean for name, part in one_by_one.device.items()}
    ways_on_gpu: list[Way] = []
    if isinstance(engine.backend, DeviceBackend):
        say("graphs and streams")
        ways_on_gpu = ways(engine, effort.rounds, say)
    return Report(
        about,
        verdict,
        warnings,
        accuracy_of([answers[path] for path in known], [targets[path] for path in known]),
        one_by_one,
        together,
        streams,
        throughput,
        served,
        work,
        peak,
        rooflines,
        holds_back(means, device, (alone.p90 - alone.p50) / alone.p50),
        _pictures_a_joule(engine, list(answers), effort),
        ways_on_gpu,
        *(against(engine, list(answers), peers, effort.rounds, effort.threads, targets, say) if peers else ()),
    )


def _readable(engine: Engine, paths: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """The label that each picture is given, by path, without those that cannot be read.

    Raises:
        DataError: if that leaves none.
    """
    outcomes = dict(zip(paths, engine.predict_many(paths), strict=True))
    failures = [f"{path}: {made.message}" for path, made in outcomes.items() if isinstance(made, Failure)]
    if len(failures) == len(outcomes):
        raise DataError(f"none of the {len(paths)} files can be read as a picture; the first is {failures[0]}")
    if failures:
        say(f"{len(failures)} of {len(paths)} files cannot be read and take no part; the first is {failures[0]}")
    return {path: made.label for path, made in outcomes.items() if not isinstance(made, Failure)}


def warnings_of(load: float) -> list[str]:
    """What a machine's load before the measurement, in cores, says against its figures."""
    if load <= BUSY:
        return []
    return [
        f"the machine's load was {load:.2f} before, over {BUSY:g}: other work slows and scatters these figures"
    ]


def _limit(engine: Engine, effort: Effort, alone: Summary) -> tuple[Work, Peak | None, list[Roofline]]:
    """The model's work, the peak of the CPU or the GPU, and the roofline: of the network without transfers.

    Args:
        engine: that was measured.
        effort: how long to measure.
        alone: what the network takes for one picture. On a CPU that is what is wanted, and is not measured twice:
            a second time, in other circumstances, would give another figure under the same name.
    """
    work, backend = work_of(load_model_file(engine.model_path)), engine.backend
    batches = [batch for batch in BATCHES if batch <= engine.max_batch]
    if isinstance(backend, DeviceBackend):
        peak = measure_gpu_peak(backend.device_index)
        if peak is None:
            return work, None, []
        rounds = [{batch: network_time(backend, batch) for batch in batches} for _ in range(effort.rounds)]
        measured = {batch: figure([each[batch] for each in rounds]) for batch in batches}
    else:
        peak = measure_peak(effort.threads)
        measured = {1: alone.median} | {
            batch: _time_network(engine, batch, effort) for batch in batches if batch > 1
        }
    return work, peak, [roofline(work, peak, engine.spec.precision, *pair) for pair in measured.items()]


def _time_network(engine: Engine, batch: int, effort: Effort) -> Figure:
    """Milliseconds of a batch, measured as single stream measures one picture."""
    images = random_inputs(engine.spec, batch)
    call = partial(engine.backend.run, images)
    taken = latencies({"network": call}, effort.rounds, effort.seconds / effort.rounds, least=3)
    return summary(taken["network"]).median


def _pictures_a_joule(engine: Engine, paths: Sequence[str], effort: Effort) -> Figure | None:
    """Each round takes all the seconds: a GPU's counter moves every 10 to 100 ms."""
    answered = 0

    def work() -> None:
        nonlocal answered
        answered, end = 0, time.perf_counter() + effort.seconds
        while not answered or time.perf_counter() < end:
            answered += sum(1 for _ in engine.predict_many(paths))

    rates: list[float] = []
    for _ in range(effort.rounds):
        joules = joules_of(work, pci_address_of(engine))
        if not joules:
            return None
        rates.append(answered / joules)
    return figure(rates)


def pci_address_of(engine: Engine) -> str | None:
    """Of the GPU that the engine is on."""
    return engine.backend.pci_bus_id if isinstance(engine.backend, DeviceBackend) else None


def describe(engine: Engine, pictures: int, load: float) -> dict[str, str]:
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
        "load before": f"{load:.2f}",
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
