"""Count how many pictures got which answer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..wording import pluralise
from .rows import Row, escape_text


@dataclass
class Tally:
    """Numbers of rows, of labels apart from failures: a label may be called `error`.

    Attributes:
        labels: answers by label.
        reasons: answers that have a reason not to be trusted, by reason.
        failed: pictures without an answer.
    """

    labels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Count some more rows."""
        for row in rows:
            if row["error"]:
                self.failed += 1
                continue
            self.labels[row["label"]] += 1
            if row["reason"]:
                self.reasons[row["reason"]] += 1

    @property
    def total(self) -> int:
        """The number of rows."""
        return self.labels.total() + self.failed

    def describe(self) -> str:
        """Summarise, such as `3 pictures: 2 happy, 1 failed; not to be trusted: 1 flat`."""
        if not self.total:
            return "no new pictures"
        answers = [f"{count:,} {escape_text(label)}" for label, count in sorted(self.labels.items())]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
        doubt = f"; not to be trusted: {reasons}" if reasons else ""
        return f"{pluralise(self.total, 'picture')}: {', '.join([*answers, f'{self.failed:,} failed'])}{doubt}"
