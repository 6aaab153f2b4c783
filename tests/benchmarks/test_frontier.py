"""The frontier: every contender has its turns, and what is drawn is what was measured."""

import csv
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fmengine_bench import frontier as module
from fmengine_bench.frontier import frontier
from fmengine_bench.timing import time_in_turn


def test_a_slower_contender_shows() -> None:
    taken = time_in_turn({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, rounds=3, turn=0.02)
    assert [len(figures) for figures in taken.values()] == [3, 3]
    assert min(taken["slow"]) >= 10 > 1 > min(taken["fast"])


def test_model_files_are_scored_and_timed_beside_the_full_network(
    tiny_models: Path, drawn_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCHES", (1,))
    monkeypatch.setattr(time_in_turn, "__defaults__", (2, 0.01))
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]  # cannot be imported
    models = [str(tiny_models / f"tiny.{precision}.onnx") for precision in ("fp32", "int8")]
    options = ["--data", str(drawn_faces / "val"), "--threads", "1", "--output", str(tmp_path / "plot")]
    result = CliRunner().invoke(frontier, [*models, *options])
    assert result.exit_code == 0, result.exception
    assert "OpenVINO is not installed" in result.stderr
    with (tmp_path / "plot.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["tiny.fp32.onnx", "tiny.int8.onnx"]
    assert {row["count"] for row in rows} == {"32"}
    assert all(float(row["times pytorch 1"]) > 1 and float(row["times onnxruntime 1"]) > 1 for row in rows)
    assert "times openvino 1" not in rows[0]
    assert "tiny" in (tmp_path / "plot.svg").read_text()


def test_without_data_nothing_is_measured(tiny_models: Path) -> None:
    result = CliRunner().invoke(frontier, [str(tiny_models / "tiny.int8.onnx")])
    assert result.exit_code == 2
    assert "give --data, or --held-out DATA SHARE" in result.output
