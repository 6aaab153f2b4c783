"""Builds every network that can be trained, by name."""

import dataclasses
from typing import Any

from fmengine.errors import DataError

from .mobilenet import MOBILENETS, MobileNet, MobileNetConfig
from .model import ARCHITECTURES, AlexNet, AlexNetConfig
from .recipe import Recipe

Config = AlexNetConfig | MobileNetConfig
Network = AlexNet | MobileNet

# AlexNets ship; MobileNets teach them.
CONFIGS: dict[str, Config] = {**ARCHITECTURES, **MOBILENETS}


def build(config: Config) -> Network:
    """Make the network that a configuration describes, with fresh weights."""
    return AlexNet(config) if isinstance(config, AlexNetConfig) else MobileNet(config)


def make_network_config(recipe: Recipe, outputs: int) -> Config:
    """Configure the architecture that a recipe names, with the recipe's own size, colour, widths and dropout."""
    if recipe.model not in CONFIGS:
        raise DataError(f"unknown model {recipe.model!r}; available are {', '.join(CONFIGS)}")
    config = CONFIGS[recipe.model]
    changes: dict[str, Any] = {"outputs": outputs, "dropout": recipe.dropout}
    if recipe.size:
        changes |= {"height": recipe.size, "width": recipe.size}
    if recipe.color:
        changes |= {"channels": 1 if recipe.color == "gray" else 3}
    if recipe.norm:
        if not isinstance(config, AlexNetConfig):
            raise DataError(f"recipe: norm is {recipe.norm!r}; {recipe.model} always has BatchNorm: leave it out")
        changes["batch_norm"] = recipe.norm == "batch"
    for name in ("widths", "hidden"):
        if wanted := getattr(recipe, name):
            if len(wanted) != (expected := len(getattr(config, name, ()))):
                raise DataError(f"recipe: {name} is a list of {len(wanted)}; {recipe.model} has {expected}")
            changes[name] = wanted
    return dataclasses.replace(config, **changes)
