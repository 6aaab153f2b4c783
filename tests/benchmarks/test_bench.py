"""`fmengine bench`: a verdict above the figures, each figure with its interval, and a slow stage in its row."""

import copy
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import pytest
from click.testing import CliRunner, Result

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.engine import Engine
from fmengine.errors import DataError, FmengineError, OutputError, UnavailableError
from fmengine.model.file import load_model_file, resolve
from fmengine.model.spec import InputSpec
from fmengine.pipeline import stages as pipeline_stages
from fmengine.system.files import read_file
from fmengine_bench import bench as module
from fmengine_bench import contenders, energy, limits, scenarios, stages
from fmengine_bench.bench import Report
from fmengine_bench.bench_cli import bench
from fmengine_bench.bench_page import format_page
from fmengine_bench.drawn import draw_pictures
from fmengine_bench.jobs import jobs
from fmengine_bench.limits import Best, Peak, compute_pixel_roofline, compute_roofline, count_work
from fmengine_bench.machine import warn_of_load
from fmengine_bench.metrics import compute_accuracy, compute_wilson_interval
from fmengine_bench.on_gpu import BatchParts
from fmengine_bench.timing import Figure, estimate_median, summarise, time_calls, time_in_turn
from fmengine_bench.verdict import Verdict

from .conftest import Clock

pytestmark = pytest.mark.timeout(120)

