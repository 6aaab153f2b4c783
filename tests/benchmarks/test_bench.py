"""`fmengine bench`: a verdict above the figures, and a stage that is slow shows in its row."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fmengine.engine import Engine
from fmengine.model_file import load_model_file, resolve
from fmengine_bench import bench as module
from fmengine_bench import compare as comparing
from fmengine_bench import contenders, scenarios, stages
from fmengine_bench.bench_cli import bench
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


def test_the_roofline_takes_the_higher_of_arithmetic_and_memory() -> None:
    work = work_of(load_model_file(resolve("alexnet-slim", ("int8",))))
    found = roofline(work, Peak(int8=1000, fp32=100, copy=1e-3), "int8", 1, 1e6)
    assert found.bound == "memory"
    found = roofline(work, Peak(int8=1000, fp32=100, copy=1e6), "int8", 1, 2 * work.operations / 1e9)
    assert found.bound == "arithmetic"
    assert found.share == pytest.approx(0.5)


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


def test_compare_says_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"schema": "another"}')
    result = CliRunner().invoke(bench, ["compare", str(path), str(path)])
    assert result.exit_code == 1
    assert "expected 'fmengine.bench/1'" in str(result.exception)


def test_an_unknown_peer_is_an_error_that_lists_them(paths: list[str], engine: Engine) -> None:
    with pytest.raises(Exception, match="unknown peer 'caffe'; available are torch"):
        contenders.against(engine, paths, ["caffe"], 2, 1, {}, lambda _: None)


def test_peers_take_turns_and_are_scored(paths: list[str]) -> None:
    asks = {
        contenders.OURS: lambda part: (0.001 * len(part), ["happy"] * len(part)),
        "slow": lambda part: (0.004 * len(part), ["sad"] * len(part)),
        "untrained": lambda part: (0.002 * len(part), ["happy"] * len(part)),
    }
    told: dict = {name: {"what": name, "trained": name != "untrained"} for name in asks}
    targets = {path: "happy" if number % 4 else "sad" for number, path in enumerate(paths)}
    found = {c.name: c for c in contenders._in_turn(asks, told, paths, 2, targets, lambda _: None)}
    assert found["slow"].times is not None
    assert found["slow"].times.median == pytest.approx(4)
    assert (found[contenders.OURS].accuracy, found["slow"].accuracy) == (0.75, 0.25)
    assert found["untrained"].accuracy is None


def test_energy_is_not_told_where_there_is_no_counter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fmengine_bench import energy

    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.joules_of(lambda: None) is None
    counter = tmp_path / "intel-rapl:0"
    counter.mkdir()
    (counter / "max_energy_range_uj").write_text("1000000")
    (counter / "energy_uj").write_text("900000")
    wrapped = energy.joules_of(lambda: (counter / "energy_uj").write_text("400000"))
    assert wrapped == pytest.approx(0.5)  # the counter began anew at its end


def test_whole_jobs_are_timed_from_the_outside(paths: list[str]) -> None:
    from fmengine_bench.jobs import jobs

    folder = str(Path(paths[0]).parent)
    result = CliRunner().invoke(jobs, [folder, "--rounds", "2"])
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("48 pictures, process start to file")
    assert "fmengine" in result.stdout
    missing = CliRunner().invoke(jobs, [folder, "--against", "caffe"])
    assert "caffe is not installed" in str(missing.exception)
