"""What comes back for a picture: an answer, or the reason why there is none."""

from dataclasses import dataclass, field

from .decode import Source
from .errors import Kind

UNSURE = "unsure"  # the label of an answer whose confidence is under the threshold, where there is one


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer.

    Attributes:
        label: the most probable label, or `UNSURE` under the engine's threshold.
        confidence: its calibrated probability, from 0 to 1.
        probabilities: of each label, in the model's order; they add up to 1.
        source: what was given.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    source: Source = field(repr=False, compare=False)


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
