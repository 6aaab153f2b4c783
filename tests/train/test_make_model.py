"""`make model`: every step has its recipe, and takes what an earlier one made; what they took is added up."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fmengine_export.cli import export
from fmengine_train.cli import train
from fmengine_train.networks import make_network_config
from fmengine_train.recipe import Recipe

ROOT = Path(__file__).parents[2]


def list_lines(target: str) -> list[str]:
    """List all that a target would run."""
    dry = ["make", "--dry-run", "--always-make", target, "DATA=faces", "RUNS=runs"]
    said = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return said.replace("\\\n", " ").splitlines()


def read_steps(lines: list[str]) -> list[click.Context]:
    """Read the `fmengine train` lines among others as the command reads them."""
    return [train.make_context("train", shlex.split(line)[2:]) for line in lines if "/fmengine train " in line]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list_lines("model")


@pytest.fixture(scope="module")
def steps(lines: list[str]) -> list[click.Context]:
    return read_steps(lines)


def test_the_last_step_trains_what_ships(steps: list[click.Context]) -> None:
    assert steps[-1].params["folder"] == Path("runs/alexnet-slim")
    assert [step.params["resume"] for step in steps] == [True] * len(steps)


def test_every_step_takes_what_an_earlier_one_made(
    lines: list[str], steps: list[click.Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (first,) = [shlex.split(line) for line in lines if "fmengine_train.faceres " in line]
    made = {Path(first[-1]): Recipe(model="mobilenet-112", dropout=0.3)}
    for step in steps:
        recipe = Recipe.load(step.params["recipe_file"], {})
        assert {*step.params["teachers"]} <= made.keys()
        if source := step.params["source"]:
            assert make_network_config(made[Path(source)], 2) == make_network_config(recipe, 2)
        made[step.params["folder"]] = recipe
    assert len(made) == len(steps) + 1


@pytest.mark.parametrize("student", [-2, -1])
def test_a_student_is_taught_as_its_recipe_says(steps: list[click.Context], student: int) -> None:
    said = steps[student].params["recipe_file"].read_text(encoding="utf-8")
    (teacher,), (transfer,) = steps[student].params["teachers"], steps[student].params["transfer"]
    assert f"--teacher {teacher}" in said
    assert f"--transfer FER2013-OTHER/{transfer.relative_to('faces/fer2013-other')}" in said
    source = steps[student].params["source"]
    assert re.findall(r"--from (\S+)", said) == ([source] if source else [])


def test_weights_for_own_labels_are_made_as_their_recipes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = list_lines("expressions")
    made = ["runs/faceres", "engine/fmengine/model/shipped/alexnet-slim.fp16.onnx"]
    for step in read_steps(lines):
        said = step.params["recipe_file"].read_text(encoding="utf-8")
        needed = [step.params["source"], *map(str, step.params["teachers"])]
        assert set(needed) <= set(made)
        assert re.findall(r"--(?:from|teacher) (\S+)", said)[: len(needed)] == needed
        made.append(str(step.params["folder"]))
    (last,) = [shlex.split(line) for line in lines if "fmengine_train.pretrained " in line]
    assert last[-3:-1] == made[-2:], "the mean of the last two ships"


def test_what_an_interrupted_export_left_is_replaced(lines: list[str]) -> None:
    (line,) = [line for line in lines if "/fmengine export " in line]
    assert export.make_context("export", shlex.split(line)[2:]).params["overwrite"]


def times(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fmengine_train.times", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_hours_are_added_up(tmp_path: Path) -> None:
    for name, seconds in (("short", (60, 30.4)), ("long", (3600,))):
        (tmp_path / name).mkdir()
        rows = "".join(f"{epoch},{taken}\n" for epoch, taken in enumerate(seconds, start=1))
        (tmp_path / name / "metrics.csv").write_text(f"epoch,seconds\n{rows}")
    printed = times(tmp_path / "short/metrics.csv", tmp_path / "long/metrics.csv").stdout.splitlines()
    assert [line.split() for line in printed] == [
        ["short", "2", "epochs", "0:01:30"],
        ["long", "1", "epoch", "1:00:00"],
        ["together", "1:01:30"],
    ]


@pytest.mark.slow
def test_another_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("epoch,seconds\n1\n")
    done = times(tmp_path / "other.csv")
    assert done.returncode == 2
    assert "expected the metrics.csv of a run" in done.stderr
    assert "Traceback" not in done.stderr
