"""Sources and names: which files a folder, a glob or a list stands for, and how rows show them."""

import io
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine.errors import FmengineError, Kind
from fmengine.jobs import sources
from fmengine.jobs.path_list import PathReader
from fmengine.jobs.rows import decode_path, escape_path, to_row, to_text
from fmengine.jobs.sources import exclude, expand, skip_finished, tidy, walk
from fmengine.types import Failure, Prediction


def make(folder: Path, *names: str | bytes) -> None:
    for name in names:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def walked(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in walk(str(folder))]


def listed(data: bytes) -> list[str]:
    return list(expand(["-"], io.BytesIO(data)))


# Folders.


def test_order_is_that_of_bytes(tmp_path):
    names = [b"B", b"a", b"\xc3\xa9", b"Z10", b"Z9", b"\xff", b"_", b"\xef\xbf\xbd", b"\xf0\x9f\x98\x80"]
    make(tmp_path, *names)
    assert [os.fsencode(name) for name in walked(tmp_path)] == sorted(names)


def test_every_file_of_every_depth_counts(tmp_path):
    make(tmp_path, "b.png", ".hidden", "a/1.png", "a/.b/2", "c/d/e/f.txt", "no suffix")
    (tmp_path / "empty").mkdir()
    assert walked(tmp_path) == [".hidden", "a/.b/2", "a/1.png", "b.png", "c/d/e/f.txt", "no suffix"]


def test_links_to_files_and_broken_links_count(tmp_path):
    make(tmp_path, "file")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("missing")
    assert walked(tmp_path) == ["broken", "file", "link"]


@pytest.mark.timeout(20)  # followed, they would never end
def test_links_to_folders_are_not_followed(tmp_path):
    make(tmp_path, "sub/file")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "side").symlink_to("sub")
    assert walked(tmp_path) == ["sub/file"]


@pytest.mark.parametrize("target", ["link", "file/below", "x" * 300])
def test_link_that_leads_nowhere_costs_no_other_file(tmp_path, target):
    make(tmp_path, "file", "z")
    (tmp_path / "link").symlink_to(target)
    assert walked(tmp_path) == ["file", "link", "z"]


def test_folder_that_is_a_link_is_walked(tmp_path):
    make(tmp_path, "real/file")
    (tmp_path / "link").symlink_to("real")
    assert walked(tmp_path / "link") == ["file"]
    assert list(expand([str(tmp_path / "link")])) == [str(tmp_path / "link" / "file")]


def test_pipes_sockets_and_devices_are_left_out(tmp_path, monkeypatch):
    make(tmp_path, "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert walked(tmp_path) == ["file"]


def test_folder_that_went_away_is_a_row(tmp_path):
    assert list(walk(str(tmp_path / "gone"))) == [str(tmp_path / "gone")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_folder_is_a_row(tmp_path):
    make(tmp_path, "a", "b/c")
    (tmp_path / "b").chmod(0)
    assert walked(tmp_path) == ["a", "b"]


def test_only_the_files_of_a_run_itself_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "faces/x.jsonl", "faces/ax.jsonl", "faces/below/x.jsonl", "faces/x.jsonl.png")
    (tmp_path / "link").symlink_to("faces")
    given = [*walk("faces"), "link/x.jsonl", f"{tmp_path}/link/../faces/x.jsonl", "x.jsonl", "a\0/bx.jsonl"]
    kept = ["faces/ax.jsonl", "faces/below/x.jsonl", "faces/x.jsonl.png", "x.jsonl", "a\0/bx.jsonl"]
    assert list(exclude(given, [Path("faces/x.jsonl"), Path("faces/x.jsonl.state.json")])) == kept
    assert list(exclude(given, [])) == given


# Files, globs and lists.


def test_sources_keep_their_order(tmp_path, monkeypatch):
    make(tmp_path, "b", "folder/2", "folder/1", "a")
    monkeypatch.chdir(tmp_path)
    assert list(expand(["b", "missing", "folder", "a", "b"])) == [
        "b",
        "missing",
        "folder/1",
        "folder/2",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png", "b.png"]),
        ("[ac].*", ["a.png", "c.txt"]),
        ("?.txt", ["c.txt"]),
        ("sub*", ["sub/d.png", "sub/deep/e.png"]),
        ("**/*.png", ["a.png", "b.png", "sub/d.png", "sub/deep/e.png"]),
        ("**", ["a.png", "b.png", "c.txt", "sub/d.png", "sub/deep/e.png"]),
        ("sub/**", ["sub/d.png", "sub/deep/e.png"]),
        ("**/*", ["a.png", "b.png", "c.txt", "sub/d.png", "sub/deep/e.png"]),
        ("**/deep", ["sub/deep/e.png"]),
        (".*", [".hidden"]),
    ],
)
def test_globs(tmp_path, monkeypatch, pattern, expected):
    make(tmp_path, "b.png", "a.png", "c.txt", ".hidden", "sub/d.png", "sub/deep/e.png")
    monkeypatch.chdir(tmp_path)
    assert list(expand([pattern])) == expected