QUICK = ["--seconds", "0.1", "--least", "20", "--rounds", "2"]
LABELLED = 42  # of the drawn pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures in folders of labels, some in a folder that bears none, and a file that is no picture."""
    root = tmp_path_factory.mktemp("drawn")
    for number, path in enumerate(map(Path, draw_pictures(root, 48))):
        label = "happy" if number < 30 else "sad" if number < LABELLED else "other"
        (root / label).mkdir(exist_ok=True)
        path.rename(root / label / path.name)
    (root / "other" / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*.jpg")))


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.load(backend="onnxruntime", queue_size=4096) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SIDE", 64)
        patch.setattr(limits, "COPIED", 1 << 16)
        patch.setattr(limits, "TURN", 0.01)
        patch.setattr(scenarios, "LOWEST", 400.0)  # a trial has 200 pictures at least, and so takes half a second
        yield patch


@dataclass(frozen=True)
class Measured:
    """One run of the command; `inputs` counts the network's batches, by size and whether all was 0."""

    result: Result
    report: Report
    document: dict[str, Any]
    page: str
    inputs: Counter[tuple[int, bool]]


@pytest.fixture(scope="module")
def measured(folder: Path, short: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    output, page = (tmp_path_factory.mktemp("report") / name for name in ("a.json", "a.html"))
    inputs: Counter[tuple[int, bool]] = Counter()
    reports: list[Report] = []
    run_network, run_bench = OnnxRuntimeBackend.run, module.run

    def noting(self, images):
        inputs[len(images), not images.any()] += 1
        return run_network(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", noting)
        patch.setattr(module, "run", lambda *given: reports.append(run_bench(*given)) or reports[0])
        patch.setattr(os, "getloadavg", lambda: (0.25, 0.0, 0.0))
        options = ["--pictures", str(folder), "--output", str(output), "--html", str(page)]
        result = CliRunner().invoke(bench, [*QUICK, *options])
    assert result.exit_code == 0, result.exception
    return Measured(result, reports[0], json.loads(output.read_text()), page.read_text(), inputs)


# The report


@pytest.mark.slow
def test_the_whole_report(measured: Measured) -> None:
    assert measured.result.stdout.startswith("parity holds on 48 pictures: 0 pixels differ")
    for part in (
        "single stream",
        "offline",
        "server",
        "of the roofline",
        "what holds it back",
        "overlapped",
        "energy",
    ):
        assert part in measured.result.stdout
    assert measured.document["schema"] == module.SCHEMA
    assert list(measured.document["serial"]["stages"]) == ["read", "decode", "preprocess", "infer", "post"]
    assert measured.document["passed"]
    assert measured.document["about"]["model sha256"]
    usage = measured.document["processes"]
    assert measured.document["about"]["workers"] == str(len(usage["shares"].keys() - {"parent", "fork server"}))
    assert f"from files, {usage['held_by']}-bound: {usage['why']}" in measured.document["holds_back"]
    assert f"{usage['held_by']}-bound" in measured.page
    assert "<svg" in measured.page


@pytest.mark.slow
def test_files_that_cannot_be_read_are_reported(measured: Measured) -> None:
    assert "… 1 of 49 files cannot be read and take no part; the first is " in measured.result.stderr
    assert "notes.txt: no known image format" in measured.result.stderr


def figures_in(document: Any) -> Iterator[dict[str, Any]]:
    """Every median, every row of latencies and every best, at any depth."""
    if isinstance(document, dict):
        if {"median", "p50", "best"} & document.keys():
            yield document
        else:
            for value in document.values():
                yield from figures_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from figures_in(value)


@pytest.mark.slow
def test_every_figure_has_an_interval_that_was_measured(measured: Measured) -> None:
    found = list(figures_in(measured.document))
    assert len(found) > 25
    for each in found:
        assert each["rounds"] in (2, limits.ROUNDS)
        if "median" in each:
            assert each["low"] <= each["median"] <= each["high"]
        elif "best" in each:
            assert each["low"] <= each["best"]
        else:
            assert set(each["intervals"]) == {"mean", "p50", "p90", "p95", "p99"}
            assert all(low <= high for low, high in each["intervals"].values())
    parts = ("serial", "overlapped", "single_stream", "offline", "processes", "server", "peak", "rooflines")
    for part in parts:
        assert list(figures_in(measured.document[part])), part


@pytest.mark.slow
def test_what_is_measured_once_is_reported_once(measured: Measured) -> None:
    """The network took three times as long in one place as in another, where one was a mean and one a median."""
    first, second = measured.report.rooflines
    assert (first.batch, second.batch) == (1, 32)
    assert first.measured == measured.report.single_stream[scenarios.NETWORK].median


@pytest.mark.slow
def test_a_network_is_timed_on_no_zeros(measured: Measured) -> None:
    """Those that it is warmed up with when it is loaded, and none that are timed."""
    assert {size: count for (size, zeros), count in measured.inputs.items() if zeros} == {1: 1, 64: 1}
    assert measured.inputs[32, False] > 2
    product = limits._make_product("MatMul", 1, 1, 1, threads=1)()[0]  # 1: FP32
    assert len(np.unique(product)) > 100


@pytest.mark.slow
def test_labels_that_are_known_give_an_accuracy(measured: Measured, folder: Path) -> None:
    found = measured.report.accuracy
    with Engine.load(backend="onnxruntime") as engine:
        answers = {
            path: answer.label
            for path, answer in ((path, engine.predict(path)) for path in map(str, folder.rglob("*.jpg")))
        }
    right = sum(label == Path(path).parent.name for path, label in answers.items())
    assert found is not None
    assert (found.count, found.share) == (LABELLED, right / LABELLED)
    assert (found.low, found.high) == compute_wilson_interval(right, LABELLED)
    assert measured.document["accuracy"] == {
        "share": found.share,
        "low": found.low,
        "high": found.high,
        "count": LABELLED,
    }
    line = f"accuracy: {found.share:.1%} [{found.low:.1%}, {found.high:.1%}] of 42 pictures with a label"
    assert line in measured.result.stdout
    assert line in measured.page


def test_without_labels_there_is_no_accuracy() -> None:
    assert compute_accuracy([], []) is None
    found = compute_accuracy(["happy", None, "sad"], ["happy", "happy", "sad"])
    assert found is not None
    assert (found.share, found.count) == (2 / 3, 3)


@pytest.mark.slow
def test_a_page_takes_accuracies_at_their_bounds(measured: Measured) -> None:
    """Rounding puts the end of an interval on the wrong side of its value, where a plot takes no such thing."""
    rate = Figure(1000.0, 900.0, 1100.0, 2)
    all_right, none_right = (
        compute_accuracy(["sad"] * 4, ["sad"] * 4),
        compute_accuracy(["happy"] * 3, ["sad"] * 3),
    )
    both = [
        contenders.Contender(name, "a stand-in", rate, None, accuracy, 0, {})
        for name, accuracy in (("right", all_right), ("wrong", none_right))
    ]
    page = format_page(replace(measured.report, contenders=both))
    assert "100.0% [51.0%, 100.0%]" in page
    assert page.count("<svg") == 5


def test_wrong_answers_get_no_figures(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline_stages.preprocess_rows

    def invert(images: list, spec: InputSpec, inputs: np.ndarray, flat: np.ndarray) -> None:
        original(images, spec, inputs, flat)
        np.subtract(255, inputs, out=inputs)

    monkeypatch.setattr(pipeline_stages, "preprocess_rows", invert)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 0.0, 0.0))
    result = CliRunner().invoke(bench, [*QUICK, "--pictures", str(Path(paths[0]).parent)])
    assert result.exit_code == 1
    assert "parity IS BROKEN" in result.stdout
    assert "no figures" in result.stdout
    assert "pictures/s" not in result.stdout
    for text in (result.stdout, result.stderr):  # before anything is measured, and in the report
        assert "warning: the machine's load was 1.25 before, over 0.5" in text


@pytest.mark.parametrize("field", ["between_batches", "from_reference"])
def test_a_verdict_on_what_is_no_number_is_broken(field: str) -> None:
    passed = Verdict(8, 0, between_batches=0.0, from_reference=0.0, flips=0, tolerance=1e-4)
    assert passed.passed
    assert not replace(passed, **{field: float("nan")}).passed


@pytest.mark.slow
def test_a_machine_at_rest_is_not_warned_of(measured: Measured) -> None:
    assert measured.report.warnings == measured.document["warnings"] == []
    assert measured.document["about"]["load before"] == "0.25"
    assert "warning" not in measured.result.output


# What is wrong before the work begins


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "nodir/x.html"], "there is no folder"),
        (["--output", "nodir/x.json"], "there is no folder"),
        (["--html", "x.json"], "the name must end in .html"),
        (["--output", "x.txt"], "the name must end in .json"),
        (["--output", "taken.json"], "replace it with --overwrite"),
        (["--html", "taken.html"], "replace it with --overwrite"),
        (["--output", "folder.json", "--overwrite"], "is not a regular file"),
    ],
)
def test_outputs_are_checked_before_the_work(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("taken.json", "taken.html"):
        Path(name).write_text("kept")
    Path("folder.json").mkdir()
    result = CliRunner().invoke(bench, ["--model", "not-there", *options])  # would be an error of its own
    assert isinstance(result.exception, OutputError)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)
    assert Path("taken.json").read_text() == Path("taken.html").read_text() == "kept"


