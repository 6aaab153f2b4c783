"""Encode the rows of faces as lines of a file, and decode them: the formats of `formats.py` with more in a row."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from .face_rows import FACE_KEYS, make_empty_answer
from .formats import COLUMNS, Csv, Format, Jsonl
from .rows import KEYS, Row

COUNTS = ("face", "faces")
BOX = ("box_left", "box_top", "box_right", "box_bottom")
POINTS = ("right_eye", "left_eye", "nose", "mouth_right", "mouth_left")  # in the order of `Face.landmarks`
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")
PLACE = ("score", *BOX, *LANDMARKS)


class FaceJsonl(Jsonl):
    """One JSON object a line."""

    keys = KEYS | FACE_KEYS

    def decode(self, line: str) -> Row:
        row = super().decode(line)
        counts = [row[name] for name in COUNTS if row[name] is not None]
        if not all(isinstance(count, int) for count in counts) or (row["face"] is not None and len(counts) < 2):
            raise ValueError("not a row of a face")
        return row


class FaceCsv(Csv):
    """`path,face,faces,label,…,path_encoding,score,box_left,…,right_eye_x,…`: one number a cell."""

    columns = (*COLUMNS, *COUNTS, *PLACE)

    def _list_columns(self) -> list[str | None]:
        path, *others = super()._list_columns()
        return [path, *COUNTS, *others, *PLACE]

    def _list_values(self, row: Row) -> list[Any]:
        path, *others = super()._list_values(row)
        place = [None] * len(PLACE)
        if row["face"] is not None:
            place = [row["score"], *row["box"], *chain.from_iterable(row["landmarks"])]
        return [path, row["face"], row["faces"], *others, *place]

    def _parse_values(self, values: Sequence[str]) -> Row:
        path, face, faces, *others = values
        plain, place = others[: -len(PLACE)], others[-len(PLACE) :]
        if faces == "0":
            row = self._parse_path(path, plain[-1]) | make_empty_answer()
        else:
            row = super()._parse_values([path, *plain])
        numbers = [float(value) for value in place] if face else []
        points = numbers[1 + len(BOX) :]
        return row | {
            "face": int(face) if face else None,
            "faces": int(faces) if faces else None,
            "box": numbers[1 : 1 + len(BOX)] or None,
            "score": numbers[0] if numbers else None,
            "landmarks": [list(point) for point in zip(points[::2], points[1::2], strict=True)] or None,
        }


def make_face_format(suffix: str, labels: Sequence[str]) -> Format:
    """Make the format of a suffix, `.jsonl` or `.csv`. Raises OutputError for labels that it cannot hold."""
    return FaceCsv(labels) if suffix == ".csv" else FaceJsonl()
