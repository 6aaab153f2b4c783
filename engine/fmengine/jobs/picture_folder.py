"""Write a picture for each of many into a folder of their own, such as photographs with boxes drawn.

A picture is a PNG where the one that it is made of is one, else a JPEG. Its name is that one's own where that is
relative, what follows the root that it lies in otherwise, or else its last part; a name that repeats is numbered.
"""

import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from PIL import Image

from ..errors import OutputError
from ..system.files import write_file
from .rows import Row, decode_path
from .sources import tidy

QUALITY = 90  # of JPEG
PNG_MAGIC = b"\x89PNG"
LONGEST = 50  # letters of a file's name: with four bytes each they leave room for a number and an ending


def prepare_folder(folder: Path, sources: Iterable[str], *, overwrite: bool) -> None:
    """Make the folder, or check that pictures can be written into it, before the work.

    Args:
        folder: that is to hold the pictures.
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


class Names:
    """Chooses a relative name for each picture, that leads out of no folder, and none twice.

    It ends in `.png` where the picture is a PNG, else as a JPEG's does.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        """Take the folders that pictures were read from."""
        self._roots = [tidy(root) for root in roots if os.path.isdir(root)]
        self._taken: set[str] = set()

    def choose(self, path: str) -> PurePath:
        """Choose the name for what is made of the picture at a path."""
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


def encode_picture(image: Image.Image, name: PurePath) -> bytes:
    """Encode an image in the format of its name."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if name.suffix.lower() == ".png" else "JPEG", quality=QUALITY)
    return buffer.getvalue()


def save_picture(path: Path, data: bytes) -> None:
    """Write a file, and the folders that it lies in. Raises OutputError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    write_file(path, data)


def _is_png(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return os.path.isfile(path) and file.read(len(PNG_MAGIC)) == PNG_MAGIC
    except OSError:
        return False


def _is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or leads into it; both are absolute and without links."""
    return path == folder or path.startswith(os.path.join(folder, ""))
