"""Recipes: TOML, overrides, and mistakes that are told before they cost a night."""

from pathlib import Path
from typing import Any

import pytest

from fmengine.errors import DataError, UnavailableError
from fmengine_train.device import pick_device, pick_precision
from fmengine_train.model import ARCHITECTURES
from fmengine_train.networks import make_network_config
from fmengine_train.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.toml"))


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_without_a_file_has_the_defaults() -> None:
    assert Recipe.load(None, {}) == Recipe()


def test_a_file_wins_over_defaults_and_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, 'epochs = 7\nlearning_rate = 0.25\nclasses = ["sad", "happy"]\n')
    recipe = Recipe.load(path, {"epochs": 9})
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_size) == (9, 0.25, Recipe().batch_size)
    assert recipe.classes == ("sad", "happy")


def test_a_whole_number_does_where_a_fraction_is_expected(tmp_path: Path) -> None:
    assert Recipe.load(recipe_file(tmp_path, "warmup = 2\n"), {}).warmup == 2


def test_to_dict_and_from_dict_are_inverse() -> None:
    recipe = Recipe(classes=("happy", "sad"), size=48, color="rgb", widths=(8, 8, 8, 8, 8), hidden=(16, 16))
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_names_a_network(path: Path) -> None:
    recipe = Recipe.load(path, {})
    assert make_network_config(recipe, 2).outputs == 2


def test_there_is_a_shipped_recipe() -> None:
    assert "alexnet-slim" in [path.stem for path in RECIPES]


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown learnin_rate; known are .*learning_rate"):
        Recipe.load(recipe_file(tmp_path, "learnin_rate = 0.1\n"), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "3"),
        ("epochs", 3.5),
        ("epochs", True),
        ("learning_rate", "fast"),
        ("learning_rate", False),
        ("model", 1),
        ("classes", "happy"),
        ("classes", [1, 2]),
        ("widths", [32, "64"]),
        ("hidden", [256.0, 256.0]),
        ("widths", [0, 1, 1, 1, 1]),
    ],
)
def test_a_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(DataError, match=f"recipe: {name} is .*expected"):
        Recipe.from_dict({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("warmup", float("inf")),
        ("validation", 1.0),
        ("dropout", 1.0),
        ("label_smoothing", -0.01),
        ("ema", 1.0),
        ("clip_norm", 0.0),
        ("augment", 2.1),
        ("size", -1),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"recipe: {name} is .*expected"):
        Recipe.from_dict({name: value})


@pytest.mark.parametrize("name", ["fit", "color", "norm", "optimizer", "class_weights", "precision"])
def test_a_bad_choice_is_refused_with_the_choices(name: str) -> None:
    default = getattr(Recipe(), name)
    with pytest.raises(DataError, match=f"{name} is 'cubist'; expected one of .*'{default}'"):
        Recipe.from_dict({name: "cubist"})


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown model 'resnet'.*alexnet-slim"):
        make_network_config(Recipe(model="resnet"), 2)


@pytest.mark.parametrize("content", [b"epochs =", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the recipe .*recipe\.toml"):
        Recipe.load(path, {})


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the recipe .*none\.toml"):
        Recipe.load(tmp_path / "none.toml", {})


def test_the_network_takes_size_colour_and_dropout_from_the_recipe() -> None:
    config = make_network_config(Recipe(size=64, color="rgb", dropout=0.25), 3)
    assert (config.height, config.width, config.channels) == (64, 64, 3)
    assert (config.dropout, config.outputs) == (0.25, 3)
    assert config.widths == ARCHITECTURES["alexnet-slim"].widths


def test_the_network_takes_widths_from_the_recipe() -> None:
    recipe = Recipe(widths=(8, 16, 24, 32, 40), hidden=(48, 56))
    config = make_network_config(recipe, 2)
    assert (config.widths, config.hidden) == (recipe.widths, recipe.hidden)  # type: ignore[union-attr]


def test_the_full_network_trains_with_batch_norm_where_the_recipe_says_so() -> None:
    norms = [make_network_config(Recipe(model="alexnet", norm=norm), 2) for norm in ("", "batch", "none")]
    assert [config.batch_norm for config in norms] == [False, True, False]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="mobilenet-112 always has BatchNorm"):
        make_network_config(Recipe(model="mobilenet-112", norm="batch"), 2)


@pytest.mark.parametrize(
    "changes", [{"widths": (8, 8)}, {"model": "mobilenet-112", "hidden": (8, 8)}, {"hidden": (8, 8, 8)}]
)
def test_another_number_of_widths_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"is a list of \d; (alexnet-slim|mobilenet-112) has \d"):
        make_network_config(Recipe(**changes), 2)


def test_a_device_without_a_driver_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UnavailableError, match="no CUDA device"):
        pick_device("cuda")


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(DataError, match="fp16 trains on CUDA only"):
        pick_precision("fp16", pick_device("cpu"))
