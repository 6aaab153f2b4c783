"""Training: it learns, repeats, goes on after a crash as if there had been none, and stops at nonsense."""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmengine.errors import DataError, ModelError, OutputError
from fmengine_train import data
from fmengine_train.checkpoint import read_tensors
from fmengine_train.checks import list_label_notes
from fmengine_train.cli import train as command
from fmengine_train.metrics import fit_temperature, score
from fmengine_train.optimize import compute_learning_rate
from fmengine_train.recipe import Recipe
from fmengine_train.summary import summarise
from fmengine_train.train import train
from fmengine_train.trainer import DivergedError, Trainer

from .conftest import write_strip

TINY = {"size": 32, "epochs": 3, "batch_size": 32, "warmup": 1.0, "precision": "fp32", "ema": 0.9}
OPTIONS = ["--size", "32", "--batch-size", "32", "--precision", "fp32", "--device", "cpu", "--epochs", "3"]
CPU = torch.device("cpu")

Make = Callable[..., Trainer]


@pytest.fixture
def make(faces: data.Dataset, tmp_path: Path) -> Make:
    """Makes a trainer that writes into a folder of the given name."""

    def trainer(name: str = "run", dataset: data.Dataset = faces, **changes: Any) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(Recipe(**TINY | changes), dataset, tmp_path / name, CPU)

    return trainer


def silent(text: str) -> None:
    pass


def save(trainer: Trainer) -> None:
    trainer.write(trainer.take_snapshot())


