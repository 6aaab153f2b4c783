"""List the pictures of the command line's sources: files, folders, globs, and lists on stdin.

Names stay as they are given, without redundant parts: `./faces//a.png` becomes `faces/a.png`.
"""

import glob
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from ..errors import FmengineError
from .path_list import PathReader

STDIN = "-"
ENTRIES_AT_ONCE = 65_536  # of a folder: bounds the memory to some 25 MB
FOLDER, FILE, LINK = "folder", "file", "link"
# What pathlib would leave out of a path, which takes three times as long.
UNTIDY = re.compile(r"//|(?:^|/)\.(?:/|\Z)|./\Z", re.DOTALL)


def expand(
    sources: Iterable[str], stdin: BinaryIO | None = None, folders: Iterable[str] = ()
) -> list[str] | Iterator[str]:
    """List the picture files of folders, then of sources, in a stable order.

    Args:
        sources: files; folders, of which every regular file counts; globs (`**` for any depth), where no
            file has that very name; `-` for a list of paths on stdin, one a line, or separated by NUL. A file
            that several of them name is given as often.
        stdin: read for `-`.
        folders: of `--batch`; each must be a folder.

    Returns:
        Paths: a list where every source is a file or a glob, otherwise an iterator over what folders and stdin
        hold. A path that does not exist is among them, to become that picture's error.

    Raises:
        FmengineError: for what is no folder, a glob that matches nothing, or a list where stdin is closed, before
            the first path is yielded.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            what = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise FmengineError(f"--batch {folder} {what}; expected a folder of pictures")
    parts = [*map(walk, folders), *(_list_source(source, stdin) for source in sources)]
    paths = itertools.chain.from_iterable(parts)
    return list(paths) if all(isinstance(part, list) for part in parts) else paths


def walk(folder: str) -> Iterator[str]:
    """Yield every regular file below a folder, hidden ones too, folder by folder in the order of their bytes.

    Links to files count as files, and a broken link is yielded, to become an error row; links to folders are not
    followed, so there are no loops. Pipes, sockets and devices are left out. A folder that cannot be read is
    yielded itself, to become a row with the reason.
    """
    folder = tidy(folder)
    stack = [(folder, _list_entries(folder))]  # not recursive: folders may be nested a thousand deep
    while stack:
        path, entries = stack[-1]
        try:
            for below, kind in entries:  # from where a folder among them interrupted it
                if kind == FOLDER:
                    stack.append((below, _list_entries(below)))
                    break
                if kind == FILE or _is_file_or_nothing(below):
                    yield below
            else:
                stack.pop()
        except OSError:
            stack.pop()
            yield path


def _list_entries(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the path and kind of each folder, file and link in a folder, in the order of the names' bytes.

    A folder of more than `ENTRIES_AT_ONCE` is listed once for each part of so many.
    """
    prefix = "" if folder == os.curdir else os.path.join(folder, "")
    part = _list_part(folder)
    while True:
        for name, kind in part.items():
            yield prefix + name, kind
        if len(part) < ENTRIES_AT_ONCE:
            return
        part = _list_part(folder, after=os.fsencode(name))


def _list_part(folder: str, after: bytes = b"") -> dict[str, str]:
    """Return the names and kinds of a folder's first entries behind a name, in the order of their bytes."""
    kinds: dict[str, str] = {}
    with os.scandir(folder) as listing:
        for entry in listing:
            if (kind := _get_kind(entry)) and (not after or os.fsencode(entry.name) > after):
                kinds[entry.name] = kind
                if len(kinds) == 2 * ENTRIES_AT_ONCE:
                    kinds = _keep_first(kinds)
    return _keep_first(kinds)


def _keep_first(kinds: dict[str, str]) -> dict[str, str]:
    """Sort entries by the bytes of their names, and keep the first `ENTRIES_AT_ONCE`."""
    # The text of ASCII has the order of its bytes, and is sorted in half the time.
    names = sorted(kinds, key=None if all(map(str.isascii, kinds)) else os.fsencode)
    return {name: kinds[name] for name in names[:ENTRIES_AT_ONCE]}


def _get_kind(entry: os.DirEntry[str]) -> str:
    """Return the kind of an entry without a further system call; empty for pipes, sockets and devices."""
    if entry.is_file(follow_symlinks=False):
        return FILE
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return LINK if entry.is_symlink() else ""


def _is_file_or_nothing(link: str) -> bool:
    # `os.path` returns False where `os.DirEntry` raises: for loops, and names that no file can have.
    return os.path.isfile(link) or not os.path.exists(link)


def _list_source(source: str, stdin: BinaryIO | None) -> list[str] | Iterator[str]:
    if source == STDIN:
        return map(tidy, PathReader(_open_stdin() if stdin is None else stdin))
    if os.path.isdir(source):
        return walk(source)
    if os.path.lexists(source) or not glob.has_magic(source):
        return [tidy(source)]
    matches = sorted(glob.glob(source, recursive=True), key=os.fsencode)
    if not matches:
        raise FmengineError(f"nothing matches {source}; expected at least one file")
    # A folder that matches gives its files. Under `**` they may match as well, and a last `**` lists them itself:
    # each file counts once.
    walks = os.path.basename(source) != "**"
    files = ((walk(match) if walks else ()) if os.path.isdir(match) else (match,) for match in matches)
    return list(dict.fromkeys(map(tidy, itertools.chain.from_iterable(files))))


def _open_stdin() -> BinaryIO:
    if sys.stdin is None:
        raise FmengineError("`-` is a list of paths on stdin, which is closed; expected a file or a pipe there")
    return sys.stdin.buffer


def exclude(paths: Iterable[str], own: list[Path]) -> Iterator[str]:
    """Leave out the files that a run writes itself, which may lie in a folder of pictures."""
    names, resolved = {path.name for path in own}, {_resolve_folder(path) for path in own}
    ends = tuple(names)  # compared first, in a quarter of the time: nearly every path has another end
    return (
        path
        for path in paths
        if not path.endswith(ends) or os.path.basename(path) not in names or _resolve_folder(path) not in resolved
    )


def exclude_matching(paths: Iterable[str], own: re.Pattern[str]) -> Iterator[str]:
    """Leave out paths in which a pattern is found: of files that a run before this one wrote."""
    return (path for path in paths if not own.search(path))


def skip_finished(paths: Iterable[str], finished: Counter[str]) -> Iterator[str]:
    """Leave out each path as many times as it has a row, also where one is absolute and the other relative."""
    rows: Counter[str] = Counter()
    for path, count in finished.items():
        rows[_make_absolute(path)] += count
    return _skip(paths, rows) if rows else iter(paths)


def _skip(paths: Iterable[str], rows: Counter[str]) -> Iterator[str]:
    for path in paths:
        if rows[absolute := _make_absolute(path)]:
            rows[absolute] -= 1
        else:
            yield path


def tidy(path: str) -> str:
    """Return a path without `./`, `//` and a slash at its end. `..` stays: behind a link it leads elsewhere."""
    return str(PurePath(path)) if UNTIDY.search(path) else path


def _make_absolute(path: str) -> str:
    path = tidy(path)
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _resolve_folder(path: str | Path) -> str:
    """Resolve the links in a path's folder, so that a file has one name."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def require_paths(paths: Iterator[str], folders: Iterable[str]) -> Iterator[str]:
    """Check that there is a path, before a model is loaded or a file is made.

    Raises:
        FmengineError: if there is none.
    """
    first = next(paths, None)
    if first is None:
        raise FmengineError(f"no files in {', '.join(folders) or 'the sources given'}; expected pictures")
    return itertools.chain([first], paths)
