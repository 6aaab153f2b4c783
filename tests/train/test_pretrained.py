"""Beginning with trained weights: the answers stay, what is lost is said, and what does not fit is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from fmengine import Engine
from fmengine.errors import DataError, ModelError
from fmengine.model.file import get_shipped_folder
from fmengine.types import InputBatch
from fmengine_train.checkpoint import load_network, read_document, save_model
from fmengine_train.cli import train
from fmengine_train.networks import CONFIGS, Network, build, make_network_config
from fmengine_train.pretrained import SHIPPED as SHIPPED_WEIGHTS
from fmengine_train.pretrained import (
    Pretrained,
    compare_input,
    describe_network,
    load_pretrained,
    transfer_weights,
    write_shipped,
)
from fmengine_train.recipe import Recipe

SHIPPED = "alexnet-slim"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train, [*map(str, arguments), "--device", "cpu"])


def noise(count: int, channels: int = 1, size: int = 80) -> torch.Tensor:
    shape = (count, channels, size, size)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def shipped() -> Pretrained:
    return load_pretrained(SHIPPED)


def make_like(pretrained: Pretrained, **changes: object) -> Network:
    torch.manual_seed(1)
    return build(dataclasses.replace(pretrained.network.config, **changes)).eval()


# What is loaded


def test_the_shipped_network_gives_the_shipped_answers(shipped: Pretrained) -> None:
    images = noise(8)
    engine = Engine.load("alexnet-slim.fp16", backend="onnxruntime")
    expected = engine.backend.run(InputBatch(images.numpy())).logits
    with torch.inference_mode():
        answers = shipped.network(images).numpy()
    np.testing.assert_allclose(answers, expected, atol=2e-3 * np.abs(expected).max())
    assert shipped.labels == ("happy", "sad")


def test_labels_that_are_new_begin_with_the_weights_that_know_more(shipped: Pretrained) -> None:
    wide = load_pretrained(SHIPPED, ("happy", "bored"))
    assert set(wide.labels) > {"happy", "sad", "angry", "fear", "surprise"}
    assert load_pretrained(SHIPPED, ("sad", "happy")).labels == shipped.labels
    assert dataclasses.replace(wide.network.config, outputs=2, dropout=0) == dataclasses.replace(
        shipped.network.config, dropout=0
    )
    assert (SHIPPED_WEIGHTS / f"{SHIPPED}.safetensors").stat().st_size < 2.5e6
    images = noise(8)
    with torch.inference_mode():
        assert wide.network(images).isfinite().all()
        assert not torch.allclose(wide.network.embed(images), shipped.network.embed(images), atol=0.1)


def test_weights_ship_in_half_precision(tmp_path: Path, tiny_run: Path) -> None:
    write_shipped([tiny_run], tmp_path / "half.safetensors")
    (network, document), (half, kept) = load_network(tiny_run), load_network(tmp_path / "half.safetensors")
    assert {key: kept[key] for key in ("labels", "fit")} == {key: document[key] for key in ("labels", "fit")}
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert load_pretrained(str(tmp_path / "half.safetensors")).labels == tuple(document["labels"])


def test_the_mean_of_runs_ships(tmp_path: Path, tiny_run: Path) -> None:
    network, document = load_network(tiny_run)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.mul_(3)
    other = {"labels": document["labels"], "fit": document["fit"], "training_data": document["training_data"]}
    save_model(tmp_path / "other.safetensors", network, other)
    write_shipped([tiny_run, tmp_path / "other.safetensors"], tmp_path / "mean.safetensors")
    mean, _ = load_network(tmp_path / "mean.safetensors")
    for name, tensor in mean.named_parameters():
        torch.testing.assert_close(tensor, 2 * weights[name], rtol=1e-3, atol=1e-4)
    save_model(tmp_path / "other.safetensors", network, other | {"labels": ["sad", "happy"]})
    with pytest.raises(DataError, match="expected runs of one network, the same labels and pictures"):
        write_shipped([tiny_run, tmp_path / "other.safetensors"], tmp_path / "mean.safetensors")


@pytest.mark.parametrize("model", [SHIPPED, "run"])
def test_a_recipe_builds_its_architecture_again(model: str, tiny_run: Path) -> None:
    pretrained = load_pretrained(str(tiny_run) if model == "run" else model)
    recipe = Recipe.from_dict(describe_network(pretrained) | {"dropout": pretrained.network.config.dropout})
    assert make_network_config(recipe, 2) == pretrained.network.config


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("alexnet", "no model 'alexnet' to begin with; expected alexnet-slim, an .onnx file of ours"),
        (str(get_shipped_folder() / "alexnet-slim.int8.onnx"), "8-bit weights, which cannot be trained further"),
        ("none.onnx", "cannot read the model none.onnx"),
    ],
)
def test_what_cannot_be_trained_further_is_told_before_pictures_are_read(
    drawn_faces: Path, tmp_path: Path, source: str, message: str
) -> None:
    result = run(drawn_faces, "--from", source, "--run", tmp_path / "run")
    assert isinstance(result.exception, ModelError)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


# What is copied


def classifier(labels: tuple[str, ...], seed: int, name: str = SHIPPED) -> Network:
    torch.manual_seed(seed)
    return build(dataclasses.replace(CONFIGS[name], height=40, width=40, outputs=len(labels)))


@pytest.mark.parametrize("name", [SHIPPED, "mobilenet-112"])
def test_a_network_begins_with_anothers_weights_row_by_row(tmp_path: Path, name: str) -> None:
    seven, two = ("angry", "happy", "neutral", "sad"), ("sad", "bored", "happy")
    old, fresh = classifier(seven, 1, name), classifier(two, 2, name)
    before = {key: tensor.clone() for key, tensor in fresh.state_dict().items()}
    save_model(tmp_path / "model.safetensors", old, {"labels": list(seven), "fit": "crop"})
    transfer_weights(fresh, two, load_pretrained(str(tmp_path)))
    *_, weight, bias = fresh.state_dict()
    for key, tensor in fresh.state_dict().items():
        if key not in (weight, bias):
            assert torch.equal(tensor, old.state_dict()[key]), key
            continue
        theirs = old.state_dict()[key]
        assert torch.equal(tensor, torch.stack([theirs[3], before[key][1], theirs[1]])), key


@pytest.mark.parametrize("changes", [{"widths": (8, 8, 8, 8, 8)}, {"batch_norm": True}, {"stem": (3, 2, 1)}])
def test_another_architecture_is_no_beginning(shipped: Pretrained, changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match="another architecture, AlexNet stem"):
        transfer_weights(make_like(shipped, **changes), ("happy", "sad"), shipped)


def test_a_teacher_is_no_beginning_for_an_alexnet(shipped: Pretrained) -> None:
    with pytest.raises(DataError, match="another architecture"):
        compare_input(shipped, CONFIGS["mobilenet-112"])


def test_another_model_by_name_is_refused_before_pictures_are_read(drawn_faces: Path, tmp_path: Path) -> None:
    result = run(drawn_faces, "--from", SHIPPED, "--model", "alexnet", "--run", tmp_path / "run")
    assert isinstance(result.exception, DataError)
    assert "leave out --recipe, --model" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_colour_gives_gray_pictures_the_answers_that_they_had(shipped: Pretrained) -> None:
    rgb = make_like(shipped, channels=3)
    transfer_weights(rgb, shipped.labels, shipped)
    images = noise(4)
    with torch.inference_mode():
        torch.testing.assert_close(
            rgb(images.expand(-1, 3, -1, -1)), shipped.network(images), rtol=1e-4, atol=1e-4
        )
    (note,) = compare_input(shipped, rgb.config)
    assert "spread over red, green and blue" in note
    gray = make_like(shipped)
    transfer_weights(gray, shipped.labels, dataclasses.replace(shipped, network=rgb))
    with torch.inference_mode():
        torch.testing.assert_close(gray(images), shipped.network(images), rtol=1e-4, atol=1e-4)


def test_another_size_loses_the_layer_of_another_shape_and_says_so(shipped: Pretrained) -> None:
    larger = make_like(shipped, height=112, width=112)
    fresh = larger.classifier[1].weight.clone()
    transfer_weights(larger, shipped.labels, shipped)
    assert torch.equal(larger.features[0].weight, shipped.network.features[0].weight)
    assert torch.equal(larger.classifier[1].weight, fresh)
    (note,) = compare_input(shipped, larger.config)
    assert "takes 80×80 pixels, not 112×112: layers of another shape begin fresh" in note


# The command


@pytest.fixture
def moods(drawn_faces: Path, tmp_path: Path) -> Path:
    """The drawn faces under labels that the shipped network does not know, and a smaller validation split."""
    for split in ("train", "val"):
        (tmp_path / "moods" / split).mkdir(parents=True)
        for label, drawn in (("merry", "happy"), ("sorry", "sad")):
            (tmp_path / "moods" / split / label).symlink_to(drawn_faces / split / drawn)
    return tmp_path / "moods"


def test_the_last_layer_alone_learns_new_labels(moods: Path, tmp_path: Path) -> None:
    result = run(moods, "--from", SHIPPED, "--kind", "linear", "--run", tmp_path / "run")
    assert result.exit_code == 0, result.exception
    assert "epoch 1/1" in result.stderr
    trained, document = load_network(tmp_path / "run")
    known = load_pretrained(SHIPPED, ("merry",)).network.state_dict()
    changed = [name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, known[name])]
    assert changed == ["classifier.6.weight", "classifier.6.bias"]
    assert document["labels"] == ["merry", "sorry"]
    assert document["validation"]["moods"]["accuracy"] >= 0.75


@pytest.mark.slow
def test_all_layers_follow_after_the_last_one(moods: Path, tmp_path: Path) -> None:
    result = run(moods, "--from", SHIPPED, "--epochs", "2", "--batch-size", "32", "--run", tmp_path / "run")
    assert result.exit_code == 0, result.exception
    document = read_document(tmp_path / "run" / "checkpoint.safetensors")
    assert document["recipe"]["probe"] > 0
    assert document["recipe"]["batch_size"] == 32
    assert [row["epoch"] for row in document["history"]] == [1, 2]
    assert document["arguments"]["source"] == SHIPPED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "linear"), "say which with --from alexnet-slim"),
        (("--kind", "linear", "--from", SHIPPED, "--epochs", "3"), "leave --epochs out"),
    ],
)
def test_the_last_layer_alone_needs_a_network_and_no_epochs(
    drawn_faces: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(drawn_faces, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_label_that_resembles_a_known_one_is_asked_about(
    tmp_path: Path, picture: Callable[[Path, int], None]
) -> None:
    for seed, name in enumerate(("train/happy", "train/saad", "val/happy", "val/saad")):
        picture(tmp_path / "faces" / name / "0.png", seed)
    result = run(tmp_path / "faces", "--from", SHIPPED, "--kind", "linear", "--run", tmp_path / "run")
    assert "note: class saad is new to alexnet-slim; did you mean sad?" in result.stderr
    assert "only 2 validation pictures, too few to calibrate on (expected 30)" in result.stderr
    document = read_document(tmp_path / "run" / "model.safetensors")
    assert (document["temperature"], document["unsure_below"]) == (1, 0)
