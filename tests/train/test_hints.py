"""Hints: what teachers see is scaled as said, and a student learns to guess it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fmengine_train.checkpoint import load_network, read_tensors
from fmengine_train.cli import train
from fmengine_train.data import Dataset, Item, load
from fmengine_train.distill import teach
from fmengine_train.hints import Guided, compute_hint_loss, standardise
from fmengine_train.mobilenet import MobileNet, MobileNetConfig
from fmengine_train.model import AlexNet, AlexNetConfig
from fmengine_train.networks import Network
from fmengine_train.recipe import Recipe
from fmengine_train.trainer import Trainer

LABELS = ("happy", "sad")
CPU = torch.device("cpu")


def networks() -> list[Network]:
    slim = AlexNetConfig(channels=1, height=32, width=32, stem=(3, 1, 1), widths=(8,) * 5, hidden=(16, 12))
    return [AlexNet(slim), MobileNet(MobileNetConfig(height=32, width=32))]


def test_embeddings_are_centred_and_share_one_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(5000, 2, generator=generator) * torch.tensor([0.3, 0.4]) + torch.tensor([1.0, -200.0])
    hints = standardise(embeddings).double()
    np.testing.assert_allclose(hints.mean(0), 0, atol=2e-3)
    assert float(hints.square().mean()) == pytest.approx(1, rel=2e-3)
    assert float(hints[:, 1].std() / hints[:, 0].std()) == pytest.approx(4 / 3, rel=0.05)


def test_embeddings_that_are_all_alike_give_no_hint() -> None:
    assert (standardise(torch.full((4, 3), 7.0)) == 0).all()


@pytest.mark.parametrize("network", networks(), ids=lambda network: type(network).__name__)
def test_the_last_layer_makes_the_logits_of_the_embedding(network: Network) -> None:
    images = torch.randint(256, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network.eval()
    with torch.inference_mode():
        embedding = network.embed(images)
        assert embedding.shape == (3, network.last.in_features)
        torch.testing.assert_close(network.last(embedding), network(images))
        logits, guesses = Guided(network, 5)(images)
        torch.testing.assert_close(logits, network(images))
        assert guesses.shape == (3, 5)
        assert Guided(network, 0)(images)[1] is None


def test_guessing_the_mean_leaves_all_of_the_variance_open() -> None:
    hints = standardise(torch.randn(100, 8, generator=torch.Generator().manual_seed(1))).float()
    assert float(compute_hint_loss(torch.zeros_like(hints), hints)) == pytest.approx(1, rel=1e-2)
    assert float(compute_hint_loss(hints, hints)) == 0


@pytest.fixture
def taught(items: list[Item], tiny_run: Path, tmp_path: Path) -> Dataset:
    data = load(items, LABELS, (1, 32, 32), "crop", tmp_path)
    teach(data, items, [tiny_run, tiny_run], 0.5, tmp_path)
    return data


def test_every_teacher_gives_its_hints(taught: Dataset, tiny_run: Path) -> None:
    width = load_network(tiny_run)[0].last.in_features
    assert taught.hints.shape == (len(taught.targets), 2 * width)
    np.testing.assert_array_equal(taught.hints[:, :width], taught.hints[:, width:])
    assert np.square(taught.hints.astype(np.float64)).mean() == pytest.approx(1, rel=1e-2)


@pytest.mark.slow
def test_other_hints_are_other_data(taught: Dataset) -> None:
    before = taught.fingerprint
    taught.hints[0, 0] += 1
    assert taught.fingerprint != before


def unexplained(trainer: Trainer) -> float:
    """The share of the training pictures' hints that is still open."""
    rows = trainer.data.train
    trainer.guided.eval()
    with torch.inference_mode():
        _, guesses = trainer.guided(torch.from_numpy(trainer.data.pixels[rows]))
    assert guesses is not None
    return float(compute_hint_loss(guesses, torch.from_numpy(trainer.data.hints[rows]).float()))


@pytest.mark.slow
def test_a_student_learns_to_guess_them(taught: Dataset, tmp_path: Path) -> None:
    small = {"size": 32, "widths": (8, 16, 16, 16, 16), "hidden": (32, 32), "precision": "fp32"}
    recipe = Recipe(**small, epochs=12, batch_size=16, augment=0.0, hint_weight=1.0, dropout=0.0)
    trainer = Trainer(recipe, taught, tmp_path, CPU)
    assert unexplained(trainer) == pytest.approx(1, abs=0.05)
    for _ in range(recipe.epochs):
        trainer.train_epoch()
        trainer.history.append({})
    assert unexplained(trainer) < 0.7


@pytest.mark.slow
def test_what_guesses_them_goes_on_after_a_crash_and_does_not_ship(
    drawn_faces: Path, tiny_run: Path, tmp_path: Path
) -> None:
    recipe, run = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text("size = 32\nwidths = [8, 8, 8, 8, 8]\nepochs = 2\nbatch_size = 32\nhint_weight = 1.0\n")
    arguments = [
        drawn_faces,
        "--recipe",
        recipe,
        "--device",
        "cpu",
        "--run",
        run,
        "--teacher",
        tiny_run,
        "--resume",
    ]
    for _ in range(2):
        result = CliRunner().invoke(train, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    assert "epochs finished: 2 of 2" in result.stderr
    assert "guess.weight" in read_tensors(run / "checkpoint.safetensors")[0]
    assert not [name for name in read_tensors(run / "model.safetensors")[0] if "guess" in name]
