"""Write photographs with the boxes and labels of their faces drawn, into a folder of their own."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path, PurePath

from ..errors import SourceError
from ..image.decode import try_decode
from ..image.drawing import DrawnBox, draw_boxes
from ..options import Limits
from ..system.cores import usable_cores
from ..types import DecodedImage
from .face_rows import group_pictures
from .picture_folder import Names, encode_picture, save_picture
from .rows import Row, decode_path, escape_text

# Of labels in the model's order, as on the contact sheet; and of `unsure`.
COLORS = ("#f2b04c", "#7db4f0", "#f08a80", "#8fd08f", "#c6a1ee", "#9fc0cb")
ASIDE = "#d0cec8"


def annotate_pictures(
    folder: Path, rows: Iterable[Row], labels: Sequence[str], limits: Limits, roots: Sequence[str] = ()
) -> Iterator[tuple[str, SourceError | None]]:
    """Write each photograph that has faces into a folder, with boxes and labels drawn, upright.

    Args:
        folder: of `picture_folder.prepare_folder`, which says how they are named.
        rows: of `face_rows`.
        labels: of the model, in whose order they have colours.
        limits: of a picture; those that it was labelled with.
        roots: folders that pictures were read from.

    Yields:
        The path of each photograph, and what kept it from being read once more.

    Raises:
        OutputError: if one cannot be written.
    """
    names = Names(roots)
    pictures = (group for group in group_pictures(rows) if group[0]["face"] is not None)
    threads = usable_cores()
    write = partial(_write_picture, folder, labels=labels, limits=limits)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(pictures, 4 * threads)):
            paths = [decode_path(group[0]) for group in chunk]
            named = [(path, names.choose(path), group) for path, group in zip(paths, chunk, strict=True)]
            yield from zip(paths, pool.map(lambda job: write(*job), named), strict=True)


def _list_boxes(rows: Sequence[Row], labels: Sequence[str]) -> list[DrawnBox]:
    """List what is drawn for the faces of a photograph."""
    colors = {label: COLORS[index % len(COLORS)] for index, label in enumerate(labels)}
    return [
        DrawnBox(
            row["box"], f"{escape_text(row['label'])} {row['confidence']:.0%}", colors.get(row["label"], ASIDE)
        )
        for row in rows
    ]


def _write_picture(
    folder: Path, path: str, name: PurePath, rows: Sequence[Row], *, labels: Sequence[str], limits: Limits
) -> SourceError | None:
    def make_file(image: DecodedImage) -> bytes:
        return encode_picture(draw_boxes(image, _list_boxes(rows, labels)), name)

    made = try_decode(path, "rgb", make_file, limits)
    if isinstance(made, SourceError):
        return made
    save_picture(folder / name, made)
    return None
