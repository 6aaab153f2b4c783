"""Encode rows as lines of a file, and decode them: one JSON object a line, or lines of CSV."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from json.encoder import encode_basestring
from typing import Any, Protocol
from urllib.parse import quote

from ..errors import OutputError
from .rows import KEYS, AnswerRows, Row, decode_path, encode_path, escape_text

FORMULA = ("=", "+", "-", "@")  # a spreadsheet executes a cell that begins with one of these
ESCAPED = (*FORMULA, "'")

write_float = float.__repr__  # as `json` does; it takes nothing but floats


class Format(Protocol):
    """Encodes each row as one line of text. `header` is the line before them, or empty."""

    header: str

    def encode(self, rows: Iterable[Row]) -> str:
        """Return the rows' lines, each with its line feed."""
        ...

    def decode(self, line: str) -> Row:
        """Return the row of a line; ValueError, StopIteration, RecursionError or csv.Error where it is none."""
        ...


class Jsonl:
    """One JSON object a line."""

    header = ""
    keys = KEYS  # that every row has
    _encoder = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` would make one for every row

    def encode(self, rows: Iterable[Row]) -> str:
        if isinstance(rows, AnswerRows):
            return _encode_columns(rows, self._encoder)
        # Nearly every row is an answer of six keys.
        return "".join(
            [
                self._encoder.encode(row) + "\n" if row["error"] or len(row) > len(KEYS) else _encode_answer(row)
                for row in rows
            ]
        )

    def decode(self, line: str) -> Row:
        row = json.loads(line)
        if not isinstance(row, dict) or not row.keys() >= self.keys or not isinstance(row["path"], str):
            raise ValueError("not a result row")
        return row


def _encode_columns(rows: AnswerRows, encoder: json.JSONEncoder) -> str:
    """Encode rows that are held in columns, to the same bytes."""
    answers = rows.answers
    names = ", ".join(encode_basestring(name).replace("%", "%%") + ": %s" for name in answers.names)
    line = '{"path": %s, "label": %s, "confidence": %s, "probabilities": {' + names
    line += '}, "reason": %s, "error": null}\n'
    # Column by column: a step of Python for each picture would cost as much as the rest.
    texts = [write_float(round(p * 1e6) / 1e6) for p in chain.from_iterable(answers.probabilities)]
    labels = {label: encode_basestring(label) for label in {*answers.labels}}
    reasons = {reason: encode_basestring(reason) if reason else "null" for reason in {*answers.reasons}}
    size = len(answers.names)
    columns: list[Iterable[str]] = [
        map(encode_basestring, answers.sources),
        map(labels.__getitem__, answers.labels),
        [texts[size * row + best] for row, best in enumerate(answers.best)],
        *(texts[index::size] for index in range(size)),
        map(reasons.__getitem__, answers.reasons),
    ]
    lines = list(map(line.__mod__, zip(*columns, strict=True)))
    for index, row in rows.others.items():
        lines[index] = encoder.encode(row) + "\n"
    return "".join(lines)


def _encode_answer(row: Row) -> str:
    """Encode an answer's row, byte for byte as `json` does, in two fifths of the time."""
    confidence, reason = write_float(row["confidence"]), row["reason"]
    probabilities = []
    for label, p in row["probabilities"].items():
        # One of them is the confidence; to write a float costs most.
        text = confidence if p == row["confidence"] else write_float(p)
        probabilities.append(f"{encode_basestring(label)}: {text}")
    return (
        f'{{"path": {encode_basestring(row["path"])}, "label": {encode_basestring(row["label"])}, '
        f'"confidence": {confidence}, "probabilities": {{{", ".join(probabilities)}}}, '
        f'"reason": {encode_basestring(reason) if reason else "null"}, "error": null}}\n'
    )


COLUMNS = ("path", "label", "confidence", "reason", "error_kind", "error_message", "path_encoding")


class Csv:
    """`path,label,confidence,<a column a label>,reason,error_kind,error_message,path_encoding`.

    No cell is a formula to a spreadsheet: a path that would be one is percent-encoded, and other text gets an
    apostrophe in front.
    """

    columns: tuple[str, ...] = COLUMNS  # beside those of the labels

    def __init__(self, labels: Sequence[str]) -> None:
        """Take the model's labels. Raises OutputError for one that cannot be a column beside the others."""
        check_labels(labels)
        if taken := [label for label in labels if label in self.columns]:
            raise OutputError(
                f"a CSV file has a column {taken[0]!r} already, and the model has a label of that name; "
                "choose .jsonl or .parquet"
            )
        self.labels = labels
        self.header = self._format_lines([self._list_columns()])

    def encode(self, rows: Iterable[Row]) -> str:
        return self._format_lines(map(self._list_values, rows))

    def decode(self, line: str) -> Row:
        return self._parse_values(next(csv.reader([line])))

    def _list_columns(self) -> list[str | None]:
        return [*COLUMNS[:3], *map(escape_formula, self.labels), *COLUMNS[3:]]

    def _list_values(self, row: Row) -> list[Any]:
        probabilities, error = row["probabilities"] or {}, row["error"] or {}
        path, encoding = row["path"], row.get("path_encoding")
        if path.startswith(FORMULA):
            path, encoding = path if encoding else quote(path, safe="/"), "percent"
            path = path.replace("-", "%2D", 1) if path.startswith("-") else path  # which `quote` does not encode
        values = [path, escape_formula(row["label"]), row["confidence"], *map(probabilities.get, self.labels)]
        return [*values, row["reason"], error.get("kind"), escape_formula(error.get("message")), encoding]

    def _parse_values(self, values: Sequence[str]) -> Row:
        path, label, confidence, *probabilities, reason, kind, message, encoding = values
        if len(probabilities) != len(self.labels):
            raise ValueError("wrong number of columns")
        row = self._parse_path(path, encoding)
        if kind:
            error = {"kind": kind, "message": _unescape_formula(message)}
            return row | {"label": None, "confidence": None, "probabilities": None, "reason": None, "error": error}
        return row | {
            "label": _unescape_formula(label),
            "confidence": float(confidence),
            "probabilities": {k: float(p) for k, p in zip(self.labels, probabilities, strict=True)},
            "reason": reason or None,
            "error": None,
        }

    def _parse_path(self, path: str, encoding: str) -> Row:
        if encoding:  # perhaps in CSV only, where it would have been a formula
            return encode_path(decode_path({"path": path, "path_encoding": encoding}))
        return {"path": path}

    def _format_lines(self, lines: Iterable[Sequence[Any]]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()


def make_format(suffix: str, labels: Sequence[str]) -> Format:
    """Make the format of a suffix, `.jsonl` or `.csv`. Raises OutputError for labels that it cannot hold."""
    return Csv(labels) if suffix == ".csv" else Jsonl()


def check_labels(labels: Sequence[str]) -> None:
    """Raise OutputError for labels that cannot be names of columns, such as one that breaks the line."""
    for label in labels:
        if escape_text(label) != label:
            raise OutputError(f"the model's label {label!r} cannot be the name of a column; choose .jsonl")


def escape_formula(value: str | None) -> str | None:
    """Put an apostrophe before a text that a spreadsheet would execute."""
    return f"'{value}" if value and value.startswith(ESCAPED) else value


def _unescape_formula(cell: str) -> str:
    return cell.removeprefix("'")
