"""Make rows of photographs, and count them: what `fmengine infer --faces` prints and writes, one for each face.

`{"path", "face", "faces", "box", "score", "landmarks", "label", …}`, from the label on as in `rows`. `face` counts
from 0, the highest score first, and `faces` is their number in that photograph; `box` is left, top, right and
bottom, and `landmarks` are five points, in pixels of the upright picture. A photograph without a face has one row,
`faces` 0, `face` null and `"reason": "no_face"`; one that cannot be read has one row with its error. The rows of a
photograph stand together, and the last of them is known by its numbers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..types import Face, Failure, Reason, Scene
from ..wording import pluralise
from .rows import Row, Tally, encode_path, escape_text, to_row, to_text

FACE_KEYS = frozenset({"face", "faces", "box", "score", "landmarks"})  # beside those of every row


def to_face_rows(result: Scene | Failure) -> list[Row]:
    """Make the rows of one photograph, whose source is a path."""
    path = str(result.source)
    if isinstance(result, Failure):
        return [_join(path, _make_place(), to_row(path, result))]
    if not result.faces:
        return [_join(path, _make_place(faces=0), make_empty_answer())]
    return [
        _join(path, _make_place(face, number, len(result.faces)), to_row(path, face.prediction))
        for number, face in enumerate(result.faces)
    ]


def make_empty_answer() -> Row:
    """Make the part of a row that says that a photograph has no face."""
    answer = dict.fromkeys(("label", "confidence", "probabilities"))
    return answer | {"reason": Reason.NO_FACE, "error": None}


def _make_place(face: Face | None = None, number: int | None = None, faces: int | None = None) -> Row:
    """Make the part of a row that says where a face is."""
    return {
        "face": number,
        "faces": faces,
        "box": None if face is None else _round(face.box),
        "score": None if face is None else round(face.score, 4),
        "landmarks": None if face is None else [_round(point) for point in face.landmarks],
    }


def _round(values: Iterable[float]) -> list[float]:
    return [round(value, 2) + 0.0 for value in values]  # the sum is never -0.0


def _join(path: str, place: Row, answer: Row) -> Row:
    return encode_path(path) | place | {key: value for key, value in answer.items() if not key.startswith("path")}


def ends_picture(row: Row) -> bool:
    """Return whether a row is the last of its picture; of rows without faces every one is."""
    face: int | None = row.get("face")
    return face is None or face + 1 >= row["faces"]


def to_face_text(row: Row) -> str:
    """Format a row for a terminal: path, number of the face, label, confidence, box, and a reason not to trust."""
    if row["face"] is None:
        return to_text(row) if row["error"] else f"{row['path']}  {row['reason']}"
    box = ",".join(f"{value:.0f}" for value in row["box"])
    reason = f"  {row['reason']}" if row["reason"] else ""
    return f"{row['path']}  {row['face']}  {escape_text(row['label'])}  {row['confidence']:.3f}  {box}{reason}"


def group_pictures(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each picture together."""
    group = []
    for row in rows:
        group.append(row)
        if ends_picture(row):
            yield group
            group = []


@dataclass
class FaceTally(Tally):
    """Numbers of photographs and of the faces in them; labels are of faces.

    Attributes:
        pictures: photographs, failures among them.
    """

    pictures: int = 0

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.pictures += ends_picture(row)
            if row["reason"] == Reason.NO_FACE:
                self.reasons[Reason.NO_FACE] += 1
            else:
                super().add([row])

    @property
    def faces(self) -> int:
        """Return the number of faces."""
        return self.labels.total()

    @property
    def total(self) -> int:
        """Return the number of photographs."""
        return self.pictures

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"faces": self.faces}

    def list_answers(self) -> list[str]:
        answers = f" ({', '.join(super().list_answers())})" if self.labels else ""
        return [f"{pluralise(self.faces, 'face')}{answers}", f"{self.reasons[Reason.NO_FACE]:,} without a face"]

    def count(self) -> str:
        return f"{super().count()}, {pluralise(self.faces, 'face')}"
