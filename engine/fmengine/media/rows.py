"""Make rows of a video's faces, one a face and frame, and write them: as text, as JSON lines or as CSV.

`{"time", "frame", "id", "box", "score", "landmarks", "label", "confidence", "probabilities", "reason"}`. A frame
without a face gives no row.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import OutputError
from ..jobs.formats import check_labels, escape_formula
from ..jobs.rows import escape_text
from ..types import Frame

FORMATS = (".jsonl", ".csv")
POINTS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")  # the landmarks, in their order
EDGES = ("left", "top", "right", "bottom")

Row = dict[str, Any]


def to_rows(frame: Frame) -> list[Row]:
    """Make the rows of a frame: microseconds, tenths of pixels, millionths of a probability."""
    rows = []
    for face in frame.faces:
        answer = face.to_dict()
        place = {
            "box": [round(edge, 1) for edge in face.box],
            "score": round(face.score, 4),
            "landmarks": [[round(x, 1), round(y, 1)] for x, y in face.landmarks],
            "confidence": round(answer["confidence"], 6),
            "probabilities": {label: round(p, 6) for label, p in answer["probabilities"].items()},
        }
        rows.append({"time": round(frame.time, 6), "frame": frame.index} | answer | place)
    return rows


def to_text(row: Row) -> str:
    """Format a row for a terminal: time, id, label, confidence, box, and a reason not to trust the label."""
    name = "-" if row["id"] is None else row["id"]
    box = ",".join(f"{edge:.0f}" for edge in row["box"])
    reason = f"  {row['reason']}" if row["reason"] else ""
    return f"{row['time']:.3f}  {name}  {escape_text(row['label'])}  {row['confidence']:.3f}  {box}{reason}"


class RowFile:
    """A file of rows that grows as they come; a context manager.

    A CSV file has `time,frame,id,left,top,right,bottom,score,label,confidence,<a column a label>,reason` and two
    columns for each landmark, from `right_eye_x` to `left_mouth_y`.

    Args:
        path: ends in one of `FORMATS`; a file that is there is replaced.
        labels: of the model.

    Raises:
        OutputError: if it cannot be written, or a label cannot be the name of a column.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path, self._labels, self._is_csv = path, labels, path.suffix == ".csv"
        header = self._make_header() if self._is_csv else ""
        try:
            self._file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise self._make_error(error) from error
        self._write(header)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows. Raises OutputError if that fails, as on a full disk."""
        if rows:
            self._write("".join(map(self._encode, rows)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _encode(self, row: Row) -> str:
        if not self._is_csv:
            return json.dumps(row, ensure_ascii=False) + "\n"
        points = [value for point in row["landmarks"] for value in point]
        answer = [escape_formula(row["label"]), row["confidence"], *map(row["probabilities"].get, self._labels)]
        return _format_line(
            [row["time"], row["frame"], row["id"], *row["box"], row["score"], *answer, row["reason"], *points]
        )

    def _make_header(self) -> str:
        check_labels(self._labels)
        before = ["time", "frame", "id", *EDGES, "score", "label", "confidence"]
        after = ["reason", *(f"{name}_{axis}" for name in POINTS for axis in "xy")]
        if taken := [label for label in self._labels if label in (*before, *after)]:
            raise OutputError(
                f"a CSV file has a column {taken[0]!r} already, and the model a label of that name; choose .jsonl"
            )
        return _format_line([*before, *map(escape_formula, self._labels), *after])

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise self._make_error(error) from error

    def _make_error(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self.path}: {error.strerror}")


def _format_line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
