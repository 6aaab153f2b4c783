"""Makes what changes the weights: the optimizer, its learning rate, the moving average, the class weights."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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


def make_optimizer(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
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
    on_gpu = device.type == "cuda"
    made = [
        {
            "params": params,
            "scale": scale,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            # A CUDA graph reads a tensor anew each time it is replayed.
            "lr": torch.tensor(recipe.learning_rate, device=device) if on_gpu else recipe.learning_rate,
        }
        for (scale, decayed), params in groups.items()
    ]
    fused = on_gpu or None  # one kernel for all weights
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(made, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(made, fused=fused, capturable=on_gpu)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, by its scale."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["scale"])
        else:
            group["lr"] = rate * group["scale"]


class MovingAverage(AveragedModel):
    """An exponential moving average of weights and buffers.

    It forgets faster in its first steps, so that short runs work too. How many steps there were is known to the
    host, so that no step waits for a GPU.

    Args:
        model: whose weights are averaged.
        decay: a step, of the average so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay, self._count = decay, 0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add a step's weights; counters, such as BatchNorm's, are copied."""
        averages, weights = [], []
        for average, current in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if self._count and average.is_floating_point():
                averages.append(average)
                weights.append(current)
            else:
                average.copy_(current)
        if averages:
            decay = min(self._decay, (1 + self._count) / (10 + self._count))
            torch._foreach_lerp_(averages, weights, 1 - decay)
        self._count += 1
        self.n_averaged.add_(1)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        loaded = super().load_state_dict(state_dict, strict, assign)
        self._count = int(self.n_averaged)
        return loaded


def compute_class_weights(recipe: Recipe, data: Dataset, device: torch.device) -> Tensor | None:
    """Compute weights inverse to each class's frequency, 1 on average over pictures; None for equal weights."""
    if recipe.class_weights == "none":
        return None
    targets = data.targets[data.train]
    counts = np.bincount(targets[targets >= 0], minlength=len(data.labels))
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=device)
