"""Scores logits: accuracy, recall by class, loss; and fits the temperature."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Scores:
    """Figures of one set of pictures.

    Attributes:
        count: number of pictures.
        loss: mean cross-entropy in nats.
        accuracy: share answered right.
        balanced_accuracy: mean of the recalls, where a class has pictures.
        recall: share answered right of each class; None for a class without pictures.
        confusion: `[label][answer]` counts.
    """

    count: int
    loss: float
    accuracy: float
    balanced_accuracy: float
    recall: list[float | None]
    confusion: list[list[int]]


def score(logits: Tensor, targets: Tensor) -> Scores:
    """Score `[N, K]` logits against `[N]` targets."""
    classes = logits.shape[1]
    confusion = torch.bincount(targets * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
    recall = confusion.diagonal() / confusion.sum(1)
    return Scores(
        count=len(targets),
        loss=float(F.cross_entropy(logits.float(), targets)),
        accuracy=float(confusion.diagonal().sum() / len(targets)),
        balanced_accuracy=float(recall.nanmean()),
        recall=[None if math.isnan(share) else share for share in recall.tolist()],
        confusion=confusion.tolist(),
    )


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Find the temperature that minimises the cross-entropy of `softmax(logits / T)`.

    Guo et al., "On Calibration of Modern Neural Networks", 2017. It changes no label. The search runs
    over 1/T from 0.05 to 20, in which the loss is convex.
    """
    logits = logits.double()

    def slope(inverse: float) -> float:
        scaled = torch.tensor(inverse, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits * scaled, targets), scaled)
        return float(gradient)

    low, high = 0.05, 20.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)
