"""Scores answers: accuracy with its interval, recall, calibration, coverage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]

Z95 = 1.959964  # two-sided 95 % of the normal distribution
CALIBRATION_BINS = 15
RESAMPLES = 1000  # of the bootstrap
COVERAGES = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True)
class Report:
    """Figures of one set of pictures.

    Attributes:
        count: labelled pictures that were answered.
        accuracy: share answered right.
        accuracy_interval: its Wilson 95 % interval.
        balanced_accuracy: mean of the recalls of the classes that have pictures.
        balanced_interval: its 95 % interval, from those of the recalls.
        recall: of each class, share of its pictures answered right; None without pictures.
        recall_interval: of each class, the Wilson 95 % interval.
        precision: of each class, share of its answers that are right; None without answers.
        confusion: `[label][answer]` counts, in the order of `labels`.
        ece: expected calibration error over 15 bins of equal width.
        ece_interval: its 95 % interval over resampled pictures. Noise adds to the error of every sample, so that
            all of it may lie above the figure.
        reliability: of each of the 15 bins that holds answers, mean confidence, accuracy, and number.
        coverage: accuracy on the surest share of the pictures, by share.
        coverage_interval: of each, the Wilson 95 % interval.
        labels: the classes' names.
    """

    labels: list[str]
    count: int
    accuracy: float
    accuracy_interval: Interval
    balanced_accuracy: float
    balanced_interval: Interval
    recall: dict[str, float | None]
    recall_interval: dict[str, Interval]
    precision: dict[str, float | None]
    confusion: list[list[int]]
    ece: float
    ece_interval: Interval
    reliability: list[tuple[float, float, int]]
    coverage: dict[float, float]
    coverage_interval: dict[float, Interval]


def report(probabilities: npt.NDArray[Any], targets: npt.NDArray[np.int64], labels: tuple[str, ...]) -> Report:
    """Score `[N, K]` probabilities against `[N]` indices of the right labels."""
    classes = len(labels)
    answers, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = answers == targets
    confusion = np.bincount(targets * classes + answers, minlength=classes**2).reshape(classes, classes)
    found, wanted = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
    recalls = _divide(confusion.diagonal(), confusion.sum(axis=1), labels)
    present = [recall for recall in recalls.values() if recall is not None]
    coverage = _count_coverage(confidence, right)
    return Report(
        labels=list(labels),
        count=len(targets),
        accuracy=float(right.mean()),
        accuracy_interval=compute_wilson_interval(int(right.sum()), len(right)),
        balanced_accuracy=sum(present) / len(present),
        balanced_interval=compute_balanced_interval([(f, w) for f, w in zip(found, wanted, strict=True) if w]),
        recall=recalls,
        recall_interval={
            label: compute_wilson_interval(f, w) for label, f, w in zip(labels, found, wanted, strict=True)
        },
        precision=_divide(confusion.diagonal(), confusion.sum(axis=0), labels),
        confusion=confusion.tolist(),
        ece=compute_calibration_error(confidence, right),
        ece_interval=_resample_ece(confidence, right),
        reliability=reliability(confidence, right),
        coverage={share: correct / count for share, (correct, count) in coverage.items()},
        coverage_interval={share: compute_wilson_interval(*counts) for share, counts in coverage.items()},
    )


@dataclass(frozen=True)
class Accuracy:
    """The share of `count` labelled pictures that is answered right, with its Wilson 95 % interval."""

    share: float
    low: float
    high: float
    count: int


def compute_accuracy(answers: Sequence[str | None], targets: Sequence[str]) -> Accuracy | None:
    """Score labels against the right ones; None without any. A picture without an answer is not right."""
    if not targets:
        return None
    right = sum(answer == target for answer, target in zip(answers, targets, strict=True))
    return Accuracy(right / len(targets), *compute_wilson_interval(right, len(targets)), len(targets))


def compute_wilson_interval(right: int, count: int) -> Interval:
    """Compute the 95 % score interval of a share (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * (share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def compute_balanced_interval(classes: list[tuple[int, int]]) -> Interval:
    """Compute the 95 % interval of the mean of several classes' recalls, given as (right, count).

    The squared distances of each recall from the ends of its Wilson interval add up (Zou and Donner: "Construction
    of confidence limits about effect measures", 2008).
    """
    shares = [right / count for right, count in classes]
    limits = [compute_wilson_interval(right, count) for right, count in classes]
    mean = sum(shares) / len(shares)
    below = sum((share - low) ** 2 for share, (low, _) in zip(shares, limits, strict=True)) ** 0.5
    above = sum((high - share) ** 2 for share, (_, high) in zip(shares, limits, strict=True)) ** 0.5
    return mean - below / len(shares), mean + above / len(shares)


def _resample_ece(confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> Interval:
    """Compute the 2.5th and 97.5th percentile of the error over seeded resamples of the answers (Efron 1979)."""
    rng, count, binned, gaps = np.random.default_rng(0), len(right), _assign_bins(confidence), confidence - right
    samples = (rng.integers(0, count, count) for _ in range(RESAMPLES))
    errors = [np.abs(np.bincount(binned[rows], gaps[rows])).sum() / count for rows in samples]
    low, high = np.percentile(errors, (2.5, 97.5))
    return float(low), float(high)


def _assign_bins(confidence: npt.NDArray[Any], bins: int = CALIBRATION_BINS) -> npt.NDArray[np.int64]:
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def compute_calibration_error(
    confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Compute the mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017)."""
    gaps = [count * abs(mean - accuracy) for mean, accuracy, count in reliability(confidence, right, bins)]
    return sum(gaps) / len(right)


def reliability(
    confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> list[tuple[float, float, int]]:
    """Compute mean confidence, accuracy and number of answers, of each bin that holds any."""
    binned = _assign_bins(confidence, bins)
    inside = [binned == b for b in range(bins)]
    return [(float(confidence[b].mean()), float(right[b].mean()), int(b.sum())) for b in inside if b.any()]


def _count_coverage(confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> dict[float, tuple[int, int]]:
    """Count the surest answers that are right, and the surest answers, by share."""
    surest = np.argsort(-confidence, kind="stable")
    counts = {share: max(1, round(share * len(right))) for share in COVERAGES}
    return {share: (int(right[surest[:count]].sum()), count) for share, count in counts.items()}


def _divide(part: npt.NDArray[Any], whole: npt.NDArray[Any], labels: tuple[str, ...]) -> dict[str, float | None]:
    return {label: float(p / w) if w else None for label, p, w in zip(labels, part, whole, strict=True)}
