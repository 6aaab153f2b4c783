"""The frontier: every contender has its turns, and what is drawn is what was measured."""

import csv
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fmengine.errors import OutputError
from fmengine_bench import frontier as module
from fmengine_bench.frontier import frontier
from fmengine_bench.timing import Call, time_in_turn

from .conftest import Clock


def test_a_slower_contender_shows(clock: Clock) -> None:
    calls = {"slow": lambda: time.sleep(0.01), "fast": lambda: time.sleep(0.001)}
    taken = time_in_turn(calls, rounds=3, turn=0.02)
    assert taken == {"slow": pytest.approx([10] * 3), "fast": pytest.approx([1] * 3)}


# Milliseconds that the test below makes of each network.
TIMES = {"pytorch": 8.0, "onnxruntime": 6.0, "tiny.fp32.onnx": 2.0, "tiny.int8.onnx": 1.0}


@pytest.mark.slow
def test_model_files_are_scored_and_timed_beside_the_full_network(
    tiny_models: Path, drawn_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def timed(contenders: dict[str, Call]) -> dict[str, list[float]]:
        for name, call in contenders.items():
            call()
            called.append(name)
        return {name: [TIMES[name], 2 * TIMES[name], 3 * TIMES[name]] for name in contenders}

    monkeypatch.setattr(module, "BATCHES", (1,))
    monkeypatch.setattr(module, "time_in_turn", timed)
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]  # cannot be imported
    models = [str(tiny_models / f"tiny.{precision}.onnx") for precision in ("fp32", "int8")]
    (tmp_path / "plot.1.svg").write_text("an older one")
    output = ["--output", str(tmp_path / "plot.1"), "--overwrite"]
    options = ["--data", str(drawn_faces / "val"), "--threads", "1", *output]
    result = CliRunner().invoke(frontier, [*models, *options])
    assert result.exit_code == 0, result.exception
    assert "OpenVINO is not installed" in result.stderr
    assert called == list(TIMES)
    with (tmp_path / "plot.1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["tiny.fp32.onnx", "tiny.int8.onnx"]
    assert {row["count"] for row in rows} == {"32"}
    columns = ("milliseconds 1", "times pytorch 1", "times onnxruntime 1")
    assert [[float(row[column]) for column in columns] for row in rows] == [[4, 4, 3], [2, 8, 6]]
    assert "times openvino 1" not in rows[0]
    assert "tiny" in (tmp_path / "plot.1.svg").read_text()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nodir/plot", "there is no folder"),
        ("old", "old.csv exists; replace it with --overwrite"),
        ("plot", "plot.svg exists; replace it with --overwrite"),
    ],
)
def test_outputs_are_checked_before_the_work(
    output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("no-model.onnx", "old.csv", "plot.svg"):
        Path(name).write_text("kept")
    result = CliRunner().invoke(frontier, ["no-model.onnx", "--data", "nowhere", "--output", output])
    assert isinstance(result.exception, OutputError)  # and not for the model, which cannot be read
    assert message in str(result.exception)
    assert Path("old.csv").read_text() == Path("plot.svg").read_text() == "kept"
    assert not Path("plot.csv").exists()


def test_without_data_nothing_is_measured(tiny_models: Path) -> None:
    result = CliRunner().invoke(frontier, [str(tiny_models / "tiny.int8.onnx")])
    assert result.exit_code == 2
    assert "give --data, or --held-out DATA SHARE" in result.output