def test_file_named_like_a_glob_is_that_file(tmp_path, monkeypatch):
    make(tmp_path, "[a].png", "a.png")
    monkeypatch.chdir(tmp_path)
    assert list(expand(["[a].png"])) == ["[a].png"]


def test_glob_without_a_match_is_an_error(tmp_path):
    """Before the first path is asked for, so that no work is lost."""
    with pytest.raises(FmengineError, match="nothing matches"):
        expand(["a.png", f"{tmp_path}/*.png"])


def test_list_by_line():
    assert listed(b"a.png\n  b c.png \r\n\n[d]*.png\nlast") == ["a.png", "  b c.png ", "[d]*.png", "last"]
    assert listed(b"") == []
    assert listed(b"\xff.png\n") == ["\udcff.png"]


def test_list_by_nul():
    assert listed(b"a.png\0b\nc.png\0\xff\0") == ["a.png", "b\nc.png", "\udcff"]
    assert listed(b"only\0") == ["only"]


def test_list_by_nul_keeps_every_byte_of_a_name():
    assert listed(b"a\0ends with\n\0ends with\r\0") == ["a", "ends with\n", "ends with\r"]


LISTED = ["a.png", "é/漢字 b.png"]
MARKED = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"], ids=["lf", "crlf", "nul"])
@pytest.mark.parametrize("encoding", MARKED)
def test_list_that_another_program_wrote(encoding, separator):
    """PowerShell's `>` writes UTF-16 with a byte order mark, and carriage returns."""
    data = MARKED[encoding] + separator.join([*LISTED, ""]).encode(encoding)
    assert listed(data) == LISTED
    assert list(expand(["-"], io.BufferedReader(Slow(data)))) == LISTED, "also where it comes byte by byte"


@pytest.mark.parametrize("data", [b"", b"\n\r\n", b"\xef\xbb\xbf", b"\xff\xfe", "\ufeff\r\n".encode("utf-16-le")])
def test_empty_list(data):
    assert listed(data) == []


def test_list_of_utf16_that_ends_midway():
    assert listed("\ufeffa\nb".encode("utf-16-le")[:-1]) == ["a"]


class Slow(io.RawIOBase):
    """A stream that gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self.left = iter(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        byte = next(self.left, None)
        if byte is None:
            return 0
        buffer[0] = byte
        return 1


def test_a_first_name_is_not_kept_back_by_the_search_for_a_mark():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as other:
        other.write(b"a\n")
        assert next(expand(["-"], stream)) == "a"


def test_a_reader_of_paths_waits_for_no_more_than_what_is_there():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as other:
        reader = PathReader(stream)
        other.write(b"a\nb\nhal")
        assert reader.read() == ["a", "b"]
        other.write(b"f")
        assert reader.read() == []
        other.close()
        assert reader.read() == ["half"]
        assert reader.read() is None
        assert list(reader) == []


def test_list_by_line_is_read_as_it_comes():
    """A camera's list may never end."""

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            buffer[:2] = b"a\n"
            return 2

    names = expand(["-"], io.BufferedReader(Endless(), buffer_size=2))
    assert [next(names) for _ in range(3)] == ["a", "a", "a"]


# Names that say the same.


@pytest.mark.parametrize(
    ("name", "tidied"),
    [
        ("a", "a"),
        ("./a", "a"),
        ("a//b", "a/b"),
        ("a/./b/", "a/b"),
        ("a/../b", "a/../b"),
        ("../a", "../a"),
        ("/a//b/.", "/a/b"),
        (".", "."),
        ("", ""),
        (" ", " "),
        ("\udcff/./a", "\udcff/a"),
        ("...", "..."),
        (".a/..b", ".a/..b"),
    ],
)
def test_what_says_nothing_is_left_out_of_a_name(name, tidied):
    assert tidy(name) == tidied
    assert tidy(tidied) == tidied


@given(name=st.text("a./\n\0", max_size=12).filter(bool))
def test_names_are_tidied_as_pathlib_does(name):
    assert tidy(name) == str(PurePath(name))


@pytest.mark.parametrize("folder", [".", "./", "sub/..//.", "ABSOLUTE"])
def test_folders_by_other_names(tmp_path, monkeypatch, folder):
    make(tmp_path, "a.png", "sub/b.png")
    monkeypatch.chdir(tmp_path)
    name = folder.replace("ABSOLUTE", f"{tmp_path}//")
    front = {"sub/..//.": "sub/../", "ABSOLUTE": f"{tmp_path}/"}.get(folder, "")
    assert list(expand([name])) == [f"{front}a.png", f"{front}sub/b.png"]
    assert list(expand([f"{name}/*.png"])) == [f"{front}a.png"]


