"""Make rows of results, and count them: what `fmengine infer` prints and writes, one row for each picture.

`{"path", "label", "confidence", "probabilities", "reason", "error": null}`, or `"label": null` and
`"error": {"kind", "message"}`. `reason` is null, or one of `Reason`. A path that is not UTF-8, or holds control
characters, is percent-encoded and the row holds `"path_encoding": "percent"`, so that a row is always one line.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..pipeline.chunk import Answers
from ..types import Failure, Prediction, Reason, Result
from ..wording import pluralise

Row = dict[str, Any]

TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})  # Unicode's bidi controls

KEYS = frozenset({"path", "label", "confidence", "probabilities", "reason", "error"})  # that every row has


def to_row(path: str, result: Prediction | Failure) -> Row:
    """Make the row of one picture."""
    shown = escape_path(path)
    if isinstance(result, Prediction):
        # A float32 from 0 to 1 gives exactly `round(p, 6)`, in a third of the time: no bit of the product is lost.
        probabilities = {}
        for label, p in result.probabilities.items():
            probabilities[label] = round(p * 1e6) / 1e6
        row = {
            "path": shown,
            "label": result.label,
            "confidence": round(result.confidence * 1e6) / 1e6,
            "probabilities": probabilities,
            "reason": result.reason,
            "error": None,
        }
    else:
        # A decoder's message may quote half a surrogate pair, which no UTF-8 file can hold.
        message = result.message.encode(errors="backslashreplace").decode()
        error = {"kind": result.kind.value, "message": message}
        row = {
            "path": shown,
            "label": None,
            "confidence": None,
            "probabilities": None,
            "reason": None,
            "error": error,
        }
    return row if shown == path else encode_path(path) | row


class AnswerRows(Sequence[Row]):
    """The rows of `Answers`, in columns; each row is made when it is looked at.

    Attributes:
        answers: that they are made of.
        others: by index, the rows that the columns do not hold: of failures, and of paths that must be encoded.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.others = {
            index: to_row(answers.sources[index], failure) for index, failure in answers.failures.items()
        }
        if not "".join(answers.sources).isprintable():
            for index, path in enumerate(answers.sources):
                if escape_path(path) != path:
                    self.others[index] = to_row(path, answers[index])

    def __len__(self) -> int:
        return len(self.answers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Row]:
        for index, result in enumerate(self.answers):
            yield self.others.get(index) or to_row(self.answers.sources[index], result)


def to_rows(results: Sequence[Result]) -> Sequence[Row]:
    """Make the rows of results whose sources are paths."""
    if isinstance(results, Answers):
        return AnswerRows(results)
    return [to_row(str(result.source), result) for result in results]


def encode_path(path: str) -> Row:
    """Make the part of a row that holds its picture's path."""
    shown = escape_path(path)
    return {"path": shown} if shown == path else {"path": shown, "path_encoding": "percent"}


def decode_path(row: Row) -> str:
    """Return the path of a row's picture in the file system."""
    path: str = row["path"]
    return os.fsdecode(unquote_to_bytes(path)) if row.get("path_encoding") else path


def to_text(row: Row) -> str:
    """Format a row for a terminal: path, label, confidence, and a reason not to trust them."""
    if row["error"]:
        return f"{row['path']}  error  {row['error']['kind']}: {row['error']['message']}"
    reason = f"  {row['reason']}" if row["reason"] else ""
    return f"{row['path']}  {escape_text(row['label'])}  {row['confidence']:.3f}{reason}"


def escape_path(path: str) -> str:
    """Percent-encode a path that does not fit in one line of UTF-8; return any other as it is."""
    if path.isprintable():
        return path
    if any(_is_unfit(character) for character in path):
        return quote_from_bytes(os.fsencode(path), safe="/")
    return path


def escape_text(text: str) -> str:
    """Escape, as Python does, what would break the line that a text stands in, such as a model's label."""
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _is_unfit(c) else c for c in text)


def _is_unfit(character: str) -> bool:
    """Return whether a character breaks a line, turns its direction, or is a byte that is no UTF-8 (Cs)."""
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in TURNING
    )


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
        if isinstance(rows, AnswerRows) and not rows.others:
            self.labels.update(rows.answers.labels)
            self.reasons.update(filter(None, rows.answers.reasons))
            return
        for row in rows:
            if row["error"]:
                self.failed += 1
                continue
            self.labels[row["label"]] += 1
            if row["reason"]:
                self.reasons[row["reason"]] += 1

    @property
    def total(self) -> int:
        """Return the number of pictures."""
        return self.labels.total() + self.failed

    def describe(self) -> str:
        """Summarise, such as `3 pictures: 2 happy, 1 failed; not to be trusted: 1 flat`."""
        if not self.total:
            return "no new pictures"
        doubted = [item for item in sorted(self.reasons.items()) if item[0] != Reason.NO_FACE]  # that is no answer
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in doubted)
        doubt = f"; not to be trusted: {reasons}" if reasons else ""
        parts = [*self.list_answers(), f"{self.failed:,} failed"]
        return f"{pluralise(self.total, 'picture')}: {', '.join(parts)}{doubt}"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        counts = {"counts": dict(self.labels), "reasons": dict(self.reasons), "failed": self.failed}
        return {"pictures": self.total, **counts}

    def list_answers(self) -> list[str]:
        """List the answers, such as `2 happy`."""
        return [f"{count:,} {escape_text(label)}" for label, count in sorted(self.labels.items())]

    def count(self) -> str:
        """Say how much was looked at, such as `3 pictures`."""
        return pluralise(self.total, "picture")