@pytest.mark.parametrize("command", ["bench", "jobs"])
def test_peers_are_looked_up_before_the_work(command: str, folder: Path, tmp_path: Path) -> None:
    def look_up(peers: str) -> FmengineError:
        before = [jobs, [str(folder)]] if command == "jobs" else [bench, ["--model", "not-there"]]
        result = CliRunner().invoke(before[0], [*before[1], "--against", peers])
        assert isinstance(result.exception, FmengineError)
        return result.exception

    unknown = look_up("fer, caffe")
    assert unknown.exit_code == 2
    assert str(unknown).startswith("unknown peer 'caffe'; available are torch, torch-compile, ")
    missing = look_up("fer")
    assert missing.exit_code == 4
    assert str(missing) == "fer is not installed; run: fmengine bench install fer"


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    empty = CliRunner().invoke(bench, ["--pictures", str(tmp_path), "--model", "not-there"])
    assert isinstance(empty.exception, DataError)
    assert f"no files in {tmp_path}; expected pictures" in str(empty.exception)
    (tmp_path / "a.txt").write_text("no picture")
    unread = CliRunner().invoke(bench, ["--pictures", str(tmp_path), "--backend", "onnxruntime"])
    assert isinstance(unread.exception, DataError)
    assert "none of the 1 files can be read as a picture; the first is " in str(unread.exception)
    assert "a.txt: no known image format" in str(unread.exception)


# Stages and scenarios


OWNERS = {
    "read": (pipeline_stages, "read_file"),
    "decode": (pipeline_stages, "decode_bytes"),
    "preprocess": (pipeline_stages, "preprocess_rows"),
    "infer": (OnnxRuntimeBackend, "run"),
    "post": (pipeline_stages, "Prediction"),
}  # of what does the work of each stage


