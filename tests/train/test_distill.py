"""Distillation: what teachers say goes where it should, and only what they can say is asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from fmengine.errors import DataError
from fmengine_train.augment import warp
from fmengine_train.checkpoint import load_network, read_tensors, save_model
from fmengine_train.cli import train
from fmengine_train.data import Dataset, Item, list_unlabelled, load
from fmengine_train.distill import VIEWS, WARP_STRENGTH, teach
from fmengine_train.distributed import World
from fmengine_train.model import AlexNet, AlexNetConfig
from fmengine_train.recipe import Recipe
from fmengine_train.trainer import Trainer

LABELS = ("happy", "sad")


def teacher(folder: Path, labels: tuple[str, ...], seed: int = 0, size: int = 24) -> Path:
    torch.manual_seed(seed)
    layers: Any = {"stem": (3, 1, 1), "widths": (8,) * 5, "hidden": (16, 16), "batch_norm": True}
    network = AlexNet(AlexNetConfig(outputs=len(labels), channels=1, height=size, width=size, **layers))
    path = folder / f"teacher-{seed}.safetensors"
    save_model(path, network.eval(), {"labels": list(labels), "fit": "crop"})
    return path


def dataset(items: list[Item], folder: Path) -> Dataset:
    return load(items, LABELS, (1, 32, 32), "crop", folder)


def asked(path: Path, items: list[Item], index: int, columns: list[int]) -> np.ndarray:
    """One picture's answer, computed apart from `teach`."""
    network, _ = load_network(path)
    size = network.config.height
    pixels = np.array(load(items, LABELS, (1, size, size), "crop", path.parent).pixels)
    levels, generator = torch.from_numpy(pixels).float(), torch.Generator().manual_seed(0)
    views = [levels, levels.flip(3), *(warp(levels, generator, WARP_STRENGTH) for _ in range(VIEWS - 2))]
    with torch.inference_mode():
        logits = network(torch.stack(views)[:, index])[:, columns]
    return logits.softmax(1).mean(0).numpy()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_answers_are_blended_with_the_labels(items: list[Item], tmp_path: Path, weight: float) -> None:
    data, path = dataset(items, tmp_path), teacher(tmp_path, LABELS)
    teach(data, items, [path], weight, tmp_path)
    for index in (0, 70, 150):
        label = np.eye(2)[data.targets[index]]
        expected = (1 - weight) * label + weight * asked(path, items, index, [0, 1])
        np.testing.assert_allclose(data.answers[index], expected, atol=1e-5)


def test_several_teachers_are_averaged(items: list[Item], tmp_path: Path) -> None:
    data, paths = (
        dataset(items, tmp_path),
        [teacher(tmp_path, LABELS, seed, size) for seed, size in ((1, 24), (2, 32))],
    )
    teach(data, items, paths, 1.0, tmp_path)
    expected = np.mean([asked(path, items, 5, [0, 1]) for path in paths], axis=0)
    np.testing.assert_allclose(data.answers[5], expected, atol=1e-5)


def test_a_teacher_who_knows_more_labels_is_asked_for_ours(items: list[Item], tmp_path: Path) -> None:
    data, path = dataset(items, tmp_path), teacher(tmp_path, ("angry", "sad", "neutral", "happy"))
    teach(data, items, [path], 1.0, tmp_path)
    np.testing.assert_allclose(data.answers[3], asked(path, items, 3, [3, 1]), atol=1e-5)
    np.testing.assert_allclose(data.answers.sum(axis=1), 1, atol=1e-5)


def test_a_teacher_with_other_labels_is_refused(items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"knows glad, sad, but not happy; expected all labels"):
        teach(dataset(items, tmp_path), items, [teacher(tmp_path, ("glad", "sad"))], 0.5, tmp_path)


def test_pictures_without_a_label_get_the_teachers_answer_alone(
    items: list[Item], drawn_faces: Path, tmp_path: Path
) -> None:
    items = items + list_unlabelled([drawn_faces / "train" / "sad"])
    data, path = dataset(items, tmp_path), teacher(tmp_path, LABELS)
    assert (data.answers[-1] == 0).all()
    teach(data, items, [path], 0.25, tmp_path)
    assert data.targets[-1] == -1
    np.testing.assert_allclose(data.answers[-1], asked(path, items, len(items) - 1, [0, 1]), atol=1e-5)
    assert data.describe().endswith("sad: 64 unlabelled")


def test_other_teachers_are_other_data(items: list[Item], tmp_path: Path) -> None:
    """So that `--resume` refuses them."""
    fingerprints = set()
    for seed in (0, 1):
        data = dataset(items, tmp_path)
        fingerprints.add(data.fingerprint)
        teach(data, items, [teacher(tmp_path, LABELS, seed)], 0.5, tmp_path)
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 3


def test_the_same_teachers_are_asked_once(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `--resume` begins at once; others are asked anew."""
    first, again, other = (dataset(items, tmp_path) for _ in range(3))
    teach(first, items, [teacher(tmp_path, LABELS, 1)], 1.0, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fmengine_train.distill._answer_all", None)
        teach(again, items, [teacher(tmp_path, LABELS, 1)], 1.0, tmp_path)
    teach(other, items, [teacher(tmp_path, LABELS, 2)], 1.0, tmp_path)
    np.testing.assert_array_equal(again.answers, first.answers)
    assert (other.answers != first.answers).any()


class Second(World):
    """Another processor's process, whose answers are rounded otherwise."""

    def take_first(self, value: Any) -> Any:
        return {name: torch.zeros_like(tensor) for name, tensor in value.items()}


def test_the_first_processs_answers_count(items: list[Item], tmp_path: Path) -> None:
    data = dataset(items, tmp_path)
    teach(data, items, [teacher(tmp_path, LABELS)], 1.0, tmp_path, world=Second())
    assert not data.answers.any()


def test_the_first_processs_last_layer_counts(faces: Dataset, tmp_path: Path) -> None:
    recipe = Recipe(size=32, widths=(8,) * 5, hidden=(16, 16), batch_size=32, probe=0.1)
    trainer = Trainer(recipe, faces, tmp_path, torch.device("cpu"), world=Second())
    trainer.train_epoch()
    assert not trainer.model.last.weight.any()
    assert not trainer.ema.module.last.weight.any()


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder with pictures in it"):
        list_unlabelled([tmp_path])


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(train, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_and_from_pictures_without_labels(
    drawn_faces: Path, tiny_run: Path, tmp_path: Path
) -> None:
    options = ["--size", "32", "--epochs", "1", "--batch-size", "16", "--device", "cpu", "--run", tmp_path / "run"]
    result = run(drawn_faces, *options, "--teacher", tiny_run, "--transfer", drawn_faces / "train" / "sad")
    assert result.exit_code == 0, result.exception
    assert "64 unlabelled" in read_tensors(tmp_path / "run" / "model.safetensors")[1]["training_data"]


def test_pictures_without_labels_need_a_teacher(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(drawn_faces, "--transfer", drawn_faces / "train" / "sad", "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert "give a --teacher who knows them" in result.output
