"""Figures about answers: accuracy with its interval, recall, calibration, coverage."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Z95 = 1.959964  # two-sided 95 % of the normal distribution
CALIBRATION_BINS = 15
COVERAGES = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True)
class Report:
    """Figures of one set of pictures.

    Attributes:
        count: labelled pictures that were answered.
        accuracy: share answered right.
        accuracy_interval: its Wilson 95 % interval.
        balanced_accuracy: mean of the recalls of the classes that have pictures.
        recall: of each class, share of its pictures answered right; None without pictures.
        precision: of each class, share of its answers that are right; None without answers.
        confusion: `[label][answer]` counts, in the order of `labels`.
        ece: expected calibration error over 15 bins of equal width.
        reliability: of each of the 15 bins that holds answers, mean confidence, accuracy, and number.
        coverage: accuracy on the surest share of the pictures, by share.
        labels: the classes' names.
    """

    labels: list[str]
    count: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    recall: dict[str, float | None]
    precision: dict[str, float | None]
    confusion: list[list[int]]
    ece: float
    reliability: list[tuple[float, float, int]]
    coverage: dict[float, float]


def report(probabilities: npt.NDArray[Any], targets: npt.NDArray[np.int64], labels: tuple[str, ...]) -> Report:
    """Score `[N, K]` probabilities against `[N]` indices of the right labels."""
    classes = len(labels)
    answers, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = answers == targets
    confusion = np.bincount(targets * classes + answers, minlength=classes**2).reshape(classes, classes)
    recalls = _shares(confusion.diagonal(), confusion.sum(axis=1), labels)
    present = [recall for recall in recalls.values() if recall is not None]
    return Report(
        labels=list(labels),
        count=len(targets),
        accuracy=float(right.mean()),
        accuracy_interval=wilson(int(right.sum()), len(right)),
        balanced_accuracy=sum(present) / len(present),
        recall=recalls,
        precision=_shares(confusion.diagonal(), confusion.sum(axis=0), labels),
        confusion=confusion.tolist(),
        ece=expected_calibration_error(confidence, right),
        reliability=reliability(confidence, right),
        coverage=_coverage(confidence, right),
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * (share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(
    confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017)."""
    gaps = [count * abs(mean - accuracy) for mean, accuracy, count in reliability(confidence, right, bins)]
    return sum(gaps) / len(right)


def reliability(
    confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of answers, of each bin that holds any."""
    binned = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = [binned == b for b in range(bins)]
    return [(float(confidence[b].mean()), float(right[b].mean()), int(b.sum())) for b in inside if b.any()]


def _coverage(confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> dict[float, float]:
    surest = np.argsort(-confidence, kind="stable")
    return {share: float(right[surest[: max(1, round(share * len(right)))]].mean()) for share in COVERAGES}


def _shares(part: npt.NDArray[Any], whole: npt.NDArray[Any], labels: tuple[str, ...]) -> dict[str, float | None]:
    return {label: float(p / w) if w else None for label, p, w in zip(labels, part, whole, strict=True)}