def slow_down(engine: Engine, stage: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = OWNERS[stage]
    function = getattr(owner, name)

    def slow(*arguments):
        time.sleep(seconds)
        return function(*arguments)

    monkeypatch.setattr(owner, name, slow)
    engine._stages.observe(None)  # which takes the functions up as they are now


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_slowed_stage_shows_in_its_row(
    engine: Engine, paths: list[str], stage: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(engine, stage, 0.02, monkeypatch)
    found = stages.measure_serial(engine, paths, 0, min_calls=10, rounds=2)
    for name, row in found.stages.items():
        assert (row.min, row.max) == pytest.approx((20, 20) if name == stage else (0, 0)), name
    assert (found.whole.min, found.whole.max, found.share.median) == pytest.approx((20, 20, 1))
    assert found.agrees


def test_the_overlapped_mode_reports_what_hides_behind_infer(engine: Engine, paths: list[str]) -> None:
    found = stages.measure_overlapped(engine, paths, rounds=2)
    assert found.pictures == len(paths)
    assert set(found.busy) == set(stages.STAGES)
    assert set(found.hidden) == set(stages.STAGES) - {"infer"}
    assert all(0 <= share.low <= share.high <= 1 + 1e-9 for share in found.hidden.values())
    assert engine._stages._read is read_file  # nothing is left behind


def test_time_within_spans() -> None:
    merged = stages._merge_spans([(3, 5), (0, 1), (0.5, 2)])
    assert merged == [(0, 2), (3, 5)]
    assert stages._measure_covered((1, 4), merged) == 2


@dataclass
class Arrivals:
    """Answers within 5 ms up to a rate that wanders from trial to trial, and refuses beyond it."""

    limits: list[float]
    stalls: tuple[int, ...] = ()
    seeds: list[int] = field(default_factory=list)

    async def __call__(self, engine: object, paths: object, rate: float, seconds: float, seed: int) -> float:
        number = len(self.seeds)
        self.seeds.append(seed)
        met = rate <= self.limits[number % len(self.limits)] and number not in self.stalls
        return 5.0 if met else float("inf")


def search(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch, rounds: int = 5) -> scenarios.Server:
    monkeypatch.setattr(scenarios, "_run_arrivals", arrivals)
    return scenarios.measure_server(None, [], 10.0, 1.0, rounds)  # type: ignore[arg-type]


def test_the_server_finds_the_rate_that_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals([730.0])
    found = search(arrivals, monkeypatch)
    assert found.rate.rounds == 5
    assert 730 * 0.95 <= found.rate.low <= found.rate.median <= found.rate.high <= 730
    assert len(set(arrivals.seeds)) == len(arrivals.seeds) == len(found.tried)  # never the same arrivals again


def test_a_servers_interval_is_what_its_rounds_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(Arrivals([900.0, 1000.0, 1100.0, 950.0, 1050.0, 1000.0, 880.0]), monkeypatch)
    assert 1.01 < found.rate.high / found.rate.low < 2


def test_a_stall_is_no_limit_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(Arrivals([730.0], stalls=(0, 10, 20, 30)), monkeypatch)
    assert 730 * 0.95 <= found.rate.low <= found.rate.high <= 730


def test_a_server_that_is_too_slow_is_not_searched_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(Arrivals([0.0]), monkeypatch)
    assert found.rate == Figure(0, 0, 0, 5)
    assert {rate for rate, _ in found.tried} == {scenarios.LOWEST}
    assert len(found.tried) == 2 * 5


def test_the_work_of_the_shipped_network() -> None:
    work = count_work(load_model_file(resolve("alexnet-slim", ("int8",))))
    # Five convolutions at 80 pixels: 24 channels of 5x5 at stride 2, and so on; products counted once, times two.
    assert 1.0e8 < work.operations < 1.6e8
    assert 1.0e6 < work.weights < 1.3e6
    half = count_work(load_model_file(resolve("alexnet-slim", ("fp16",))))
    assert half.operations == work.operations
    assert half.activations == 2 * work.activations


def exactly(value: float) -> Figure:
    return Figure(value, value, value, 5)


def peak_of(copy: float, **operations: float) -> Peak:
    return Peak({name: Best(rate, rate, 5) for name, rate in operations.items()}, Best(copy, copy, 5))


def test_the_roofline_takes_the_higher_of_arithmetic_and_memory() -> None:
    work = count_work(load_model_file(resolve("alexnet-slim", ("int8",))))
    found = compute_roofline(work, peak_of(1e-3, int8=1000, fp32=100), "int8", 1, exactly(1e6))
    assert found.bound == "memory"
    peak = peak_of(1e6, int8=1000, fp32=100)
    found = compute_roofline(work, peak, "int8", 1, exactly(2 * work.operations / 1e9))
    assert (found.part, found.bound) == ("network", "arithmetic")
    assert found.share.median == pytest.approx(0.5)


def test_pixels_are_held_against_pcie_and_memory() -> None:
    """100 faces of 48 × 48 bytes up, and read and written once: 0.23 MB over 50 GB/s, 0.87 MB over 100."""
    spec = replace(load_model_file(resolve("alexnet-slim", ("fp16",))).spec, height=80, width=80)
    for upload, memory, bound, least in ((50, 1e6, "PCIe", 230_400 / 50e6), (1e6, 100, "memory", 870_400 / 100e6)):
        peak = replace(peak_of(memory, fp32=1), upload=Best(upload, upload, 5))
        found = compute_pixel_roofline(spec, 48, peak, 100, exactly(4 * least))
        assert (found.part, found.bound, found.batch) == ("preprocessing", bound, 100)
        assert found.least == pytest.approx(least)
        assert found.share.median == pytest.approx(0.25)


def test_who_works_longer_holds_a_batch_back() -> None:
    device = {
        "upload": exactly(0.01),
        "preprocess": exactly(0.02),
        "network": exactly(0.05),
        "download": exactly(0.01),
    }
    host = {"stage": exactly(0.08), "launch": exactly(0.01), "rows": exactly(0.02)}
    assert BatchParts(64, host, device).explain() == (
        "host-bound at batch 64: the host works 0.110 ms, the GPU 0.090; most of that is stage, 0.080"
    )
    assert BatchParts(1, host | {"stage": exactly(0.01)}, device).explain() == (
        "GPU-bound at batch 1: the host works 0.040 ms, the GPU 0.090; most of that is network, 0.050"
    )
    means = dict.fromkeys(("host-to-device", "preprocess", "network", "device-to-host"), 1.0)
    words = limits.explain_bounds({"infer": 1.0}, means, 0.0, None, [BatchParts(64, host, device)])
    assert any(text.startswith("host-bound at batch 64") for text in words)


def test_a_rooflines_share_is_as_uncertain_as_what_it_is_made_of() -> None:
    work = count_work(load_model_file(resolve("alexnet-slim", ("int8",))))
    took = work.operations / 1e9  # milliseconds, at 1000 GOP/s
    peak = Peak({"int8": Best(1000, 800, 5), "fp32": Best(100, 100, 5)}, Best(1e6, 1e6, 5))
    share = compute_roofline(work, peak, "int8", 1, Figure(2 * took, took, 4 * took, 5)).share
    assert (share.median, share.low, share.high) == pytest.approx((1 / 2, 1 / 4, 1.25))


def test_an_fp16_file_is_held_against_what_the_machine_computes_it_in() -> None:
    work = count_work(load_model_file(resolve("alexnet-slim", ("fp16",))))
    cpu, gpu = peak_of(1e6, int8=1000, fp32=100), peak_of(1e6, fp16=1000, fp32=100)
    assert compute_roofline(work, cpu, "fp16", 1, exactly(1)).least == pytest.approx(work.operations / 1e8)
    assert compute_roofline(work, gpu, "fp16", 1, exactly(1)).least == pytest.approx(work.operations / 1e9)


@pytest.mark.slow
def test_a_gpus_peak_is_measured_by_pytorch_where_it_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waits, products = [], []
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *matrices: products.append(multiply(*matrices)))
    peak = limits._measure_peak_in_torch(torch.device("cpu"), lambda: waits.append(1), 32, 1 << 16)
    assert set(peak.operations) == {"fp16", "fp32"}
    assert peak.upload is not None
    assert min(rate.low for rate in (*peak.operations.values(), peak.copy, peak.upload)) > 0
    assert len(waits) > len(products) > 0  # after every product and copy: a GPU works on when a call has returned
    assert len(products[0].unique()) > 100  # of numbers that cost what the network's do
    assert limits.measure_gpu_peak(torch.cuda.device_count()) is None
    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    assert limits.measure_gpu_peak(0) is None


def test_other_work_does_not_lower_the_peak(clock: Clock) -> None:
    """Two of three calls wait for a time slice."""
    calls = count()

    def call() -> None:
        time.sleep(0.001 if next(calls) % 3 == 0 else 0.009)

    peak = limits._measure_rates({"fp32": call}, 100, {"copy": (call, 2_000_000)})
    for found in (peak.operations["fp32"], peak.copy):
        assert (found.best, found.low) == pytest.approx((2, 2))  # 1e9 a second: 2e6 in a millisecond


class Nvml:
    """NVIDIA's library as far as it is used: its names are the real package's."""

    NVMLError = pynvml.NVMLError

    def __init__(self, joules: list[float], known: str) -> None:
        self.millijoules, self.known = iter([1e3 * value for value in joules]), known

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:  # noqa: N802
        if address != self.known:
            raise pynvml.NVMLError_NotFound()
        return address

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:  # noqa: N802
        assert handle == self.known
        return next(self.millijoules)


def test_a_gpus_energy_is_its_own_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    nvml = Nvml([2.0, 9.5], "0000:01:00.0")
    assert all(hasattr(pynvml, name) for name in dir(Nvml) if name.startswith("nvml"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert energy.measure_joules(lambda: done.append(1), "0000:01:00.0") == 7.5
    assert done
    assert energy.measure_joules(lambda: None, "0000:02:00.0") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.measure_joules(lambda: None, "0000:01:00.0") is None


# Intervals


def test_intervals_hold_the_median_and_percentiles_are_in_order() -> None:
    rounds = np.random.default_rng(1).normal(10, 1, (5, 30))
    found = estimate_median(rounds[0].tolist())
    assert found.low <= found.median <= found.high
    row = summarise(rounds)
    assert row.min <= row.p50 <= row.p90 <= row.p95 <= row.p99 <= row.max
    assert (row.count, row.rounds) == (150, 5)
    for name, (low, high) in row.intervals.items():
        assert low <= getattr(row, name) <= high
    assert row.median == Figure(row.p50, *row.intervals["p50"], 5)


def test_what_drifts_from_round_to_round_widens_an_interval() -> None:
    """As the timings of one round are alike, to draw single ones anew would see nothing of it."""
    still = np.random.default_rng(1).normal(10, 0.1, (5, 1000))
    drifting = still + np.arange(5)[:, np.newaxis]
    for name in ("mean", "p50", "p99"):
        low, high = summarise(still).intervals[name]
        assert high - low < 0.1
        low, high = summarise(drifting).intervals[name]
        assert high - low > 1


def test_calls_take_turns_and_each_is_timed(clock: Clock) -> None:
    """An odd call takes longer than an even one, and the machine is slower in the second round."""
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds * (1 + order.count(name) % 2) * (1 if len(order) < 30 else 2))

    taken = time_calls(
        {"a": lambda: call("a", 1.0), "b": lambda: call("b", 2.0)}, rounds=2, turn=4.0, min_calls=10
    )
    assert "".join(order) == "a" * 11 + "b" * 11 + "a" * 11 + "b" * 11  # the first of each turn warms up
    assert [sorted(set(np.round(each))) for each in taken["a"]] == [[1000, 2000], [1000, 2000, 4000]]
    mean = time_in_turn({"a": lambda: call("a", 1.0)}, rounds=1, turn=60.0)["a"]
    assert mean == pytest.approx([3000])


# Comparison


@dataclass(frozen=True)
class Comparison:
    """The output of `fmengine bench compare` for two reports."""

    result: Result

    @property
    def marks(self) -> dict[str, str]:
        """WORSE, better or nothing, by figure."""
        rows = [re.fullmatch(r"(.+?)  +.*%(.*)", line) for line in self.result.stdout.splitlines()]
        return {row[1]: row[2].strip() for row in rows if row}


def compared(before: dict[str, Any], after: dict[str, Any], folder: Path) -> Comparison:
    files = [folder / "a.json", folder / "b.json"]
    for path, document in zip(files, (before, after), strict=True):
        path.write_text(json.dumps(document))
    result = CliRunner().invoke(bench, ["compare", *map(str, files)])
    comparison = Comparison(result)
    assert result.exit_code == ("WORSE" in comparison.marks.values()), result.output
    return comparison


def scaled(figure: dict[str, float], factor: float) -> dict[str, float]:
    return figure | {name: factor * figure[name] for name in ("median", "low", "high")}


@pytest.fixture
def before(measured: Measured) -> dict[str, Any]:
    """A report with narrow intervals: those of two rounds on a busy machine may be as wide as a change."""
    document = copy.deepcopy(measured.document)
    for each in figures_in(document):
        if "median" in each:
            each |= {"low": 0.99 * each["median"], "high": 1.01 * each["median"]}
        elif "p50" in each:
            each["intervals"] = {name: [0.99 * each[name], 1.01 * each[name]] for name in each["intervals"]}
    document["server"]["rate"] = {"median": 1000.0, "low": 990.0, "high": 1010.0, "rounds": 2}
    return document


@pytest.mark.slow
def test_a_report_does_not_differ_from_itself(before: dict[str, Any], tmp_path: Path) -> None:
    marks = compared(before, before, tmp_path).marks
    assert len(marks) > 20
    assert set(marks.values()) == {""}


@pytest.mark.slow
def test_compare_is_red_for_a_regression_alone(before: dict[str, Any], tmp_path: Path) -> None:
    after = copy.deepcopy(before)
    after["offline"]["16"] = scaled(before["offline"]["16"], 1 / 3)
    worse = compared(before, after, tmp_path).marks
    assert {name for name, mark in worse.items() if mark} == {"offline, batch 16, pictures/s"}
    better = compared(after, before, tmp_path).marks
    assert better["offline, batch 16, pictures/s"] == "better"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "low", "high", "mark"),
    [
        (780.0, 600.0, 1000.0, ""),  # 22 % less, and the search is no surer than that: what was once an alarm
        (780.0, 770.0, 790.0, "WORSE"),
        (970.0, 965.0, 975.0, ""),  # apart, and yet within what runs differ by
        (0.0, 0.0, 0.0, "WORSE"),  # under the lowest rate that is searched
        (1300.0, 1200.0, 1400.0, "better"),
    ],
)
def test_a_servers_rate_is_compared_by_its_own_interval(
    rate: float, low: float, high: float, mark: str, before: dict[str, Any], tmp_path: Path
) -> None:
    after = copy.deepcopy(before)
    after["server"]["rate"] |= {"median": rate, "low": low, "high": high}
    assert compared(before, after, tmp_path).marks["server, pictures/s"] == mark


