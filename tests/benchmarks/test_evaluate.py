"""`fmengine eval`: the same figures as by hand, and what it says of what it cannot read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fmengine.cli import cli
from fmengine.engine import Engine
from fmengine.errors import DataError, ModelError, OutputError
from fmengine_train.data import find, is_held_out


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["eval", *(str(argument) for argument in arguments)])


@pytest.fixture
def model(tiny_models: Path) -> Path:
    return tiny_models / "tiny.fp32.onnx"


@pytest.fixture
def with_broken(drawn_faces: Path, tmp_path: Path) -> Path:
    """The validation pictures and two that are none."""
    root = tmp_path / "faces"
    shutil.copytree(drawn_faces / "val", root)
    (root / "happy" / "broken.png").write_bytes(b"no picture")
    (root / "sad" / "empty.png").touch()
    return root


def test_figures_are_those_of_the_engine(model: Path, drawn_faces: Path) -> None:
    result = run(model, drawn_faces / "val", "--json")
    assert result.exit_code == 0, result.output
    (figures,) = json.loads(result.stdout)
    with Engine.load(model, "onnxruntime") as engine:
        right = {
            label: [engine.predict(path).label == label for path in (drawn_faces / "val" / label).iterdir()]
            for label in ("happy", "sad")
        }
    assert figures["data"] == str(drawn_faces / "val")
    assert (figures["labels"], figures["count"], figures["unreadable"]) == (["happy", "sad"], 32, [])
    assert figures["recall"] == {label: np.mean(answers) for label, answers in right.items()}
    assert figures["accuracy"] == np.mean(right["happy"] + right["sad"])
    assert [sum(row) for row in figures["confusion"]] == [16, 16]


def test_the_table_shows_the_same(model: Path, drawn_faces: Path) -> None:
    (figures,) = json.loads(run(model, drawn_faces / "val", "--json").stdout)
    text = run(model, drawn_faces / "val").stdout
    assert f"{drawn_faces / 'val'}: 32 pictures" in text
    assert f"accuracy           {figures['accuracy']:7.2%}" in text
    assert f"recall {figures['recall']['sad']:7.2%}" in text


def test_several_folders_are_scored_one_by_one(model: Path, drawn_faces: Path) -> None:
    figures = json.loads(run(model, drawn_faces / "val", drawn_faces / "train", "--json").stdout)
    assert [f["count"] for f in figures] == [32, 128]


def test_unreadable_pictures_are_reported_and_left_out(model: Path, with_broken: Path) -> None:
    # A process of its own: this is the exit code that scripts see.
    command = [sys.executable, "-m", "fmengine", "eval", str(model), str(with_broken), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 3
    (figures,) = json.loads(result.stdout)
    broken, empty = with_broken / "happy" / "broken.png", with_broken / "sad" / "empty.png"
    assert figures["unreadable"] == [str(broken), str(empty)]
    assert figures["count"] == 32
    assert f"left out {broken}: " in result.stderr
    assert f"left out {empty}: " in result.stderr


def test_a_label_without_a_folder_has_no_recall(model: Path, drawn_faces: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn_faces / "val" / "sad", tmp_path / "sad")
    (figures,) = json.loads(run(model, tmp_path, "--json").stdout)
    assert figures["recall"]["happy"] is None
    assert figures["balanced_accuracy"] == figures["recall"]["sad"] == figures["accuracy"]
    assert "recall     n/a" in run(model, tmp_path).stdout


def test_folders_of_other_labels_are_reported(model: Path, tmp_path: Path) -> None:
    (tmp_path / "angry").mkdir()
    (tmp_path / "glad").mkdir()
    result = run(model, tmp_path)
    assert isinstance(result.exception, DataError)
    assert "has no folder named happy or sad; it has angry, glad" in str(result.exception)


def test_a_folder_without_folders_is_reported(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path)
    assert isinstance(result.exception, DataError)
    assert "it has no folders" in str(result.exception)


def test_a_missing_folder_is_reported(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "none")
    assert isinstance(result.exception, DataError)
    assert "none is no folder; expected one with a folder for each of happy, sad" in str(result.exception)


def test_empty_label_folders_are_reported(model: Path, tmp_path: Path) -> None:
    (tmp_path / "happy").mkdir()
    assert "no pictures in" in str(run(model, tmp_path).exception)


def test_nothing_but_broken_pictures_is_reported(model: Path, tmp_path: Path) -> None:
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / "broken.png").write_bytes(b"no picture")
    result = run(model, tmp_path)
    assert isinstance(result.exception, DataError)
    assert "holds 1 file, and none has an answer" in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize("output", [["--json"], []])
def test_names_need_not_be_utf8(model: Path, with_broken: Path, tmp_path: Path, output: list[str]) -> None:
    odd = with_broken.rename(f"{tmp_path}/\udcff")
    (odd / "happy" / "broken.png").rename(odd / "happy" / "a\n\udcfe.png")
    page = tmp_path / "page.html"
    result = run(model, odd, "--html", page, *output)
    assert result.exit_code == 3, result.exception
    assert f"{tmp_path}/%FF" in result.stdout
    assert f"left out {tmp_path}/%FF/happy/a%0A%FE.png: no known" in result.stderr
    assert f"{tmp_path}/%FF" in page.read_text(encoding="utf-8")
    assert os.fsencode(odd) not in result.stdout_bytes


def test_one_picture_is_one_in_words(model: Path, drawn_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "sad").mkdir()
    shutil.copy(drawn_faces / "val" / "sad" / "000.png", tmp_path / "sad")
    assert f"{tmp_path}: 1 picture; " in run(model, tmp_path).stdout


def test_pictures_that_the_model_has_no_number_for_are_failures(blind: Path) -> None:
    model, faces = blind / "blind.onnx", blind / "faces"
    result = run(model, faces)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 3
    assert "1 happy, 0 sad" in result.stdout
    assert f"left out {faces}/happy/black.png: the model answers nan for happy" in result.stderr
    (faces / "happy" / "gray.png").unlink()
    nothing = run(model, faces)
    assert isinstance(nothing.exception, DataError)
    assert "holds 1 file, and none has an answer; the first: " in str(nothing.exception)


def test_held_out_is_what_training_does_not_see(model: Path, drawn_faces: Path) -> None:
    root = drawn_faces / "train"
    (figures,) = json.loads(run(model, root, "--held-out", "0.3", "--json").stdout)
    expected = [item for item in find([root], ("happy", "sad"), 0.3) if item.split == "val"]
    assert 0 < len(expected) < 128
    assert [sum(row) for row in figures["confusion"]] == [
        sum(item.label == label for item in expected) for label in ("happy", "sad")
    ]
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.png")]
    assert figures["count"] == sum(is_held_out(name, 0.3) for name in names)


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1"])
def test_a_share_out_of_range_is_a_usage_error(model: Path, drawn_faces: Path, share: str) -> None:
    assert run(model, drawn_faces / "val", "--held-out", share).exit_code == 2


def test_a_missing_model_is_reported(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "none.onnx", drawn_faces / "val")
    assert isinstance(result.exception, ModelError)


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--html", "page.htm", "the name must end in .html"),
        ("--svg", "plots.png", "the name must end in .svg"),
        ("--html", "none/page.html", "there is no folder"),
        ("--svg", "old.svg", "exists; replace it with --overwrite"),
        ("--html", "folder.html", "it is not a regular file"),
    ],
)
def test_files_that_cannot_be_written_are_reported_before_the_work(
    tmp_path: Path, option: str, name: str, message: str
) -> None:
    (tmp_path / "old.svg").touch()
    (tmp_path / "folder.html").mkdir()
    result = run(tmp_path / "none.onnx", tmp_path / "no faces", option, tmp_path / name)
    assert isinstance(result.exception, OutputError)
    assert message in str(result.exception)


def test_files_that_exist_are_replaced_on_request(model: Path, drawn_faces: Path, tmp_path: Path) -> None:
    page, plots = tmp_path / "page.html", tmp_path / "plots.svg"
    for path in (page, plots):
        path.write_text("old")
    result = run(model, drawn_faces / "val", "--html", page, "--svg", plots, "--overwrite")
    assert result.exit_code == 0, result.exception
    assert all("<svg" in path.read_text(encoding="utf-8") for path in (page, plots))
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "plots.svg"}


def test_the_plots_alone_are_an_svg(model: Path, drawn_faces: Path, tmp_path: Path) -> None:
    result = run(model, drawn_faces / "val", "--svg", tmp_path / "plots.svg")
    assert result.exit_code == 0, result.exception
    text = (tmp_path / "plots.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "calibration error" in text
    assert run(model, drawn_faces / "val", drawn_faces / "train", "--svg", tmp_path / "two.svg").exit_code == 2
