"""What the command line's sources stand for: files, folders, globs, and lists on stdin."""

import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from .errors import FmengineError

STDIN = "-"


def expand(sources: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[str]:
    """List the picture files of all sources, in a stable order.

    Args:
        sources: files; folders, of which every regular file counts; globs (`**` for any depth), where no
            file has that very name; `-` for a list of paths on stdin, one a line, or separated by NUL.
        stdin: read for `-`.

    Returns:
        Paths. One that names nothing is passed on, to become that picture's error.

    Raises:
        FmengineError: for a glob that matches nothing, before the first path is given.
    """
    return itertools.chain.from_iterable([_files(source, stdin) for source in sources])


def walk(folder: str) -> Iterator[str]:
    """Every regular file below a folder, hidden ones too, folder by folder in the order of their bytes.

    Links to files count as files, and a link that leads nowhere is passed on to become an error row; links
    to folders are not followed, so there are no loops. Pipes, sockets and devices are left out. A folder
    that cannot be read is given itself, to become a row that says why.
    """
    left: list[str | os.DirEntry[str]] = [folder]  # not recursive: folders may be nested a thousand deep
    while left:
        entry = left.pop()
        if isinstance(entry, str) or entry.is_dir(follow_symlinks=False):
            try:
                with os.scandir(entry) as listing:
                    entries = sorted(listing, key=lambda entry: os.fsencode(entry.name), reverse=True)
            except OSError:
                yield os.fspath(entry)
            else:
                left += entries
        elif entry.is_file(follow_symlinks=False) or (entry.is_symlink() and _is_file_or_nothing(entry.path)):
            yield entry.path


def _is_file_or_nothing(link: str) -> bool:
    # `os.path` answers where `os.DirEntry` raises: for loops, and names that no file can have.
    return os.path.isfile(link) or not os.path.exists(link)


def _files(source: str, stdin: BinaryIO | None) -> Iterable[str]:
    if source == STDIN:
        return _listed(sys.stdin.buffer if stdin is None else stdin)
    if os.path.isdir(source):
        return walk(source)
    if os.path.lexists(source) or not glob.has_magic(source):
        return [source]
    matches = sorted(glob.glob(source, recursive=True), key=os.fsencode)
    if not matches:
        raise FmengineError(f"nothing matches {source}; expected at least one file")
    # A folder that matches stands for its files. Under `**` they may match as well, and a last `**` lists
    # them itself: each file counts once.
    walks = os.path.basename(source) != "**"
    found = ((walk(match) if walks else ()) if os.path.isdir(match) else (match,) for match in matches)
    return dict.fromkeys(itertools.chain.from_iterable(found))


def _listed(stream: BinaryIO) -> Iterator[str]:
    """Paths from a stream: separated by NUL if the first line holds one, else one a line."""
    first = stream.readline()
    if b"\0" in first:
        names: Iterable[bytes] = (first + stream.read()).split(b"\0")
    else:
        names = (line.rstrip(b"\r\n") for line in itertools.chain([first], stream))
    return (os.fsdecode(name) for name in names if name)
