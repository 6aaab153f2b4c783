"""`fmengine bench`: a verdict above the figures, and a stage that is slow shows in its row."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pynvml
import pytest
from click.testing import CliRunner

from fmengine.engine import Engine
from fmengine.errors import DataError, FmengineError, OutputError, UnavailableError
from fmengine.model_file import load_model_file, resolve
from fmengine_bench import bench as module
from fmengine_bench import compare as comparing
from fmengine_bench import contenders, energy, limits, scenarios, stages
from fmengine_bench.bench_cli import bench
from fmengine_bench.jobs import jobs
from fmengine_bench.limits import Peak, roofline, work_of
from fmengine_bench.timing import figure, summary

pytestmark = pytest.mark.timeout(120)

QUICK = ["--seconds", "0.1", "--least", "20", "--rounds", "2"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return module.drawn_pictures(tmp_path_factory.mktemp("drawn"), 48)


@pytest.fixture
def engine():
    with Engine.load(backend="onnxruntime", queue_size=4096) as opened:
        yield opened


@pytest.fixture(autouse=True)
def short_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmengine_bench.limits.SIDE", 64)
    monkeypatch.setattr("fmengine_bench.limits.COPIED", 1 << 16)


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
def test_peers_are_looked_up_before_the_work(command: str, paths: list[str]) -> None:
    def ask(peers: str) -> FmengineError:
        before = [jobs, [str(Path(paths[0]).parent)]] if command == "jobs" else [bench, ["--model", "not-there"]]
        result = CliRunner().invoke(before[0], [*before[1], "--against", peers])
        assert isinstance(result.exception, FmengineError)
        return result.exception

    unknown = ask("fer, caffe")
    assert unknown.exit_code == 2
    assert str(unknown).startswith("unknown peer 'caffe'; available are torch, torch-compile, ")
    missing = ask("fer")
    assert missing.exit_code == 4
    assert str(missing) == "fer is not installed; run: fmengine bench install fer"


def slowed(engine: Engine, stage: str, seconds: float) -> None:
    method = getattr(engine, f"_{stage}")

    def slow(*arguments):
        time.sleep(seconds)
        return method(*arguments)

    setattr(engine, f"_{stage}", slow)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_slowed_stage_shows_in_its_row(engine: Engine, paths: list[str], stage: str) -> None:
    slowed(engine, stage, 0.02)
    found = stages.serial(engine, paths, 0, least=10)
    assert found.stages[stage].min >= 20
    assert all(row.p50 < 20 for name, row in found.stages.items() if name != stage)
    assert found.whole.min >= 20


def test_the_overlapped_mode_says_what_hides_behind_compute(engine: Engine, paths: list[str]) -> None:
    found = stages.overlapped(engine, paths)
    assert found.pictures == len(paths)
    assert set(found.busy) == set(stages.STAGES)
    assert all(0 <= found.hidden[stage] <= found.busy[stage] + 1e-9 for stage in found.hidden)
    assert engine._read.__func__ is Engine._read  # nothing is left behind


def test_time_within_spans() -> None:
    merged = stages._union([(3, 5), (0, 1), (0.5, 2)])
    assert merged == [(0, 2), (3, 5)]
    assert stages._within((1, 4), merged) == 2


def test_the_whole_report(paths: list[str], tmp_path: Path) -> None:
    output, page = tmp_path / "a.json", tmp_path / "a.html"
    folder = str(Path(paths[0]).parent)
    result = CliRunner().invoke(
        bench, [*QUICK, "--pictures", folder, "--output", str(output), "--html", str(page)]
    )
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("parity holds on 48 pictures: 0 pixels differ")
    for part in (
        "single stream",
        "offline",
        "server",
        "of the roofline",
        "what holds it back",
        "overlapped",
        "energy",
    ):
        assert part in result.stdout
    document = json.loads(output.read_text())
    assert document["schema"] == module.SCHEMA
    assert document["passed"]
    assert set(document["serial"]["stages"]["compute"]) == {
        "count",
        "min",
        "mean",
        "p50",
        "p90",
        "p95",
        "p99",
        "max",
    }
    assert document["about"]["model sha256"]
    assert "<svg" in page.read_text()


def test_wrong_answers_get_no_figures(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Engine._preprocess
    monkeypatch.setattr(Engine, "_preprocess", lambda self, pixels: 255 - original(self, pixels))
    result = CliRunner().invoke(bench, [*QUICK, "--pictures", str(Path(paths[0]).parent)])
    assert result.exit_code == 1
    assert "parity IS BROKEN" in result.stdout
    assert "no figures" in result.stdout
    assert "pictures/s" not in result.stdout


def test_the_server_finds_the_rate_that_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def arrivals(engine, paths, rate, seconds):
        return 5.0 if rate <= 730 else float("inf")

    monkeypatch.setattr(scenarios, "_arrivals", arrivals)
    found = scenarios.server(None, [], 10.0, 1.0)  # type: ignore[arg-type]
    assert 730 * 0.95 <= found.rate <= 730


def test_a_server_that_is_too_slow_is_not_searched_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def arrivals(engine, paths, rate, seconds):
        return float("inf")

    monkeypatch.setattr(scenarios, "_arrivals", arrivals)
    found = scenarios.server(None, [], 10.0, 1.0)  # type: ignore[arg-type]
    assert (found.rate, list(found.tried)) == (0, [scenarios.LOWEST])


def test_what_the_shipped_network_asks_for() -> None:
    work = work_of(load_model_file(resolve("alexnet-slim", ("int8",))))
    # Five convolutions at 80 pixels: 24 channels of 5x5 at stride 2, and so on; products counted once, times two.
    assert 1.0e8 < work.operations < 1.6e8
    assert 1.0e6 < work.weights < 1.3e6
    half = work_of(load_model_file(resolve("alexnet-slim", ("fp16",))))
    assert half.operations == work.operations
    assert half.activations == 2 * work.activations


def test_the_roofline_takes_the_higher_of_arithmetic_and_memory() -> None:
    work = work_of(load_model_file(resolve("alexnet-slim", ("int8",))))
    found = roofline(work, Peak({"int8": 1000, "fp32": 100}, copy=1e-3), "int8", 1, 1e6)
    assert found.bound == "memory"
    found = roofline(work, Peak({"int8": 1000, "fp32": 100}, copy=1e6), "int8", 1, 2 * work.operations / 1e9)
    assert found.bound == "arithmetic"
    assert found.share == pytest.approx(0.5)


def test_an_fp16_file_is_held_against_what_the_machine_computes_it_in() -> None:
    work = work_of(load_model_file(resolve("alexnet-slim", ("fp16",))))
    cpu, gpu = Peak({"int8": 1000, "fp32": 100}, 1e6), Peak({"fp16": 1000, "fp32": 100}, 1e6)
    assert roofline(work, cpu, "fp16", 1, 1).arithmetic == pytest.approx(work.operations / 1e8)
    assert roofline(work, gpu, "fp16", 1, 1).arithmetic == pytest.approx(work.operations / 1e9)


def test_a_gpus_peak_is_measured_by_pytorch_where_it_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waits, products = [], []
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *matrices: products.append(multiply(*matrices)))
    peak = limits._peak_in_torch(torch.device("cpu"), lambda: waits.append(1), 32, 1 << 16)
    assert set(peak.operations) == {"fp16", "fp32"}
    assert min(*peak.operations.values(), peak.copy) > 0
    assert len(waits) > len(products) > 0  # after every product and copy: a GPU works on when a call has returned
    assert limits.measure_gpu_peak(torch.cuda.device_count()) is None


class Nvml:
    """NVIDIA's library as far as it is asked: its names are the real package's."""

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
    assert energy.joules_of(lambda: done.append(1), "0000:01:00.0") == 7.5
    assert done
    assert energy.joules_of(lambda: None, "0000:02:00.0") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.joules_of(lambda: None, "0000:01:00.0") is None


def test_intervals_hold_the_median_and_percentiles_are_in_order() -> None:
    values = list(np.random.default_rng(1).normal(10, 1, 30))
    found = figure(values)
    assert found.low <= found.median <= found.high
    rows = summary(values)
    assert rows.min <= rows.p50 <= rows.p90 <= rows.p95 <= rows.p99 <= rows.max


def document_of(paths: list[str], tmp_path: Path) -> dict:
    output = tmp_path / "report.json"
    result = CliRunner().invoke(bench, [*QUICK, "--pictures", str(Path(paths[0]).parent), "--output", str(output)])
    assert result.exit_code == 0, result.exception
    return json.loads(output.read_text())


def test_compare_is_red_for_a_regression_alone(paths: list[str], tmp_path: Path) -> None:
    before = document_of(paths, tmp_path)
    rate = before["offline"]["16"]  # of two rounds on a busy machine the interval may be as wide as the change
    rate |= {"low": 0.99 * rate["median"], "high": 1.01 * rate["median"]}
    assert not [change for change in comparing.compare(before, before) if change.worse or change.better]
    after = json.loads(json.dumps(before))
    after["offline"]["16"] = {key: value / 3 if key != "rounds" else value for key, value in rate.items()}
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, document in zip(files, (before, after), strict=True):
        path.write_text(json.dumps(document))
    worse = CliRunner().invoke(bench, ["compare", *map(str, files)])
    assert worse.exit_code == 1
    assert "offline, batch 16, pictures/s" in worse.stdout
    assert worse.stdout.count("WORSE") == 1
    better = CliRunner().invoke(bench, ["compare", *map(str, reversed(files))])
    assert better.exit_code == 0
    assert "better" in better.stdout


def test_compare_looks_at_every_way_on_a_gpu(paths: list[str], tmp_path: Path) -> None:
    before = document_of(paths, tmp_path)
    rate = {"median": 1000.0, "low": 990.0, "high": 1010.0, "rounds": 5}
    network = {"1": {"median": 0.1, "low": 0.1, "high": 0.1, "rounds": 5}}
    before["ways_on_gpu"] = [{"name": "tensorrt, 2 streams", "rate": rate, "network": network}]
    after = json.loads(json.dumps(before))
    after["ways_on_gpu"][0]["network"]["1"] |= {"median": 0.2, "low": 0.2, "high": 0.2}
    after["ways_on_gpu"][0]["rate"] |= {"median": 1500.0, "low": 1490.0, "high": 1510.0}
    changes = {change.name: change for change in comparing.compare(before, after)}
    assert changes["on the GPU, tensorrt, 2 streams, pictures/s"].better
    assert changes["on the GPU, tensorrt, 2 streams, the network alone, batch 1, ms"].worse


def test_compare_says_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema": "another"}')
    result = CliRunner().invoke(bench, ["compare", str(path), str(path)])
    assert result.exit_code == 1
    assert "expected 'fmengine.bench/2'" in str(result.exception)


def test_an_unknown_peer_is_an_error_that_lists_them(paths: list[str], engine: Engine) -> None:
    with pytest.raises(Exception, match="unknown peer 'caffe'; available are torch"):
        contenders.against(engine, paths, ["caffe"], 2, 1, {}, lambda _: None)
    with pytest.raises(UnavailableError, match="onnxruntime-cuda runs on a GPU alone"):  # before it is installed
        contenders.against(engine, paths, ["onnxruntime-cuda"], 2, 1, {}, lambda _: None)


def test_peers_take_turns_and_are_scored(paths: list[str]) -> None:
    asks = {
        contenders.OURS: lambda part: (0.001 * len(part), ["happy"] * len(part)),
        "slow": lambda part: (0.004 * len(part), ["sad"] * len(part)),
        "untrained": lambda part: (0.002 * len(part), [None, *["happy"] * (len(part) - 1)]),
    }
    told: dict = {name: {"what": name, "trained": name != "untrained"} for name in asks}
    targets = {path: "happy" if number % 4 else "sad" for number, path in enumerate(paths)}
    turns: list[int] = []

    def failing(part):
        turns.append(len(part))
        if len(turns) == 2:
            raise UnavailableError("it ended")
        return 0.001, ["happy"] * len(part)

    asks["failing"], told["failing"] = failing, {}
    failed: dict[str, str] = {}
    found = {c.name: c for c in contenders._in_turn(asks, told, paths, 2, targets, lambda _: None, failed)}
    assert list(found) == [contenders.OURS, "slow", "untrained"]
    assert failed == {"failing": "it ended"}  # and costs the others nothing
    assert len(turns) == 2
    assert found["slow"].times is not None
    assert found["slow"].times.median == pytest.approx(4)
    assert (found[contenders.OURS].accuracy, found["slow"].accuracy) == (0.75, 0.25)
    assert found["untrained"].accuracy is None
    assert [c.unread for c in found.values()] == [0, 0, 1]


def test_energy_is_not_told_where_there_is_no_counter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.joules_of(lambda: None) is None
    counter = tmp_path / "intel-rapl:0"
    counter.mkdir()
    (counter / "max_energy_range_uj").write_text("1000000")
    (counter / "energy_uj").write_text("900000")
    wrapped = energy.joules_of(lambda: (counter / "energy_uj").write_text("400000"))
    assert wrapped == pytest.approx(0.5)  # the counter began anew at its end


def test_whole_jobs_are_timed_from_the_outside(paths: list[str]) -> None:
    folder = str(Path(paths[0]).parent)
    result = CliRunner().invoke(jobs, [folder, "--rounds", "2"])
    assert result.exit_code == 0, result.exception
    assert re.match(r"\d+ pictures, process start to file", result.stdout)
    assert "fmengine" in result.stdout


def test_jobs_says_what_it_cannot_do(paths: list[str], tmp_path: Path) -> None:
    device = CliRunner().invoke(jobs, [str(Path(paths[0]).parent), "--device", "gpu"])
    assert device.exit_code == 2
    assert "'gpu'; expected cpu, or cuda:N" in device.stderr
    empty = CliRunner().invoke(jobs, [str(tmp_path)])
    assert isinstance(empty.exception, DataError)
    assert f"no files in {tmp_path}; expected pictures" in str(empty.exception)
