"""Hold the thumbnails of a page: inside it while they are few, else in a folder beside it.

The folder is `x_files` for `x.html`. Each writing of the page has a folder of its own in it, with a random name,
which the page refers to: until a new page is whole, the old one keeps its pictures; then those are removed.
"""

import base64
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote_from_bytes

from ..errors import OutputError

INSIDE = 8_000_000  # bytes of thumbnails that a page may hold: some 1,000 photographs, or 5,000 small faces
OURS = "[0-9a-f]{16}"  # name of the folder of one writing


class PageImages:
    """Collects the thumbnails of a page that is being written, and numbers them from 0.

    Attributes:
        folder: that holds them, relative to the page; None while they are inside.
    """

    def __init__(self, page: Path) -> None:
        self.folder: str | None = None
        self._root = get_folder(page)
        self._name = secrets.token_hex(8)
        self._inside: list[bytes] = []
        self._bytes = self._count = 0

    def add(self, jpeg: bytes) -> int:
        """Add one, and return its number. Raises OSError if it cannot be written."""
        number = self._count
        self._count += 1
        self._bytes += len(jpeg)
        if self.folder is None and self._bytes > INSIDE:
            self._move_out()
        if self.folder is None:
            self._inside.append(jpeg)
        else:
            self._write(number, jpeg)
        return number

    def list_inside(self) -> list[str]:
        """Return those inside the page, in Base64."""
        return [base64.b64encode(jpeg).decode() for jpeg in self._inside]

    def finish(self) -> None:
        """Remove those of earlier pages, once the new page has taken its place."""
        with suppress(OSError):  # a folder that stays takes room, and nothing else
            for folder in list(self._root.iterdir()) if is_folder(self._root) else []:
                if re.fullmatch(OURS, folder.name) and (folder.name != self._name or self.folder is None):
                    shutil.rmtree(folder, ignore_errors=True)
            self._root.rmdir()  # which holds nothing any more, or is left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            shutil.rmtree(self._root / self._name, ignore_errors=True)
            with suppress(OSError):
                self._root.rmdir()

    def _move_out(self) -> None:
        (self._root / self._name).mkdir(parents=True)
        self.folder = f"{quote_from_bytes(os.fsencode(self._root.name))}/{self._name}/"
        for number, jpeg in enumerate(self._inside):
            self._write(number, jpeg)
        self._inside.clear()

    def _write(self, number: int, jpeg: bytes) -> None:
        (self._root / self._name / f"{number}.jpg").write_bytes(jpeg)


def get_folder(page: Path) -> Path:
    """Return the folder that a page's thumbnails lie in where they are many."""
    return page.parent / f"{page.stem}_files"


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def check_folder(page: Path, *, overwrite: bool) -> None:
    """Check that thumbnails could lie beside a page, before the work.

    Raises:
        OutputError: if their name is taken by something else than a folder, or, without `overwrite`, by one that
            holds anything of another's. Such files stay in any case.
    """
    folder = get_folder(page)
    if not os.path.lexists(folder):
        return
    if not is_folder(folder):
        raise OutputError(f"{folder}, where thumbnails of {page} may go, is no folder; choose another name")
    try:
        foreign = [path for path in folder.iterdir() if not re.fullmatch(OURS, path.name)]
    except OSError as error:
        raise OutputError(f"cannot read {folder}, where thumbnails of {page} may go: {error.strerror}") from error
    if foreign and not overwrite:
        raise OutputError(
            f"{folder}, where thumbnails of {page} may go, holds files of yours; choose another name, or add "
            "thumbnails to it with --overwrite"
        )


def match_thumbnails(page: Path) -> re.Pattern[str]:
    """Return a pattern that finds the paths of a page's thumbnails, in a listing of pictures."""
    return re.compile(rf"(?:^|/){re.escape(get_folder(page).name)}/{OURS}/\d+\.jpg\Z")