@pytest.mark.slow
def test_no_interval_is_made_up(before: dict[str, Any], tmp_path: Path) -> None:
    """What was measured so badly that it could be anything is no alarm; the same, measured well, is one."""
    after = copy.deepcopy(before)
    for each in figures_in(after):
        for name in ("median", "low", "high", "p50", "p99"):
            each |= {name: 3 * each[name]} if name in each else {}
        if "intervals" in each:
            each["intervals"] = {name: [3 * low, 3 * high] for name, (low, high) in each["intervals"].items()}
    assert {mark or "none" for mark in compared(before, after, tmp_path).marks.values()} == {"WORSE", "better"}
    for each in figures_in(after):
        each |= {"low": 0.0, "high": 1e9} if "low" in each else {}
        each |= {"intervals": {key: [0.0, 1e9] for key in each["intervals"]}} if "intervals" in each else {}
    assert set(compared(before, after, tmp_path).marks.values()) == {""}


@pytest.mark.slow
def test_compare_looks_at_all_that_a_gpu_adds(before: dict[str, Any], tmp_path: Path) -> None:
    rate = {"median": 1000.0, "low": 990.0, "high": 1010.0, "rounds": 5}
    network = {"1": {"median": 0.1, "low": 0.1, "high": 0.1, "rounds": 5}}
    before["ways_on_gpu"] = [{"name": "tensorrt, 2 streams", "rate": rate, "network": network}]
    before["pictures_a_joule"] = scaled(rate, 1.0)
    before["serial"]["device"] = {"network": before["serial"]["whole"]}
    after = copy.deepcopy(before)
    after["ways_on_gpu"][0]["network"]["1"] |= {"median": 0.2, "low": 0.2, "high": 0.2}
    after["ways_on_gpu"][0]["rate"] = scaled(rate, 1.5)
    after["pictures_a_joule"] = scaled(rate, 0.5)
    marks = compared(before, after, tmp_path).marks
    assert marks["on the GPU, tensorrt, 2 streams, pictures/s"] == "better"
    assert marks["on the GPU, tensorrt, 2 streams, the network alone, batch 1, ms"] == "WORSE"
    assert marks["pictures a joule"] == "WORSE"
    assert marks["on the GPU, network, p50, ms"] == ""
    assert "the network alone, batch 1, ms" in marks  # by the GPU's events, where single stream's holds the copies