def test_finished_pictures_are_left_out_as_often_as_they_have_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = Counter({"./a": 1, f"{tmp_path}/b": 2, "link/../a": 1})
    given = ["a", "a", f"{tmp_path}/a", "b", "./b", "b", "link/../a", "c"]
    assert list(skip_finished(given, finished)) == ["a", f"{tmp_path}/a", "b", "c"]
    assert finished["./a"] == 1, "what is counted stays"


# Names in rows.


def test_plain_names_are_shown_as_they_are():
    for name in ("a.png", "grüße/漢字 😀.png", "100%.png", "a%0A.png", " , ; \"'"):
        assert escape_path(name) == name
        assert "path_encoding" not in to_row(name, Failure(Kind.EMPTY, "", name))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb/c.png", "a%0Ab/c.png"),
        (os.fsdecode(b"\xff%"), "%FF%25"),
        ("\x1b[31m", "%1B%5B31m"),
        ("\u2028", "%E2%80%A8"),
        ("\x85", "%C2%85"),
    ],
)
def test_names_that_would_break_a_line_are_percent_encoded(name, shown):
    row = to_row(name, Failure(Kind.EMPTY, "nothing", name))
    assert (row["path"], row["path_encoding"]) == (shown, "percent")
    assert to_text(row) == f"{shown}  error  empty: nothing"


def test_labels_stay_on_their_line():
    """They come out of a model file, which anybody may have made."""
    label = "\x1b[2J\n\u202eé\ud800"
    row = to_row("a", Prediction(label, 0.75, {label: 0.75, "b": 0.25}, "a"))
    assert to_text(row) == "a  \\x1b[2J\\n\\u202eé\\ud800  0.750"


names = st.text(min_size=1) | st.binary(min_size=1).map(os.fsdecode)


@given(name=names)
def test_any_name_is_one_line_of_utf8_and_comes_back(name):
    row = to_row(name, Failure(Kind.EMPTY, "", name))
    assert decode_path(row) == name
    assert len(row["path"].encode().decode().splitlines()) == 1


@given(one=names, other=names)
def test_different_names_give_different_rows(one, other):
    rows = [to_row(name, Failure(Kind.EMPTY, "", name)) for name in (one, other)]
    assert (rows[0] == rows[1]) == (one == other)


# Large folders, which are listed part by part.


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 8, 9, 100])
def test_a_large_folder_is_listed_whole_and_in_order(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(sources, "ENTRIES_AT_ONCE", at_once)
    names = [b"%d.png" % number for number in range(7)] + [b"\xff.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "3below").mkdir()
    for number in range(3):
        (tmp_path / "3below" / f"{number}.png").touch()
    listings = count_listings(monkeypatch)
    expected = [*names[:4], b"3below/0.png", b"3below/1.png", b"3below/2.png", *names[4:]]
    assert walked(tmp_path) == [os.fsdecode(name) for name in expected]
    assert listings[str(tmp_path)] == 9 // at_once + 1


def count_listings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each folder is listed from now on."""
    listings: Counter[str] = Counter()
    scandir = os.scandir

    def count(folder: str) -> Iterator[os.DirEntry[str]]:
        listings[folder] += 1
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", count)
    return listings


def test_a_folder_of_a_whole_data_set_is_listed_once(monkeypatch):
    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def is_file(self, follow_symlinks: bool) -> bool:
            return True

        def is_dir(self, follow_symlinks: bool) -> bool:
            return False

    names = [f"{number:05}.png" for number in range(40_000)]
    folders = iter(["faces"])

    def list_once(folder: str) -> AbstractContextManager[Iterator[Entry]]:
        assert folder == next(folders, None)
        return nullcontext(map(Entry, reversed(names)))

    monkeypatch.setattr(os, "scandir", list_once)
    assert list(walk("faces")) == [f"faces/{name}" for name in names]


def test_a_large_folder_that_goes_away_midway_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ENTRIES_AT_ONCE", 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").touch()
    found = walk(str(folder))
    assert [next(found), next(found)] == [str(folder / "0.png"), str(folder / "1.png")]
    folder.rename(tmp_path / "elsewhere")
    assert list(found) == [str(folder)]


def test_list_by_nul_is_read_as_it_comes(tmp_path):
    """The first names are there before the last ones are written."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as other:
        other.write(b"a.png\0b\n.png\0c")
        names = expand(["-"], stream)
        assert next(names) == "a.png"
        assert next(names) == "b\n.png"
        other.write(b".png\0" + b"\0".join(b"%d" % number for number in range(1000)))
        other.close()
        assert list(names) == ["c.png", *map(str, range(1000))]
