"""Whether two ways to run one model file agree: what `auto` asks of a backend, and `bench` of every one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Largest difference of a probability. On a CPU, between two libraries' kernels: sums of some thousand products
# differ in the last bits. In half precision, which rounds every layer's activations: by some thousandths.
SAME, HALF = 1e-4, 0.01
MARGIN = 0.02  # a label may turn where the reference's top two differ by less


@dataclass(frozen=True)
class Agreement:
    """How far answers are from a reference's.

    Attributes:
        pictures: that were compared.
        largest: difference of a probability; NaN where an answer is no number.
        flips: labels that differ although the reference was sure of its own.
        tolerance: of `largest`.
    """

    pictures: int
    largest: float
    flips: int
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.pictures > 0 and self.flips == 0 and self.largest <= self.tolerance

    def __str__(self) -> str:
        return (
            f"its probabilities differ by {self.largest:.1e} at most (allowed is {self.tolerance:g}) and "
            f"{self.flips} labels turn, on {self.pictures} pictures"
        )


def compare(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating], tolerance: float) -> Agreement:
    """Compare probabilities `[N, K]` with a reference's."""
    top = np.sort(expected, axis=1)
    sure = top[:, -1] - top[:, -2] > MARGIN
    flipped = found.argmax(axis=1) != expected.argmax(axis=1)
    return Agreement(len(found), float(np.abs(found - expected).max()), int((flipped & sure).sum()), tolerance)
