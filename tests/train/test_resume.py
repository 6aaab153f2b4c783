"""A run is gone on with by its folder alone, ships its best epoch, and says what it cannot do."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from fmengine.errors import DataError, ModelError
from fmengine_train import data
from fmengine_train import train as loop
from fmengine_train.checkpoint import read_document, read_tensors, write_tensors
from fmengine_train.cli import train
from fmengine_train.recipe import Recipe
from fmengine_train.summary import list_validation_notes, split_validation
from fmengine_train.trainer import Trainer

SMALL = {"size": 32, "batch_size": 32, "warmup": 0.0, "precision": "fp32", "augment": 0.0}
OPTIONS = ("--size", "32", "--batch-size", "32", "--precision", "fp32", "--device", "cpu")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train, list(map(str, arguments)))


Make = Callable[..., Trainer]


@pytest.fixture
def make(faces: data.Dataset, tmp_path: Path) -> Make:
    """Makes a trainer whose pass over the pictures does nothing, and whose epochs are as good as told."""

    def trainer(accuracies: list[float], **changes: Any) -> Trainer:
        made = Trainer(Recipe(**SMALL | changes), faces, tmp_path, torch.device("cpu"))
        targets = faces.targets[faces.val]

        def train_epoch() -> tuple[float, float]:
            made.ema.module.get_parameter("classifier.6.bias").data.fill_(made.epoch + 1)
            return 0.5, 0.5

        def evaluate(fast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
            epoch = int(made.ema.module.get_parameter("classifier.6.bias")[0])
            wrong = np.arange(len(targets)) >= round(accuracies[epoch - 1] * len(targets))
            answers = np.where(wrong, 1 - targets, targets)
            return torch.eye(2)[answers], torch.from_numpy(targets)

        made.train_epoch, made.evaluate = train_epoch, evaluate  # type: ignore[method-assign]
        return made

    return trainer


# The best epoch


def shipped_epoch(folder: Path) -> int:
    tensors, document = read_tensors(folder / "model.safetensors")
    assert document["epoch_that_ships"] == int(tensors["classifier.6.bias"][0])
    return document["epoch_that_ships"]


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 4)])
def test_the_best_epoch_ships_or_the_last(make: Make, keep: str, epoch: int) -> None:
    trainer = make([0.6, 0.9, 0.9, 0.7], epochs=4, keep=keep)
    scores = loop.train(trainer, lambda text: None)
    assert shipped_epoch(trainer.folder) == epoch
    assert scores.accuracy == pytest.approx((0, 0.6, 0.9, 0.9, 0.7)[epoch], abs=0.02)
    assert json.loads((trainer.folder / "training.json").read_text())["epochs_finished"] == 4


def test_training_stops_when_no_epoch_gets_better(make: Make) -> None:
    said: list[str] = []
    trainer = make([0.6, 0.9, 0.8, 0.8, 1.0], epochs=5, patience=2)
    loop.train(trainer, said.append)
    assert (trainer.epoch, shipped_epoch(trainer.folder)) == (4, 2)
    assert said[-1] == "stopped after epoch 4: none of the last 2 epochs was better"


def test_a_model_that_a_crash_left_behind_is_written_again(make: Make) -> None:
    trainer = make([0.6, 0.9], epochs=2)
    loop.train(trainer, lambda text: None)
    before = (trainer.folder / "model.safetensors").read_bytes()
    write_tensors(trainer.folder / "model.safetensors", {}, {"epoch_that_ships": 1})
    again = make([0.6, 0.9], epochs=2)
    again.restore()
    loop.train(again, lambda text: None)
    assert (trainer.folder / "model.safetensors").read_bytes() == before


def test_the_best_epochs_weights_are_in_the_checkpoint_of_a_later_one(make: Make) -> None:
    """A run that is killed before it wrote the model, some epochs after the best one, has lost nothing."""
    trainer = make([0.6, 0.9, 0.9, 0.7], epochs=4)
    loop.train(trainer, lambda text: None)
    (trainer.folder / "model.safetensors").unlink()
    again = make([0.6, 0.9, 0.9, 0.7], epochs=4)
    again.restore()
    loop.train(again, lambda text: None)
    assert shipped_epoch(trainer.folder) == 2


def test_the_epoch_is_chosen_on_one_half_and_told_of_the_other(faces: data.Dataset) -> None:
    many = np.tile(faces.val, 4)
    parts = np.array(["select"] * 64 + ["report"] * 64)
    repeated = dataclasses.replace(faces, val=many, parts=parts[np.argsort(np.argsort(faces.parts[faces.val]))])
    repeated.val = np.arange(128) % len(faces.targets)
    repeated.parts, repeated.targets = parts, np.arange(128) % 2
    select, report = split_validation(repeated)
    assert (int(select.sum()), int(report.sum()), bool((select & report).any())) == (64, 64, False)
    assert all(mask.all() for mask in split_validation(faces))  # 16 each would be too few
    assert list_validation_notes(repeated) == []


def test_a_run_that_takes_long_says_how_it_could_be_shorter(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LONG", -1)
    said: list[str] = []
    loop.train(make([0.6, 0.9], epochs=2), said.append)
    (note,) = [text for text in said if text.startswith("note: ")]
    assert "fewer --epochs, --from alexnet-slim or --kind linear take less" in note


# The folder alone


@pytest.mark.slow
def test_a_run_goes_on_by_its_folder_alone_and_for_longer(
    drawn_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(drawn_faces.parent)
    folder = tmp_path / "run"
    assert run(drawn_faces.name, "--run", folder, *OPTIONS, "--epochs", "1").exit_code == 0
    monkeypatch.chdir(tmp_path)
    result = run("--resume", "--run", "run", "--epochs", "2", "--device", "cpu")
    assert result.exit_code == 0, result.exception
    assert "epochs finished: 1 of 2" in result.stderr
    document = read_document(folder / "checkpoint.safetensors")
    assert (document["recipe"]["size"], document["recipe"]["epochs"], len(document["history"])) == (32, 2, 2)
    fewer = run("--resume", "--run", "run", "--epochs", "1", "--device", "cpu")
    assert isinstance(fewer.exception, DataError)
    assert "epochs was 2, is 1; leave those options out (--epochs can be raised" in str(fewer.exception)
    other = run("--resume", "--run", "run", "--from", "alexnet-slim")
    assert "began with fresh weights, not alexnet-slim" in str(other.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "DATA is missing"),
        (("--resume", "--run", "none"), "none holds no checkpoint.safetensors to go on from"),
    ],
)
def test_without_data_there_must_be_a_run(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipe": {"beams": 3}, "version": "9.9"}, ModelError, "of another version: fmengine 9.9 wrote it"),
        ({"recipe": None}, ModelError, "of another version"),
        (
            {"arguments": None},
            DataError,
            "does not remember its pictures, as those of older versions do not; give",
        ),
    ],
)
def test_a_run_of_another_version_is_told(
    tiny_run: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    document = read_document(tiny_run / "checkpoint.safetensors")
    write_tensors(tmp_path / "checkpoint.safetensors", {}, document | changes)
    result = run("--resume", "--run", tmp_path)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


# Before time is spent


def test_a_learning_rate_of_nothing_is_refused(drawn_faces: Path) -> None:
    result = run(drawn_faces, "--learning-rate", "0")
    assert isinstance(result.exception, DataError)
    assert "learning_rate is 0.0; expected 1e-09 to 10" in str(result.exception)


def test_patience_without_a_best_epoch_is_refused() -> None:
    with pytest.raises(DataError, match="expected keep to be 'best'"):
        Recipe(patience=3, keep="last")


@pytest.mark.parametrize(
    ("folders", "classes", "message"),
    [
        (("train/happy", "train/sad", "val/happy", "val/sadd"), "", "of class sadd; did you mean sad?"),
        (("train/hapy", "train/sad", "val/hapy", "val/sad"), "happy,sad", "of class happy; did you mean hapy?"),
    ],
)
def test_a_misspelt_folder_is_asked_about(
    tmp_path: Path, picture: Callable[[Path, int], None], folders: tuple[str, ...], classes: str, message: str
) -> None:
    for seed, name in enumerate(folders):
        picture(tmp_path / "faces" / name / "0.png", seed)
    result = run(tmp_path / "faces", "--run", tmp_path / "run", *(("--classes", classes) if classes else ()))
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)
