"""Makes what changes the weights: the optimizer, its learning rate, the moving average, the class weights."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .data import Dataset
from .recipe import Recipe


def compute_learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Compute the learning rate of a step: linear warm-up, then a cosine to zero at the last step.

    An epoch that fits the last layer alone has no steps.
    """
    epochs = recipe.epochs - (recipe.probe > 0)
    warmup, total = recipe.warmup * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * min(1.0, (step + 1) / warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer, with weight decay on matrices only: not on biases, not on BatchNorm.

    Each group has a `scale`, by which its learning rate is multiplied: the recipe's `layer_decay` to the power of
    how many layers follow (Howard, Ruder: "Universal Language Model Fine-tuning for Text Classification", 2018).
    """
    parameters = list(model.parameters())
    left = sum(p.ndim > 1 for p in parameters)  # each layer begins with its matrix
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        left -= parameter.ndim > 1
        groups.setdefault((recipe.layer_decay**left, parameter.ndim > 1), []).append(parameter)
    made = [
        {"params": params, "scale": scale, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (scale, decayed), params in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(made, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(made, lr=recipe.learning_rate)


def make_moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Make an exponential moving average that forgets faster in its first steps, so that short runs work too."""

    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():  # BatchNorm's counter
            return current
        return torch.lerp(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return average


def compute_class_weights(recipe: Recipe, data: Dataset, device: torch.device) -> Tensor | None:
    """Compute weights inverse to each class's frequency, 1 on average over pictures; None for equal weights."""
    if recipe.class_weights == "none":
        return None
    targets = data.targets[data.train]
    counts = np.bincount(targets[targets >= 0], minlength=len(data.labels))
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=device)
