"""Write the contact sheet of photographs: each with the boxes of its faces, and every face cut out as a card."""

import html
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
from ..system.cores import usable_cores
from ..types import DecodedImage
from ..wording import pluralise
from .face_rows import FaceTally, group_pictures
from .report import CHUNK, choose_tone, encode_thumbnail, make_thumbnail, write_card, write_page, write_picture
from .rows import Row, decode_path

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
) -> None:
    """Write the contact sheet; arguments and errors as of `report.write_report`, rows of `face_rows`."""
    tally = FaceTally()
    write_page(path, _write_cards(rows, tally, spec.labels, limits or Limits()), tally, spec, describe)


def _write_cards(rows: Iterable[Row], tally: FaceTally, labels: Sequence[str], limits: Limits) -> Iterator[str]:
    """Yield each photograph with boxes, and behind it the cards of its faces. Threads make a chunk at a time."""
    pictures, number = group_pictures(rows), 0
    with ThreadPoolExecutor(usable_cores()) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for group, made in zip(chunk, pool.map(partial(_shrink, limits=limits), chunk), strict=True):
                tally.add(group)
                if group[0]["face"] is not None:
                    yield _write_photograph(number, group, made, labels)
                    number += 1
                for row, jpeg in zip(group, made.faces, strict=True):
                    yield write_card(number, row, jpeg, labels)
                    number += 1


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
    photograph = make_thumbnail(image, min(PHOTOGRAPH, max(height, width)))
    return Thumbnails((width, height), encode_thumbnail(photograph), [*map(encode_thumbnail, faces)])


def _write_photograph(number: int, group: Sequence[Row], made: Thumbnails, labels: Sequence[str]) -> str:
    """Write the figure of a photograph. Each box has the attributes of its face's card, for the filters."""
    path = group[0]["path"]
    name, short, count = html.escape(path), html.escape(path.rsplit("/", 1)[-1]), pluralise(len(group), "face")
    width, height = made.size
    boxes = "".join(_write_box(row, max(made.size) / 28, labels) for row in group) if made.photograph else ""
    return (
        f'<figure class="photo" data-n="{number}" data-confidence="-1" data-path="{name}" title="{name}">'
        f'<div class="frame">{write_picture(made.photograph, count)}'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{boxes}</svg></div>'
        f"<figcaption><b>{count}</b><small>{short}</small></figcaption></figure>\n"
    )


def _write_box(row: Row, text_size: float, labels: Sequence[str]) -> str:
    """Write a face's box, with its number and its label above it, or in it at the upper edge of the photograph."""
    left, top, right, bottom = row["box"]
    label = html.escape(row["label"])
    outcome = f'data-label="{label}"' + (f' data-reason="{html.escape(row["reason"])}"' if row["reason"] else "")
    baseline = top - text_size * 0.35 if top > text_size * 1.35 else top + text_size * 1.1
    return (
        f'<g class="{choose_tone(row["label"], labels)}" {outcome}>'
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}"/>'
        f'<text x="{left:.2f}" y="{baseline:.2f}" font-size="{text_size:.2f}">{row["face"]} {label}</text></g>'
    )