@pytest.mark.slow
def test_compare_notes_what_speaks_against_it(before: dict[str, Any], tmp_path: Path) -> None:
    after = copy.deepcopy(before)
    after["about"]["cpu"] = "another"
    after["warnings"] = warn_of_load(1.25)
    notes = compared(before, after, tmp_path).result.stderr
    assert "note: not the same machine or settings: cpu: " in notes
    assert "note: after: the machine's load was 1.25 before, over 0.5" in notes
    assert "note: before" not in notes


@pytest.mark.slow
def test_changes_as_json(before: dict[str, Any], tmp_path: Path) -> None:
    comparison = compared(before, before, tmp_path)
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    changes = json.loads(CliRunner().invoke(bench, ["compare", *files, "--json"]).stdout)
    assert [change["name"] for change in changes] == list(comparison.marks)
    assert not any(change["worse"] or change["better"] for change in changes)
    assert all(change["before"] == change["after"] for change in changes)


@pytest.mark.slow
def test_a_report_without_processes_is_compared(before: dict[str, Any], tmp_path: Path) -> None:
    """Of the schema before, whose figures are the same but for them."""
    older = copy.deepcopy(before) | {"schema": "fmengine.bench/4"}
    del older["processes"]
    del older["about"]["workers"]
    comparison = compared(older, before, tmp_path)
    assert set(comparison.marks.values()) == {""}
    assert "workers: None before, " in comparison.result.stderr


