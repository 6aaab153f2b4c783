"""What the command line's sources stand for: files, folders, globs, and lists on stdin.

Names stay as they were given, but for what says nothing: `./faces//a.png` is `faces/a.png`.
"""

import codecs
import glob
import heapq
import io
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, cast

from ..errors import FmengineError

STDIN = "-"
ENTRIES_AT_ONCE = 16_384  # of a folder: bounds the memory, some 3 MB
FOLDER, FILE, LINK = "folder", "file", "link"
# How a list may begin that another program wrote, such as PowerShell's `>`, and what it is encoded in.
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
UNTIDY = re.compile(
    r"//|(?:^|/)\.(?:/|\Z)|./\Z", re.DOTALL
)  # what pathlib would leave out; it takes thrice as long


def expand(sources: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[str]:
    """List the picture files of all sources, in a stable order.

    Args:
        sources: files; folders, of which every regular file counts; globs (`**` for any depth), where no
            file has that very name; `-` for a list of paths on stdin, one a line, or separated by NUL. A file
            that several of them stand for is given as often.
        stdin: read for `-`.

    Returns:
        Paths. One that names nothing is passed on, to become that picture's error.

    Raises:
        FmengineError: for a glob that matches nothing, or a list where stdin is closed, before the first path is
            given.
    """
    return itertools.chain.from_iterable([_files(source, stdin) for source in sources])


def walk(folder: str) -> Iterator[str]:
    """Every regular file below a folder, hidden ones too, folder by folder in the order of their bytes.

    Links to files count as files, and a link that leads nowhere is passed on to become an error row; links
    to folders are not followed, so there are no loops. Pipes, sockets and devices are left out. A folder
    that cannot be read is given itself, to become a row that says why.
    """
    folder = tidy(folder)
    left = [(folder, _entries(folder))]  # not recursive: folders may be nested a thousand deep
    while left:
        path, entries = left[-1]
        try:
            name, kind = next(entries, ("", ""))
        except OSError:
            yield path
            name, kind = "", ""
        below = name if path == os.curdir else os.path.join(path, name)
        if not name:
            left.pop()
        elif kind == FOLDER:
            left.append((below, _entries(below)))
        elif kind == FILE or _is_file_or_nothing(below):
            yield below


def _entries(folder: str) -> Iterator[tuple[str, str]]:
    """Folders, files and links in a folder: name and kind, in the order of the names' bytes.

    A large folder is listed again for each part of it.
    """
    after = b""
    while True:
        with os.scandir(folder) as listing:
            named = ((os.fsencode(entry.name), _kind(entry)) for entry in listing)
            part = heapq.nsmallest(ENTRIES_AT_ONCE, (pair for pair in named if pair[0] > after and pair[1]))
        for name, kind in part:
            yield os.fsdecode(name), kind
        if len(part) < ENTRIES_AT_ONCE:
            return
        after = part[-1][0]


def _kind(entry: os.DirEntry[str]) -> str:
    """What the listing itself says it is; nothing for pipes, sockets and devices."""
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    if entry.is_file(follow_symlinks=False):
        return FILE
    return LINK if entry.is_symlink() else ""


def _is_file_or_nothing(link: str) -> bool:
    # `os.path` answers where `os.DirEntry` raises: for loops, and names that no file can have.
    return os.path.isfile(link) or not os.path.exists(link)


def _files(source: str, stdin: BinaryIO | None) -> Iterable[str]:
    if source == STDIN:
        return map(tidy, _listed(_stdin() if stdin is None else stdin))
    if os.path.isdir(source):
        return walk(source)
    if os.path.lexists(source) or not glob.has_magic(source):
        return [tidy(source)]
    matches = sorted(glob.glob(source, recursive=True), key=os.fsencode)
    if not matches:
        raise FmengineError(f"nothing matches {source}; expected at least one file")
    # A folder that matches stands for its files. Under `**` they may match as well, and a last `**` lists
    # them itself: each file counts once.
    walks = os.path.basename(source) != "**"
    found = ((walk(match) if walks else ()) if os.path.isdir(match) else (match,) for match in matches)
    return dict.fromkeys(map(tidy, itertools.chain.from_iterable(found)))


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise FmengineError("`-` is a list of paths on stdin, which is closed; expected a file or a pipe there")
    return sys.stdin.buffer


def _listed(stream: BinaryIO) -> Iterator[str]:
    """Paths from a stream as they arrive: separated by NUL if the first line holds one, else one a line."""
    parts = _in_utf8(iter(lambda: cast(io.BufferedReader, stream).read1(1 << 16), b""))
    head = b""
    for part in parts:
        head += part
        if b"\n" in head or b"\0" in head:
            break
    separator = b"\0" if b"\0" in head.partition(b"\n")[0] else b"\n"
    for name in _split(itertools.chain([head], parts), separator):
        if name := name if separator == b"\0" else name.rstrip(b"\r"):
            yield os.fsdecode(name)


def _in_utf8(parts: Iterator[bytes]) -> Iterator[bytes]:
    """A list without the mark at its beginning that says how it is encoded; UTF-16 becomes UTF-8."""
    head = b""
    while any(mark.startswith(head) and mark != head for mark in MARKS) and (part := next(parts, b"")):
        head += part
    mark, encoding = next(((m, e) for m, e in MARKS.items() if head.startswith(m)), (b"", ""))
    rest = itertools.chain([head[len(mark) :]], parts)
    if not encoding.startswith("utf-16"):
        return rest  # whatever it is: names are bytes
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    return (decoder.decode(part).encode() for part in rest)


def _split(parts: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(separator)
        yield from whole
    yield rest


def without(paths: Iterable[str], own: list[Path]) -> Iterator[str]:
    """Leave out our own files: they are no pictures although they may lie in a folder of pictures."""
    names, places = {path.name for path in own}, {_place(path) for path in own}
    return (path for path in paths if os.path.basename(path) not in names or _place(path) not in places)


def skip_finished(paths: Iterable[str], finished: Counter[str]) -> Iterator[str]:
    """Leave out each path as often as it has a row, also where one of them is absolute and the other is not."""
    left: Counter[str] = Counter()
    for path, count in finished.items():
        left[_absolute(path)] += count
    if not left:
        yield from paths
        return
    for path in paths:
        if left[place := _absolute(path)]:
            left[place] -= 1
        else:
            yield path


def tidy(path: str) -> str:
    """A path without `./`, `//` and a slash at its end. `..` stays: behind a link it leads elsewhere."""
    return str(PurePath(path)) if UNTIDY.search(path) else path


def _absolute(path: str) -> str:
    path = tidy(path)
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _place(path: str | Path) -> str:
    """One name for a file, however its folder was named."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def gather(sources: tuple[str, ...], folders: tuple[str, ...]) -> Iterator[str]:
    """The files of folders, then of sources, as a command line gives them."""
    for folder in folders:
        if not os.path.isdir(folder):
            what = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise FmengineError(f"--batch {folder} {what}; expected a folder of pictures")
    return itertools.chain(itertools.chain.from_iterable(map(walk, folders)), expand(sources))


def first_or_error(paths: Iterator[str], folders: tuple[str, ...]) -> Iterable[str]:
    """Notice that there is nothing to do before a model is loaded or a file is made."""
    first = next(paths, None)
    if first is None:
        raise FmengineError(f"no files in {', '.join(folders) or 'the sources given'}; expected pictures")
    return itertools.chain([first], paths)
