"""Runs `fmengine bench`: the parity verdict, then measurements on this machine."""

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from fmengine.backend.protocol import DeviceBackend
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.system.cores import usable_cores
from fmengine.types import Failure

from .contenders import Contender, measure_contenders, name_device
from .energy import measure_joules
from .limits import (
    Peak,
    Roofline,
    Work,
    compute_pixel_roofline,
    compute_roofline,
    count_work,
    explain_bounds,
    measure_gpu_peak,
    measure_peak,
)
from .machine import describe, warn_of_load
from .metrics import Accuracy, compute_accuracy
from .on_gpu import SIDE, BatchParts, Way, measure_parts, measure_ways
from .peers import check_peers
from .processes import Usage
from .scenarios import NETWORK, Server, measure_offline, measure_server, measure_single_stream
from .stages import Overlapped, Serial, measure_overlapped, measure_serial
from .timing import Figure, Summary, estimate_median, random_inputs, summarise, time_calls
from .verdict import Verdict, judge

SCHEMA = "fmengine.bench/6"
JUDGED = 256  # pictures that the verdict is on
BATCHES = (1, 32)  # of the roofline


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of each measurement, at minimum, in all its rounds.
        min_calls: of each latency, at minimum, in all its rounds.
        rounds: that everything is measured in, and that its interval is over.
        deadline: of the server scenario, in milliseconds.
        threads: of the peers and of the machine's peak, as many as the engine has.
    """

    seconds: float = 3.0
    min_calls: int = 1000
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
    processes: Usage | None = None  # of the offline scenario, where the system says what each takes
    server: Server | None = None
    work: Work | None = None
    peak: Peak | None = None
    rooflines: list[Roofline] = field(default_factory=list)
    holds_back: list[str] = field(default_factory=list)
    pictures_a_joule: Figure | None = None
    parts_on_gpu: list[BatchParts] = field(default_factory=list)
    ways_on_gpu: list[Way] = field(default_factory=list)
    contenders: list[Contender] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # peers that failed, and why

    def as_document(self) -> dict[str, Any]:
        """Return the report for JSON, schema `SCHEMA`: figures as the attributes' classes describe them."""
        document = asdict(self) | {"schema": SCHEMA, "passed": self.verdict.passed}
        strict: dict[str, Any] = json.loads(json.dumps(document), parse_constant=lambda _: None)  # no Infinity
        return strict


def run(
    engine: Engine,
    paths: Sequence[str],
    effort: Effort,
    peers: Sequence[str] = (),
    targets: dict[str, str] | None = None,
    notify: Callable[[str], None] = lambda _: None,
    load: float | None = None,
) -> Report:
    """Measure an engine on pictures.

    Args:
        engine: on any backend.
        paths: picture files; those that cannot be read take no part.
        effort: how long to measure.
        peers: names of `peers.PEERS` to measure beside it.
        targets: the right label by path, where it is known, so that accuracy stands beside speed.
        notify: called with what is being measured, as text.
        load: of the machine before the engine was loaded, as `os.getloadavg` gives it; by default as it is now.

    Raises:
        DataError: if no picture can be read.
        FmengineError: for a peer that is unknown.
        UnavailableError: for one that is not installed, or needs a GPU that the engine is not on.
    """
    load = os.getloadavg()[0] if load is None else load
    check_peers(peers, name_device(engine))
    notify("the verdict")
    answers = _predict_labels(engine, paths, notify)
    about = describe(engine, len(answers), load)
    warnings = warn_of_load(load)
    # Folders are in order of label and source; what is measured on some pictures is to stand for all.
    good = random.Random(0).sample(list(answers), len(answers))
    verdict = judge(engine, good[:JUDGED])
    if not verdict.passed:
        return Report(about, verdict, warnings)
    targets = targets or {}
    known = [path for path in good if path in targets]
    notify("stages")
    one_at_a_time = measure_serial(engine, good, effort.seconds, min(effort.min_calls, 200), effort.rounds)
    in_overlap = measure_overlapped(engine, list(answers), effort.rounds)
    notify("single stream")
    streams = measure_single_stream(engine, good, effort.seconds, effort.min_calls, effort.rounds)
    notify("offline")
    throughput, usage = measure_offline(engine, list(answers), effort.seconds, effort.rounds)
    about["workers"] = str(max(0, len(engine.list_processes()) - 1))
    notify("server")
    served = measure_server(engine, good, effort.deadline, effort.seconds / 5, effort.rounds)
    notify("the limit")
    alone = streams[NETWORK]
    parts: list[BatchParts] = []
    if isinstance(engine.backend, DeviceBackend):
        batches = [batch for batch in BATCHES if batch <= engine.max_batch]
        parts = measure_parts(engine, sorted({*batches, engine.max_batch}), effort.rounds)
    work, peak, rooflines = _measure_limit(engine, effort, alone, parts)
    means = {name: stage.mean for name, stage in one_at_a_time.stages.items()}
    device = {name: part.mean for name, part in one_at_a_time.device.items()}
    ways_on_gpu: list[Way] = []
    if isinstance(engine.backend, DeviceBackend):
        notify("graphs and streams")
        ways_on_gpu = measure_ways(engine, effort.rounds, notify)
    return Report(
        about,
        verdict,
        warnings,
        compute_accuracy([answers[path] for path in known], [targets[path] for path in known]),
        one_at_a_time,
        in_overlap,
        streams,
        throughput,
        usage,
        served,
        work,
        peak,
        rooflines,
        explain_bounds(means, device, (alone.p90 - alone.p50) / alone.p50, usage, parts),
        _measure_energy(engine, list(answers), effort),
        parts,
        ways_on_gpu,
        *(
            measure_contenders(engine, list(answers), peers, effort.rounds, effort.threads, targets, notify)
            if peers
            else ()
        ),
    )