def test_compare_reports_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema": "another"}')
    result = CliRunner().invoke(bench, ["compare", str(path), str(path)])
    assert result.exit_code == 1
    assert "expected 'fmengine.bench/6'" in str(result.exception)


# Peers, energy, jobs


def test_an_unknown_peer_is_an_error_that_lists_them(paths: list[str], engine: Engine) -> None:
    with pytest.raises(Exception, match="unknown peer 'caffe'; available are torch"):
        contenders.measure_contenders(engine, paths, ["caffe"], 2, 1, {}, lambda _: None)
    with pytest.raises(UnavailableError, match="onnxruntime-cuda runs on a GPU alone"):  # before it is installed
        contenders.measure_contenders(engine, paths, ["onnxruntime-cuda"], 2, 1, {}, lambda _: None)


def test_peers_take_turns_and_are_scored(paths: list[str]) -> None:
    systems = {
        contenders.OURS: lambda part: (0.001 * len(part), ["happy"] * len(part)),
        "slow": lambda part: (0.004 * len(part), ["sad"] * len(part)),
        "untrained": lambda part: (0.002 * len(part), [None, *["happy"] * (len(part) - 1)]),
    }
    descriptions: dict = {name: {"what": name, "trained": name != "untrained"} for name in systems}
    targets = {path: "happy" if number % 4 else "sad" for number, path in enumerate(paths)}
    turns: list[int] = []

    def failing(part):
        turns.append(len(part))
        if len(turns) == 2:
            raise UnavailableError("it ended")
        return 0.001, ["happy"] * len(part)

    systems["failing"], descriptions["failing"] = failing, {}
    failed: dict[str, str] = {}
    found = {
        c.name: c
        for c in contenders._measure_in_turn(systems, descriptions, paths, 2, targets, lambda _: None, failed)
    }
    assert list(found) == [contenders.OURS, "slow", "untrained"]
    assert failed == {"failing": "it ended"}  # and costs the others nothing
    assert len(turns) == 2
    assert found["slow"].times is not None
    assert found["slow"].times.median == pytest.approx(4)
    assert found[contenders.OURS].accuracy == compute_accuracy(["happy"] * 48, [targets[path] for path in paths])
    assert found["slow"].accuracy is not None
    assert (found["slow"].accuracy.share, found["slow"].accuracy.count) == (0.25, 48)
    assert found["untrained"].accuracy is None
    assert [c.unread for c in found.values()] == [0, 0, 1]


