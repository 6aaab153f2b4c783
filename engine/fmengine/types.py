"""What comes back for a picture: an answer, or the reason why there is none."""

from dataclasses import dataclass, field
from enum import StrEnum

from .errors import Kind
from .image.decode import Source

UNSURE = "unsure"  # the label of an answer that has a reason, where the engine has a threshold


class Reason(StrEnum):
    """Why an answer deserves no trust, whatever its confidence. The list is closed."""

    UNSURE = "unsure"  # the confidence is under the engine's threshold, or else the one that the model recommends
    FLAT = "flat"  # the picture shows nothing: one level all over


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer.

    Attributes:
        label: the most probable label, or `UNSURE` where the engine has a threshold and there is a `reason`.
        confidence: its calibrated probability, from 0 to 1.
        probabilities: of each label, in the model's order; they add up to 1.
        source: what was given.
        reason: why the answer deserves no trust; None where it does.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    source: Source = field(repr=False, compare=False)
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture without an answer.

    Attributes:
        kind: what went wrong, one of a closed list.
        message: the same for a person, on one line.
        source: what was given.
    """

    kind: Kind
    message: str
    source: Source = field(repr=False, compare=False)
