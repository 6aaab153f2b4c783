"""Write photographs with the boxes and labels of their faces drawn, into a folder of their own."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path, PurePath

from ..errors import OutputError, SourceError
from ..image.decode import try_decode
from ..image.drawing import DrawnBox, draw_boxes
from ..options import Limits
from ..system.cores import usable_cores
from ..system.files import open_atomic
from ..types import DecodedImage
from .face_rows import group_pictures
from .rows import Row, decode_path, escape_text
from .sources import tidy

QUALITY = 90  # of JPEG
PNG_MAGIC = b"\x89PNG"
# Of labels in the model's order, as on the contact sheet; and of `unsure`.
COLORS = ("#f2b04c", "#7db4f0", "#f08a80", "#8fd08f", "#c6a1ee", "#9fc0cb")
ASIDE = "#d0cec8"
LONGEST = 50  # letters of a file's name: with four bytes each they leave room for a number and an ending


def prepare_folder(folder: Path, sources: Iterable[str], *, overwrite: bool) -> None:
    """Make the folder, or check that photographs can be written into it, before the work.

    Args:
        folder: that is to hold the photographs.
        sources: files and folders of the command line: their pictures must not be replaced.
        overwrite: whether files that it holds may be replaced.

    Raises:
        OutputError: if it holds files, lies among the sources or they in it, or cannot be written.
    """
    where = os.path.realpath(folder)
    for source in map(os.path.realpath, filter(os.path.exists, sources)):
        if _is_below(source, where) or (os.path.isdir(source) and _is_below(where, source)):
            raise OutputError(f"cannot write into {folder}: pictures are read from there; choose another folder")
    try:
        if not os.path.lexists(folder):
            folder.mkdir()
        elif not folder.is_dir():
            raise OutputError(f"cannot write into {folder}: it is not a folder; choose another name")
        elif not overwrite and any(folder.iterdir()):
            raise OutputError(f"{folder} holds files; choose an empty folder, or replace them with --overwrite")
        tempfile.TemporaryFile(dir=folder).close()
    except FileNotFoundError as error:
        raise OutputError(
            f"cannot write into {folder}: there is no folder {folder.parent}; make it first"
        ) from error
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write into {folder}: {getattr(error, 'strerror', error)}") from error


def check_sources(folder: Path, rows: Iterable[Row]) -> None:
    """Check that no picture of the rows lies in the folder, where it could be replaced. Raises OutputError."""
    where = os.path.realpath(folder)
    for row in rows:
        if _is_below(os.path.realpath(decode_path(row)), where):
            raise OutputError(f"cannot write into {folder}: {row['path']} lies there; choose another folder")


def annotate_pictures(
    folder: Path, rows: Iterable[Row], labels: Sequence[str], limits: Limits, roots: Sequence[str] = ()
) -> Iterator[tuple[str, SourceError | None]]:
    """Write each photograph that has faces into a folder, with boxes and labels drawn, upright.

    It is a PNG where the photograph is one, else a JPEG. Its name is the photograph's own where that is relative,
    what follows the root that it lies in otherwise, or else its last part; a name that repeats is numbered.

    Args:
        folder: of `prepare_folder`.
        rows: of `face_rows`.
        labels: of the model, in whose order they have colours.
        limits: of a picture; those that it was labelled with.
        roots: folders that pictures were read from.

    Yields:
        The path of each photograph, and what kept it from being read once more.

    Raises:
        OutputError: if one cannot be written.
    """
    names = _Names(roots)
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


class _Names:
    """Chooses a relative name for each photograph, that leads out of no folder, and none twice."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = [tidy(root) for root in roots if os.path.isdir(root)]
        self._taken: set[str] = set()

    def choose(self, path: str) -> PurePath:
        name = self._make_relative(PurePath(path))
        suffix = name.suffix
        if _is_png(path):
            suffix = suffix if suffix.lower() == ".png" else ".png"
        elif suffix.lower() not in (".jpg", ".jpeg"):
            suffix = ".jpg"
        stem, number = name.stem[:LONGEST], 1
        chosen = name.with_name(stem + suffix)
        while str(chosen).casefold() in self._taken:  # names that differ in case alone are one on some drives
            number += 1
            chosen = name.with_name(f"{stem}-{number}{suffix}")
        self._taken.add(str(chosen).casefold())
        return chosen

    def _make_relative(self, path: PurePath) -> PurePath:
        for name in [path, *(path.relative_to(root) for root in self._roots if path.is_relative_to(root))]:
            if name.name and not name.anchor and ".." not in name.parts:
                return name
        return PurePath(path.name)


def _write_picture(
    folder: Path, path: str, name: PurePath, rows: Sequence[Row], *, labels: Sequence[str], limits: Limits
) -> SourceError | None:
    file_format = "PNG" if name.suffix.lower() == ".png" else "JPEG"

    def make_file(image: DecodedImage) -> bytes:
        buffer = io.BytesIO()
        draw_boxes(image, _list_boxes(rows, labels)).save(buffer, file_format, quality=QUALITY)
        return buffer.getvalue()

    made = try_decode(path, "rgb", make_file, limits)
    if isinstance(made, SourceError):
        return made
    target = folder / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(target) as file:
            file.write(made)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    return None


def _is_png(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return os.path.isfile(path) and file.read(len(PNG_MAGIC)) == PNG_MAGIC
    except OSError:
        return False


def _is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or leads into it; both are absolute and without links."""
    return path == folder or path.startswith(os.path.join(folder, ""))