def _predict_labels(engine: Engine, paths: Sequence[str], notify: Callable[[str], None]) -> dict[str, str]:
    """Predict the label of each picture, by path, without those that cannot be read.

    Raises:
        DataError: if that leaves none.
    """
    outcomes = dict(zip(paths, engine.predict_many(paths), strict=True))
    failures = [f"{path}: {made.message}" for path, made in outcomes.items() if isinstance(made, Failure)]
    if len(failures) == len(outcomes):
        raise DataError(f"none of the {len(paths)} files can be read as a picture; the first is {failures[0]}")
    if failures:
        notify(
            f"{len(failures)} of {len(paths)} files cannot be read and take no part; the first is {failures[0]}"
        )
    return {path: made.label for path, made in outcomes.items() if not isinstance(made, Failure)}


def _measure_limit(
    engine: Engine, effort: Effort, alone: Summary, parts: Sequence[BatchParts]
) -> tuple[Work, Peak | None, list[Roofline]]:
    """Measure the model's work, the peak of the CPU or the GPU, and the roofline of each part.

    Args:
        engine: that was measured.
        effort: how long to measure.
        alone: what the network takes for one picture. On a CPU that is what is wanted, and is not measured twice:
            a second time, in other circumstances, would give another figure under the same name.
        parts: of batches on a GPU.
    """
    work, spec = count_work(engine.model_file), engine.spec
    if isinstance(engine.backend, DeviceBackend):
        peak = measure_gpu_peak(engine.backend.device_index)
        if peak is None:
            return work, None, []
        networks = {each.batch: each.device["network"] for each in parts}
        pixels = {each.batch: _add(each.device["upload"], each.device["preprocess"]) for each in parts}
        rooflines = [compute_pixel_roofline(spec, SIDE, peak, *pair) for pair in pixels.items()]
    else:
        peak, rooflines = measure_peak(effort.threads), []
        batches = [batch for batch in BATCHES if 1 < batch <= engine.max_batch]
        networks = {1: alone.median} | {batch: _time_network(engine, batch, effort) for batch in batches}
    return (
        work,
        peak,
        [*rooflines, *(compute_roofline(work, peak, spec.precision, *pair) for pair in networks.items())],
    )


def _add(one: Figure, other: Figure) -> Figure:
    """Add two figures; their interval is at most the sum of both."""
    return Figure(one.median + other.median, one.low + other.low, one.high + other.high, one.rounds)


def _time_network(engine: Engine, batch: int, effort: Effort) -> Figure:
    """Time a batch in milliseconds, as single stream times one picture."""
    images = random_inputs(engine.spec, batch)
    call = partial(engine.backend.run, images)
    taken = time_calls({"network": call}, effort.rounds, effort.seconds / effort.rounds, min_calls=3)
    return summarise(taken["network"]).median


def _measure_energy(engine: Engine, paths: Sequence[str], effort: Effort) -> Figure | None:
    """Measure pictures a joule; None where no counter can be read.

    Each round takes all the seconds: a GPU's counter moves every 10 to 100 ms.
    """
    answered = 0

    def work() -> None:
        nonlocal answered
        answered, end = 0, time.perf_counter() + effort.seconds
        while not answered or time.perf_counter() < end:
            answered += sum(1 for _ in engine.predict_many(paths))

    rates: list[float] = []
    for _ in range(effort.rounds):
        joules = measure_joules(work, find_pci_address(engine))
        if not joules:
            return None
        rates.append(answered / joules)
    return estimate_median(rates)


def find_pci_address(engine: Engine) -> str | None:
    """Find the PCI bus address of the engine's GPU; None on a CPU."""
    return engine.backend.pci_bus_id if isinstance(engine.backend, DeviceBackend) else None
