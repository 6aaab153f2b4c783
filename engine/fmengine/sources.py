"""What the command line's sources stand for: files, folders, globs, and lists on stdin."""

import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from .errors import FmengineError

STDIN = "-"


def expand(sources: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[str]:
    """List the picture files of all sources, in a stable order.

    Args:
        sources: files; folders, of which every regular file counts; globs (`**` for any depth), where no
            file has that very name; `-` for a list of paths on stdin, one a line, or separated by NUL.
        stdin: read for `-`.

    Yields:
        Paths. One that names nothing is passed on, to become that picture's error.

    Raises:
        FmengineError: for a glob that matches nothing.
    """
    for source in sources:
        if source == STDIN:
            yield from _listed(sys.stdin.buffer if stdin is None else stdin)
        elif os.path.isdir(source):
            yield from walk(source)
        elif not os.path.lexists(source) and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True), key=os.fsencode)
            if not matches:
                raise FmengineError(f"nothing matches {source}; expected at least one file")
            for match in matches:
                if os.path.isdir(match):
                    # `**` itself lists the files below its folders.
                    yield from walk(match) if "**" not in source else ()
                else:
                    yield match
        else:
            yield source


def walk(folder: str, skip: Callable[[str], bool] = lambda path: False) -> Iterator[str]:
    """Every regular file below a folder, hidden ones too, folder by folder in the order of their bytes.

    Links to files count as files, and a broken link is passed on to become an error row; links to
    folders are not followed, so there are no loops. Pipes, sockets and devices are left out.

    Args:
        folder: where to begin.
        skip: paths to leave out, such as the output file.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError:
        yield folder  # becomes a row that says why it cannot be read
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, skip)
        elif (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))) and not skip(entry.path):
            yield entry.path


def _listed(stream: BinaryIO) -> Iterator[str]:
    """Paths from a stream: separated by NUL if the first line holds one, else one a line."""
    first = stream.readline()
    names = (first + stream.read()).split(b"\0") if b"\0" in first else itertools.chain([first], stream)
    for name in names:
        if name := name.rstrip(b"\r\n"):
            yield os.fsdecode(name)
