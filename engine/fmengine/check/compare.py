"""Compare answers with a reference's, by one table of tolerances.

Used where a GPU's engine is accepted (`check.gate`), where `auto` selects a CPU backend (`backend.select`), for
the verdict of `fmengine bench`, for `fmengine parity`, and for the files that `fmengine export` writes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tolerance:
    """How far probabilities may be from a reference's.

    Attributes:
        probability: largest difference of any picture's; infinite where single pictures may differ by any amount.
        mean_probability: mean over pictures of the largest difference of each.
        flips: largest share of the pictures whose label differs; one may where that share is less than a picture.
        margin: a differing label counts only where the reference's top two probabilities differ by more.
    """

    probability: float = math.inf
    mean_probability: float = math.inf
    flips: float = 0.0
    margin: float = 0.0


# The same model file in two libraries on a CPU: sums of some thousand products differ in the last bits. A label
# may differ where the reference's top two are about even.
CPU_LIBRARIES = Tolerance(probability=1e-4, margin=0.02)

# On a GPU in half precision, alone and in batches, which rounds every layer's activations: a probability moves by
# some thousandths; a wrong layer, batch or stream moves it by tenths. A label can flip within 0.01 only where the
# top two differ by less than twice as much.
HALF_PRECISION = Tolerance(probability=0.01, margin=0.02)

# An exported file, by its precision, against PyTorch in FP32:
# FP32: the same arithmetic in another order; sums of some thousand products differ in the last bits.
# FP16: 11 bits of mantissa, about 1e-3 relative a layer; a label may flip where the top two are even.
# INT8: 7-bit weights and 8-bit activations; labels flip in both directions, so that reports show the difference
#       of accuracy beside the flips.
PARITY: dict[str, Tolerance] = {
    "fp32": Tolerance(probability=1e-4, mean_probability=1e-5),
    "fp16": Tolerance(probability=0.02, mean_probability=2e-3, flips=0.001),
    "int8": Tolerance(mean_probability=0.02, flips=0.015),
}

# The largest difference of a logit as a share of the reference's largest, by precision, where a file was just
# exported: a wrong layer, stride or scale is off by about the whole. `PARITY` measures finely.
EXPORTED_LOGITS: dict[str, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}

# The least mean cosine of pictures' features to those of PyTorch in FP32, by precision. The shipped INT8 file has
# 0.9994 to the FP16 one on 1,499 faces, the worst 0.993; two faces taken at random have 0.33.
PARITY_FEATURES: dict[str, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.98}

# How far the probabilities of a picture may be from adding up to 1: the rounding of FP32.
PROBABILITY_SUM = 1e-5


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far probabilities are from a reference's, picture by picture.

    Attributes:
        changes: float64 `[N]`, the largest difference of each picture's probabilities; NaN where one is no number.
        flipped: bool `[N]`, whether the label differs.
        margins: float64 `[N]`, the difference of the reference's top two probabilities.
        tolerance: that they must be within.
    """

    changes: npt.NDArray[np.float64]
    flipped: npt.NDArray[np.bool_]
    margins: npt.NDArray[np.float64]
    tolerance: Tolerance

    @property
    def largest(self) -> float:
        """The largest change; NaN where an answer is no number, or where there is none."""
        return float(self.changes.max()) if self.changes.size else math.nan

    @property
    def mean(self) -> float:
        """The mean change; NaN as `largest` is."""
        return float(self.changes.mean()) if self.changes.size else math.nan

    @property
    def flips(self) -> int:
        """The number of labels that differ beyond the margin."""
        return int((self.flipped & (self.margins > self.tolerance.margin)).sum())

    @property
    def excessive(self) -> npt.NDArray[np.bool_]:
        """Which pictures' probabilities change by more than is allowed of any, bool `[N]`."""
        return ~(self.changes <= self.tolerance.probability)  # NaN is excessive too

    @property
    def breaches(self) -> list[str]:
        """What exceeds the tolerance, a sentence each."""
        return list(self._list_breaches())

    def _list_breaches(self) -> Iterator[str]:
        allowed, pictures = self.tolerance, len(self.changes)
        if self.excessive.any():
            yield f"a confidence moves by {self.largest:.2g}; allowed is {allowed.probability}"
        if not self.mean <= allowed.mean_probability:
            yield f"confidences move by {self.mean:.2g} on average, over {allowed.mean_probability}"
        # In a small set, whose share is less than one label, one may flip.
        if self.flips > max(allowed.flips * pictures, 1 if allowed.flips else 0):
            yield f"labels turned: {self.flips} of {pictures}; allowed are {allowed.flips:.1%}"

    @property
    def holds(self) -> bool:
        """Whether pictures were compared, and all is within the tolerance."""
        return len(self.changes) > 0 and not self.breaches

    def __str__(self) -> str:
        return (
            f"its probabilities differ by {self.largest:.1e} at most (allowed is {self.tolerance.probability:g}) "
            f"and {self.flips} labels turn, on {len(self.changes)} pictures"
        )


@dataclass(frozen=True)
class LogitDifference:
    """How far logits are from a reference's.

    Attributes:
        max: largest absolute difference; each figure is NaN where there are no pictures.
        mean: mean absolute difference.
        p99: the absolute difference that 99 % are within.
        cosine: of all pictures' logits as one vector: single pictures near the boundary have logits near zero.
    """

    max: float
    mean: float
    p99: float
    cosine: float


@dataclass(frozen=True)
class FeatureDifference:
    """How far features are from a reference's.

    Attributes:
        max: largest absolute difference; each figure is NaN where there are no pictures.
        cosine: mean cosine of a picture's features to the reference's; 1 where both are all zeros.
        min_cosine: the smallest of any picture.
    """

    max: float
    cosine: float
    min_cosine: float


def compare(
    found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating], tolerance: Tolerance
) -> Comparison:
    """Compare probabilities `[N, K]` with a reference's."""
    top = np.sort(expected.astype(np.float64), axis=1)
    return Comparison(
        np.abs(found - expected).max(axis=1).astype(np.float64),
        found.argmax(axis=1) != expected.argmax(axis=1),
        top[:, -1] - top[:, -2],
        tolerance,
    )


def compare_logits(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> LogitDifference:
    """Compare logits `[N, K]` with a reference's."""
    if not found.size:
        return LogitDifference(math.nan, math.nan, math.nan, math.nan)
    difference = np.abs(found - expected)
    cosine = (found * expected).sum() / max(1e-12, np.linalg.norm(found) * np.linalg.norm(expected))
    return LogitDifference(
        float(difference.max()), float(difference.mean()), float(np.quantile(difference, 0.99)), float(cosine)
    )


def compare_features(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> FeatureDifference:
    """Compare features `[N, F]` with a reference's, picture by picture."""
    if not found.size:
        return FeatureDifference(math.nan, math.nan, math.nan)
    a, b = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where((a == b).all(axis=1), 1.0, (a * b).sum(axis=1) / np.maximum(lengths, 1e-12))
    return FeatureDifference(float(np.abs(a - b).max()), float(cosines.mean()), float(cosines.min()))