def test_energy_is_not_measured_where_there_is_no_counter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.measure_joules(lambda: None) is None
    counter = tmp_path / "intel-rapl:0"
    counter.mkdir()
    (counter / "max_energy_range_uj").write_text("1000000")
    (counter / "energy_uj").write_text("900000")
    wrapped = energy.measure_joules(lambda: (counter / "energy_uj").write_text("400000"))
    assert wrapped == pytest.approx(0.5)  # the counter began anew at its end


def test_energy_is_measured_in_every_round(
    paths: list[str], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    joules, predict_many, rounds = iter([2.0, 4.0, 3.0]), engine.predict_many, []
    monkeypatch.setattr(module, "measure_joules", lambda work, _: work() or next(joules))
    monkeypatch.setattr(engine, "predict_many", lambda paths: rounds.append(1) or predict_many(paths))
    found = module._measure_energy(engine, paths, module.Effort(seconds=0, rounds=3))
    assert found == Figure(16, 12, 24, 3)  # of 48 pictures
    assert len(rounds) == 3
    monkeypatch.setattr(module, "measure_joules", lambda work, _: None)
    assert module._measure_energy(engine, paths, module.Effort(seconds=0, rounds=3)) is None


@pytest.mark.slow
def test_whole_jobs_are_timed_from_the_outside(paths: list[str]) -> None:
    folder = str(Path(paths[0]).parent)
    result = CliRunner().invoke(jobs, [folder, "--rounds", "2"])
    assert result.exit_code == 0, result.exception
    assert re.match(r"\d+ pictures, process start to file", result.stdout)
    assert "fmengine" in result.stdout


@pytest.mark.slow
def test_jobs_of_another_checkout_take_their_turn(paths: list[str], tmp_path: Path) -> None:
    """Of which a stand-in writes the rows, and whence it was imported."""
    package = tmp_path / "engine" / "fmengine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys; from pathlib import Path\n"
        "pictures = os.listdir(sys.argv[sys.argv.index('--batch') + 1])\n"
        "Path(sys.argv[sys.argv.index('--output') + 1]).write_text('\\n' * len(pictures))\n"
        "Path(__file__).with_name('runs').open('a').write(' '.join(sys.argv[-2:]) + '\\n')\n"
    )
    options = ["--base", str(tmp_path), "--rounds", "2", "--option", "--workers", "--option", "threads"]
    result = CliRunner().invoke(jobs, [str(Path(paths[0]).parent), *options])
    assert result.exit_code == 0, result.exception
    assert (package / "runs").read_text() == 2 * "--workers threads\n"
    ours, base = result.stdout.splitlines()[1:]
    assert re.fullmatch(r"fmengine +[\d.]+ s +[\d,]+ pictures/s +1\.00 ×  \[1\.00, 1\.00\]", ours)
    assert re.fullmatch(r"base +[\d.]+ s +[\d,]+ pictures/s +0\.\d\d ×  \[0\.\d\d, 0\.\d\d\]", base)
    assert [turn[2:].split(":")[0] for turn in result.stderr.splitlines()] == [
        f"round {number}, {name}" for number in (1, 2) for name in ("fmengine", "base")
    ]


def test_a_base_that_is_no_checkout_is_an_error(paths: list[str], tmp_path: Path) -> None:
    """The installed engine would be imported in its place, and be as fast as itself."""
    result = CliRunner().invoke(jobs, [str(Path(paths[0]).parent), "--base", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert f"{tmp_path} is no checkout of fmengine: Python imports " in str(result.exception)


def test_jobs_reports_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    device = CliRunner().invoke(jobs, [str(folder), "--device", "gpu"])
    assert device.exit_code == 2
    assert "'gpu'; expected cpu, or cuda:N" in device.stderr
    empty = CliRunner().invoke(jobs, [str(tmp_path)])
    assert isinstance(empty.exception, DataError)
    assert f"no files in {tmp_path}; expected pictures" in str(empty.exception)