def history(folder: Path) -> list[dict[str, float]]:
    """What the checkpoint says of each epoch, without the time that it took."""
    rows = read_tensors(folder / "checkpoint.safetensors")[1]["history"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    """Every bit that training made."""
    tensors_a, tensors_b = (read_tensors(folder / "checkpoint.safetensors")[0] for folder in (a, b))
    assert tensors_a.keys() == tensors_b.keys()
    assert [name for name, tensor in tensors_a.items() if not torch.equal(tensor, tensors_b[name])] == []
    assert history(a) == history(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


# A run


def test_it_learns(tiny_run: Path) -> None:
    rows = read_tensors(tiny_run / "checkpoint.safetensors")[1]["history"]
    # 22 of 32 right by chance alone: once in 40 runs.
    assert rows[-1]["val_accuracy"] >= 0.75
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_every_file_of_a_run_is_written_and_valid(tiny_run: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == {
        "checkpoint.safetensors",
        "model.safetensors",
        "training.json",
        "metrics.csv",
        "curves.png",
        "confusion.png",
    }
    for name in ("curves.png", "confusion.png"):
        with Image.open(tiny_run / name) as image:
            assert image.format == "PNG"
            image.load()
            assert np.asarray(image.convert("L")).std() > 10  # something is drawn


def test_metrics_csv_has_a_row_for_each_epoch(tiny_run: Path) -> None:
    with (tiny_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) >= {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy"}
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())


def strict_json(path: Path) -> dict[str, Any]:
    """NaN and Infinity are Python's own; other readers refuse them."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path.name} holds {name}, which is no JSON")

    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return document


def test_training_json_says_what_the_model_file_will(tiny_run: Path) -> None:
    document = strict_json(tiny_run / "training.json")
    model_document = read_tensors(tiny_run / "model.safetensors")[1]
    assert model_document == document | {"network": "AlexNet", "config": model_document["config"]}
    assert document["labels"] == ["happy", "sad"]
    assert document["training_data"].endswith(": 64 happy, 64 sad")
    assert document["epochs_finished"] == document["recipe"]["epochs"] == 4
    assert 0.05 <= document["temperature"] <= 20
    assert 0.5 <= document["unsure_below"] <= 1
    (scores,) = document["validation"].values()
    assert scores["count"] == sum(map(sum, scores["confusion"])) == 32  # a half of them would be too few


@pytest.mark.slow
def test_training_json_is_json_where_a_source_lacks_a_class(
    make: Make, drawn_faces: Path, tmp_path: Path, picture: Callable[[Path, int], None]
) -> None:
    stated = next(name for name in map("{}.png".format, range(20)) if data.part_of(name) == "report")
    for number, split in enumerate(("train", "val")):
        picture(tmp_path / "smiles" / split / "happy" / stated, number)
    items = data.find([drawn_faces, tmp_path / "smiles"], (), 0.1)
    trainer = make(dataset=data.load(items, ("happy", "sad"), (1, 32, 32), "crop", tmp_path), epochs=1)
    train(trainer, silent)
    assert set(strict_json(trainer.folder / "training.json")["validation"]) == {drawn_faces.name, "smiles"}


@pytest.mark.slow
def test_the_command_says_where_the_model_is(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(drawn_faces, "--run", tmp_path / "deep" / "run", *OPTIONS, "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'deep' / 'run' / 'model.safetensors'}\n"
    assert "128 training and 32 validation pictures" in result.stderr
    assert "epoch 1/1" in result.stderr
    assert "validation accuracy" in result.stderr


def test_the_command_gives_the_model_and_its_scores_as_json(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(drawn_faces, "--run", tmp_path / "run", *OPTIONS, "--epochs", "1", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["model"] == str(tmp_path / "run" / "model.safetensors")
    assert document["labels"] == ["happy", "sad"]
    assert document["validation"]["count"] == 32
    assert len(document["validation"]["recall"]) == 2


@pytest.mark.slow
def test_the_command_prints_what_it_left_out(tmp_path: Path, picture: Callable[[Path, int], None]) -> None:
    for seed, name in enumerate(("train/happy", "train/sad", "val/happy", "val/sad")):
        picture(tmp_path / "faces" / name / "0.png", seed)
    (tmp_path / "faces" / "train" / "sad" / "1.png").write_bytes(b"broken")
    result = run(tmp_path / "faces", "--run", tmp_path / "run", *OPTIONS, "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert "note: left out" in result.stderr


@pytest.fixture
def noise(tmp_path: Path, picture: Callable[[Path, int], None]) -> Callable[..., Path]:
    """Makes a data set of classes with these names, two training pictures and one for validation each."""

    def write(*classes: str) -> Path:
        for seed, name in enumerate(classes):
            for number, split in enumerate(("train", "train", "val")):
                picture(tmp_path / "noise" / split / name / f"{number}.png", 3 * seed + number)
        return tmp_path / "noise"

    return write


@pytest.mark.slow
def test_a_strip_that_no_memory_could_pad_is_a_note(noise: Callable[..., Path], tmp_path: Path) -> None:
    write_strip(noise("happy", "sad") / "train" / "sad" / "strip.png")
    (tmp_path / "pad.toml").write_text('fit = "pad"\n')
    result = run(tmp_path / "noise", "--recipe", tmp_path / "pad.toml", "--run", tmp_path / "run", *OPTIONS)
    assert result.exit_code == 0, result.exception
    assert f"note: left out {tmp_path}/noise/train/sad/strip.png: " in result.stderr
    assert "4 training and 2 validation pictures" in result.stderr


@pytest.mark.slow
def test_names_need_not_be_utf8(noise: Callable[..., Path], tmp_path: Path) -> None:
    data = noise("happy", "sad").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    (data / "val" / "sad" / "2.png").rename(data / "val" / "sad" / "\udcff.png")
    (data / "train" / "sad" / "\n\udcff.png").write_bytes(b"broken")
    folder = Path(f"{tmp_path}/run\udcff")
    options = [*OPTIONS, "--epochs", "1", "--run", str(folder)]
    result = run(data, *options)
    assert result.exit_code == 0, result.exception
    assert result.stdout_bytes == os.fsencode(folder) + b"/model.safetensors\n"
    assert f"left out {tmp_path}/%FF%FE/train/sad/%0A%FF.png" in result.stderr
    assert strict_json(folder / "training.json")["training_data"] == "%FF%FE: 2 happy, 2 sad"
    resumed = run(data, *options, "--resume", "--teacher", folder)
    assert isinstance(resumed.exception, DataError)  # other data: a teacher's answers
    assert run(data, *options, "--resume").exit_code == 0


@pytest.mark.parametrize("classes", ["", " , ", "happy,happy", "happy,../sad", "train,val", "happy,\udcff"])
def test_classes_that_cannot_be_are_refused_before_any_work(
    noise: Callable[..., Path], tmp_path: Path, classes: str
) -> None:
    result = run(noise("happy", "sad"), "--classes", classes, "--run", tmp_path / "run", *OPTIONS)
    assert isinstance(result.exception, DataError)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_labels_that_mean_something_else_in_results_are_noted_before_pictures_are_read(
    noise: Callable[..., Path], tmp_path: Path
) -> None:
    """And those that matplotlib would take for mathematics are drawn as they are."""
    result = run(noise("path", "unsure", "$\\foo$"), "--run", tmp_path / "run", *OPTIONS, "--epochs", "1")
    assert result.exit_code == 0, result.exception
    notes = result.stderr.splitlines()[:2]
    assert notes[0] == "note: class path has the name of a column of CSV results: write jsonl or parquet"
    assert notes[1].startswith("note: class unsure has the name of what `--unsure-below` answers")
    assert list_label_notes(["error", "labels", "happy"]) == []


def test_a_precision_that_the_processor_emulates_is_noted(
    noise: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    faces = noise("happy", "sad")
    options = ["--size", "32", "--batch-size", "2", "--device", "cpu", "--epochs", "1"]
    named = run(faces, "--run", tmp_path / "named", *options, "--precision", "bf16")
    assert "note: this device has no bf16 instructions, and emulates it slowly" in named.stderr
    assert "bf16" not in run(faces, "--run", tmp_path / "auto", *options).stderr


@pytest.mark.slow
def test_one_is_one_in_words(noise: Callable[..., Path], tmp_path: Path) -> None:
    faces = noise("happy", "sad")
    for label in ("happy", "sad"):
        (faces / "train" / label / "1.png").unlink()
    result = run(faces, "--run", tmp_path / "run", *OPTIONS, "--epochs", "1")
    assert "class happy has only 1 training picture; expect" in result.stderr
    assert not re.search(r"\b1 \w*s\b", result.stderr)


def test_a_size_that_is_too_small_is_an_error_of_the_data(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(drawn_faces, "--run", tmp_path / "run", *OPTIONS, "--size", "16")
    assert isinstance(result.exception, DataError)
    assert "16×16 pixels is too small" in str(result.exception)


@pytest.mark.slow
def test_the_recipe_says_how_the_pictures_are_distorted(make: Make) -> None:
    """The first epoch's loss tells: all else is the same."""
    ways = [{"augment": 0.0}, {"augment": 0.5}, {"augment": 0.0, "harsh": 1.0}, {"augment": 0.0, "mixup": 1.0}]
    losses = {make(str(number), **way).train_epoch()[0] for number, way in enumerate(ways)}
    assert len(losses) == len(ways)


# Repeating


@pytest.mark.slow
def test_a_seed_repeats_and_another_does_not(make: Make) -> None:
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        train(make(name, seed=seed, epochs=2), silent)
    folder = make("first").folder.parent
    assert_same_run(folder / "first", folder / "second")
    assert history(folder / "first") != history(folder / "other")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_stopped_between_epochs_goes_on_bit_for_bit(make: Make, optimizer: str) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    changes = {"optimizer": optimizer, "learning_rate": 0.01}
    whole = make("whole", **changes)
    train(whole, silent)
    with pytest.raises(KeyboardInterrupt):
        train(make("parts", **changes), stop)
    for _ in range(2):
        again = make("parts", **changes)
        again.restore()
        assert again.epoch in (1, 2)
        if again.epoch == 1:
            with pytest.raises(KeyboardInterrupt):
                train(again, stop)
        else:
            train(again, silent)
    assert_same_run(whole.folder, again.folder)


KILLED = """
import os, signal
from fmengine_train.cli import train as command
from fmengine_train.steps import Steps

step, calls = Steps.update, []

def dying(self, loss):
    calls.append(loss)
    if len(calls) == 7:  # of four an epoch: in the middle of the second
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, loss)

Steps.update = dying
command()
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit(
    drawn_faces: Path, tmp_path: Path, optimizer: str
) -> None:
    options = [*OPTIONS, "--optimizer", optimizer, "--learning-rate", "0.01"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(drawn_faces), "--run", str(tmp_path / "killed"), *options],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert len(history(tmp_path / "killed")) == 1
    resumed = run(drawn_faces, "--run", tmp_path / "killed", *options, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "epochs finished: 1 of 3" in resumed.stderr
    assert run(drawn_faces, "--run", tmp_path / "whole", *options).exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_resuming_a_finished_run_changes_nothing(make: Make) -> None:
    trainer = make(epochs=1)
    train(trainer, silent)
    before = (trainer.folder / "model.safetensors").read_bytes()
    again = make(epochs=1)
    again.restore()
    train(again, silent)
    assert (trainer.folder / "model.safetensors").read_bytes() == before


def test_resuming_where_nothing_is_starts(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(drawn_faces, "--run", tmp_path / "run", *OPTIONS, "--epochs", "1", "--resume")
    assert result.exit_code == 0, result.output
    assert "epochs finished: 0 of 1" in result.stderr


def test_another_recipe_is_refused_by_name(make: Make) -> None:
    save(make())
    with pytest.raises(DataError, match=r"another recipe: learning_rate was 0\.001, is 0\.5"):
        make(learning_rate=0.5).restore()


def test_changed_data_are_refused(make: Make, faces: data.Dataset) -> None:
    save(make())
    with pytest.raises(DataError, match="training data changed"):
        make(dataset=dataclasses.replace(faces, digest="another")).restore()


def test_renamed_classes_are_refused(make: Make, drawn_faces: Path, tmp_path: Path) -> None:
    save(make())
    for split in ("train", "val"):
        (tmp_path / "renamed" / split).mkdir(parents=True)
        (tmp_path / "renamed" / split / "happy").symlink_to(drawn_faces / split / "happy")
        (tmp_path / "renamed" / split / "sorry").symlink_to(drawn_faces / split / "sad")
    items = data.find([tmp_path / "renamed"], (), 0.1)
    renamed = data.load(items, ("happy", "sorry"), (1, 32, 32), "crop", tmp_path)
    with pytest.raises(DataError):
        make(dataset=renamed).restore()


def test_a_run_folder_in_use_is_refused(drawn_faces: Path, tiny_run: Path) -> None:
    before = (tiny_run / "model.safetensors").read_bytes()
    result = run(drawn_faces, "--run", tiny_run, *OPTIONS)
    assert isinstance(result.exception, OutputError)
    command = f"`fmengine train --resume --run {tiny_run}`"
    assert f"holds a run already; go on with {command}" in str(result.exception)
    assert (tiny_run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("folder", ["file", "file/run", "dangling", "x" * 300])
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_run_folder_that_cannot_be_made_is_told_before_pictures_are_read(
    noise: Callable[..., Path], tmp_path: Path, folder: str, resume: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (noise("happy", "sad") / "train" / "sad" / "broken.png").touch()
    result = run(tmp_path / "noise", "--run", tmp_path / folder, *OPTIONS, *resume)
    assert isinstance(result.exception, OutputError)
    assert "cannot write into the run folder" in str(result.exception)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "resume", "message"),
    [
        ("model.safetensors", (), "holds a run already; go on with `fmengine train --resume"),
        ("metrics.csv", (), "holds a run already; go on with `fmengine train --resume"),
        (
            "model.safetensors",
            ("--resume",),
            "holds model.safetensors and no checkpoint.safetensors to go on from",
        ),
        ("a\nphoto.jpg", ("--resume",), "holds a%0Aphoto.jpg and no checkpoint.safetensors to go on from"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(
    noise: Callable[..., Path], tmp_path: Path, name: str, resume: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_bytes(b"something else")
    result = run(noise("happy", "sad"), "--run", folder, *OPTIONS, *resume)
    assert isinstance(result.exception, OutputError)
    assert message in str(result.exception)
    assert result.stderr == ""
    assert [path.read_bytes() for path in folder.iterdir()] == [b"something else"]


@pytest.mark.slow
def test_answers_of_teachers_are_no_other_run(noise: Callable[..., Path], tiny_run: Path, tmp_path: Path) -> None:
    """`make model` puts those of one run into the folder of the next."""
    options = ["--epochs", "1", "--size", "32", "--device", "cpu", "--teacher", str(tiny_run), "--resume"]
    assert run(noise("happy", "sad"), "--run", tmp_path / "first", *options).exit_code == 0
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / "answers.safetensors", tmp_path / "second")
    assert run(tmp_path / "noise", "--run", tmp_path / "second", *options).exit_code == 0


@pytest.mark.parametrize("content", ["recipe", "model", "text"])
def test_what_cannot_be_resumed_is_told_before_pictures_are_read(
    noise: Callable[..., Path], tiny_run: Path, tmp_path: Path, content: str
) -> None:
    source = tiny_run / ("model.safetensors" if content == "model" else "checkpoint.safetensors")
    shutil.copy(source, tmp_path / "checkpoint.safetensors")
    if content == "text":
        (tmp_path / "checkpoint.safetensors").write_text("no checkpoint")
    (tmp_path / "run").mkdir()
    (tmp_path / "checkpoint.safetensors").rename(tmp_path / "run" / "checkpoint.safetensors")
    (noise("happy", "sad") / "train" / "sad" / "broken.png").touch()
    result = run(tmp_path / "noise", "--run", tmp_path / "run", *OPTIONS, "--resume")
    assert isinstance(result.exception, DataError if content == "recipe" else ModelError)
    assert result.stderr == ""


@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(drawn_faces: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fmengine", "train", drawn_faces, "--run", tmp_path / "run", *OPTIONS]
    with subprocess.Popen(
        [*map(str, command), "--epochs", "10000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("epoch 1/"))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert line
    assert process.returncode == 130
    assert re.search(f"{tmp_path}/run holds [0-9]+ finished epochs?; go on with", rest)
    assert f"`fmengine train --resume --run {tmp_path}/run`" in rest
    assert rest.endswith("fmengine: interrupted\n")
    assert len(history(tmp_path / "run")) >= 1


# Nonsense


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(make: Make) -> None:
    trainer = make(epochs=1)
    train(trainer, silent)
    files = {path: path.read_bytes() for path in trainer.folder.iterdir()}
    trainer.recipe = dataclasses.replace(trainer.recipe, epochs=2)
    trainer.steps.loss = lambda logits, targets: logits.sum() * math.nan  # type: ignore[assignment]
    with pytest.raises(
        DivergedError, match="the loss became nan in epoch 2; the last good checkpoint is that of epoch 1"
    ):
        train(trainer, silent)
    assert {path: path.read_bytes() for path in trainer.folder.iterdir()} == files


def test_an_infinite_loss_stops_too(make: Make) -> None:
    trainer = make()
    trainer.steps.loss = lambda logits, targets: logits.sum() + math.inf  # type: ignore[assignment]
    with pytest.raises(DivergedError, match="the loss became inf in epoch 1") as error:
        train(trainer, silent)
    assert error.value.exit_code == 1
    assert list(trainer.folder.iterdir()) == []


def test_weights_that_break_in_an_epochs_last_step_are_not_saved(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(epochs=2)
    step, calls = trainer.steps.update, []

    def breaking(loss: torch.Tensor) -> None:
        step(loss)
        calls.append(loss)
        if len(calls) == 8:  # the last of the second epoch
            for module in (trainer.model, trainer.ema):
                next(module.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(trainer.steps, "update", breaking)
    with pytest.raises(DivergedError):
        train(trainer, silent)
    assert len(history(trainer.folder)) == 1


# The schedule


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=2, epochs=10)
    rates = [compute_learning_rate(recipe, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10] == 1
    assert rates[20] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert rates[30] == pytest.approx(0.5)
    assert rates[49] == pytest.approx(0.00154, abs=1e-5)
    assert compute_learning_rate(recipe, 50, 5) == pytest.approx(0)


def test_learning_rate_without_warm_up_starts_at_the_top() -> None:
    assert compute_learning_rate(Recipe(learning_rate=0.25, warmup=0), 0, 5) == 0.25


@settings(deadline=None)
@given(
    warmup=st.floats(0, 12, allow_nan=False),
    epochs=st.integers(1, 10),
    steps=st.integers(1, 20),
)
def test_learning_rate_never_passes_the_recipes(warmup: float, epochs: int, steps: int) -> None:
    recipe = Recipe(learning_rate=1.0, warmup=warmup, epochs=epochs)
    rates = [compute_learning_rate(recipe, step, steps) for step in range(epochs * steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


def test_the_optimizer_takes_the_schedule(make: Make) -> None:
    trainer = make(epochs=2, warmup=0.0)
    trainer.train_epoch()
    expected = compute_learning_rate(trainer.recipe, 3, 4)  # the last of four steps
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [expected] * 2


def test_weight_decay_is_for_matrices_only(make: Make) -> None:
    decayed, others = make(weight_decay=0.25).optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) == 8


# Class weights, averages, temperature, scores


def unbalanced(happy: int, sad: int) -> data.Dataset:
    targets = np.array([0] * happy + [1] * sad + [0, 1])
    count = happy + sad
    return data.Dataset(
        labels=("happy", "sad"),
        pixels=np.zeros((count + 2, 1, 32, 32), np.uint8),
        targets=targets,
        answers=np.eye(2, dtype=np.float32)[targets],
        hints=np.empty((count + 2, 0), np.float16),
        train=np.arange(count),
        val=np.array([count, count + 1]),
        sources=np.array(["made"] * (count + 2)),
        parts=np.array(["select"] * (count + 2)),
    )


def test_class_weights_make_up_for_rare_classes(make: Make) -> None:
    weights = make(dataset=unbalanced(30, 10)).loss.weight
    assert weights.tolist() == pytest.approx([2 / 3, 2])
    assert float((weights * torch.tensor([30, 10])).sum()) == pytest.approx(40)  # 1 on average


def test_class_weights_can_be_turned_off(make: Make) -> None:
    assert make(dataset=unbalanced(30, 10), class_weights="none").loss.weight is None


def test_fewer_pictures_than_a_batch_train_all_the_same(make: Make) -> None:
    trainer = make(dataset=unbalanced(3, 2), epochs=1)
    train(trainer, silent)
    assert trainer.epoch == 1


def test_averaged_weights_forget_faster_in_the_first_steps(make: Make) -> None:
    trainer = make(ema=0.25)
    averaged = []
    for value in (0.0, 1.0, 0.0):
        for tensor in trainer.model.state_dict().values():
            tensor.fill_(value)
        trainer.ema.update_parameters(trainer.model)
        averaged.append([float(tensor.flatten()[0]) for tensor in trainer.ema.module.state_dict().values()])
    kinds = [tensor.is_floating_point() for tensor in trainer.model.state_dict().values()]
    # A copy, then 2/11 of the old (under 0.25), then 0.25 (under 3/12); counters are copied.
    expected = [(0, 0), (9 / 11, 1), (9 / 11 * 0.25, 0)]
    for row, (average, copy) in zip(averaged, expected, strict=True):
        assert row == pytest.approx([average if floating else copy for floating in kinds])


def test_the_averaged_weights_are_those_that_ship(make: Make) -> None:
    trainer = make(epochs=1)
    train(trainer, silent)
    shipped = read_tensors(trainer.folder / "model.safetensors")[0]
    assert all(torch.equal(shipped[name], t) for name, t in trainer.ema.module.state_dict().items())
    assert any(not torch.equal(shipped[name], t) for name, t in trainer.model.state_dict().items())


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_fit_temperature_recovers_a_known_one(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=generator) * 2
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    assert fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.05)


def test_calibration_is_chosen_on_one_half_and_scores_are_those_of_the_other() -> None:
    torch.manual_seed(1)
    targets = torch.arange(400) % 2
    logits = torch.randn(400, 2) + 2 * torch.eye(2)[targets]
    dataset = unbalanced(400, 0)
    dataset.val, dataset.targets = np.arange(400), targets.numpy()
    dataset.parts = np.array(["select"] * 200 + ["report"] * 200 + ["select"] * 2)
    logits[200:] = torch.eye(2)[1 - targets[200:]]  # wrong in every answer that is stated
    document = summarise(dataset, Recipe(), logits, targets)
    assert document["temperature"] == pytest.approx(fit_temperature(logits[:200], targets[:200]))
    assert document["validation"]["made"]["count"] == 200
    assert document["validation"]["made"]["accuracy"] == 0


def test_calibration_takes_all_pictures_where_a_half_lacks_a_class() -> None:
    dataset = unbalanced(3, 2)
    document = summarise(dataset, Recipe(), torch.eye(2), torch.tensor([0, 1]))
    assert document["validation"]["made"]["count"] == 2


def test_fit_temperature_stays_within_its_bounds() -> None:
    logits, targets = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]), torch.tensor([0, 1])
    assert fit_temperature(logits, targets) == pytest.approx(0.05)
    assert fit_temperature(logits, 1 - targets) == pytest.approx(20)


def test_score_is_golden() -> None:
    logits = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0]])
    scores = score(logits, torch.tensor([0, 0, 0, 1]))
    assert scores.confusion == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert (scores.count, scores.accuracy) == (4, 0.75)
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert scores.recall[:2] == pytest.approx([2 / 3, 1])
    assert scores.loss == pytest.approx(-math.log(math.e**2 / (math.e**2 + 2)) + 2 / 4)
