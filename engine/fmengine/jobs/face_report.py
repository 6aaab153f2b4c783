"""Write the contact sheet of photographs: each with the boxes of its faces, and every face cut out as a card."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..detect.scenes import compute_crop
from ..errors import SourceError
from ..image.decode import try_decode
from ..image.geometry import Size
from ..model.spec import ModelSpec
from ..options import Limits
from ..pages.cards import Card
from ..system.cores import usable_cores
from ..types import DecodedImage
from ..wording import pluralise
from .face_rows import FaceTally, group_pictures
from .report import make_card, write_sheet
from .rows import Row, decode_path
from .thumbnails import CHUNK, encode_thumbnail, make_thumbnail

PHOTOGRAPH = 560  # pixels of the longer side at most


class Thumbnails(NamedTuple):
    """A photograph made small.

    Attributes:
        size: width and height of the photograph, whose pixels the boxes are in.
        photograph: as JPEG, empty where it cannot be read any more.
        faces: of each row, as JPEG; of a photograph without a face itself.
    """

    size: Size
    photograph: bytes
    faces: list[bytes]


def write_face_report(
    path: Path, rows: Iterable[Row], spec: ModelSpec, describe: dict[str, str], limits: Limits | None = None
) -> Path | None:
    """Write the contact sheet; arguments, result and errors as of `report.write_report`, rows of `face_rows`."""
    tally = FaceTally()
    return write_sheet(path, _make_cards(rows, tally, spec.labels, limits or Limits()), tally, spec, describe)


def _make_cards(rows: Iterable[Row], tally: FaceTally, labels: Sequence[str], limits: Limits) -> Iterator[Card]:
    """Yield each photograph with boxes, and behind it the cards of its faces. Threads make a chunk at a time."""
    pictures = group_pictures(rows)
    with ThreadPoolExecutor(usable_cores()) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for group, made in zip(chunk, pool.map(partial(_shrink, limits=limits), chunk), strict=True):
                tally.add(group)
                if group[0]["face"] is not None:
                    yield _make_photograph(group, made.size) | {"image": made.photograph}
                for row, face in zip(group, made.faces, strict=True):
                    yield make_card(row, labels) | {"image": face}


def _shrink(group: Sequence[Row], limits: Limits) -> Thumbnails:
    """Make the thumbnails of one photograph's rows; without any where it changed, or there is no memory for it."""
    if not group[0]["error"]:
        made = try_decode(decode_path(group[0]), "rgb", partial(_make_thumbnails, group), limits)
        if not isinstance(made, SourceError):
            return made
    return Thumbnails((1, 1), b"", [b""] * len(group))


def _make_thumbnails(group: Sequence[Row], image: DecodedImage) -> Thumbnails:
    height, width = image.shape[:2]
    whole = 0, 0, width, height
    crops = [compute_crop(row["box"], (width, height)) if row["box"] else whole for row in group]
    faces = [make_thumbnail(DecodedImage(image[top:bottom, left:right])) for left, top, right, bottom in crops]
    photograph = make_thumbnail(image, PHOTOGRAPH)
    return Thumbnails((width, height), encode_thumbnail(photograph), [*map(encode_thumbnail, faces)])


def _make_photograph(group: Sequence[Row], size: Size) -> Card:
    """Make the card of a photograph. Each box has what its face's card has, for the filters."""
    boxes = []
    for row in group:
        left, top, right, bottom = row["box"]
        box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
        reason = {"reason": row["reason"]} if row["reason"] else {}
        boxes.append({"box": box, "answer": row["label"], "face": row["face"]} | reason)
    return {"path": group[0]["path"], "count": pluralise(len(group), "face"), "size": size, "boxes": boxes}
