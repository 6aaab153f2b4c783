"""Files that are replaced as a whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from fmengine.errors import OutputError
from fmengine.system.files import get_temporary_path, open_atomic, write_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "x").write_text("old")
    return tmp_path / "x"


def test_it_takes_its_name_once_it_is_whole(path):
    with open_atomic(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
        assert sorted(os.listdir(path.parent)) == sorted([get_temporary_path(path).name, "x"])
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["x"]


def test_text_is_utf8(path):
    with open_atomic(path, "w") as file:
        file.write("漢字\n")
    assert path.read_bytes() == "漢字\n".encode()
    write_file(path, "é")
    assert path.read_bytes() == "é".encode()


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_whatever_fails_leaves_the_old_file_and_nothing_else(path, error, private):
    with pytest.raises((KeyboardInterrupt, ValueError, OSError)), open_atomic(path, private=private) as file:  # noqa: PT012
        file.write(b"half of it")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x"]


def test_a_file_that_is_not_on_the_disk_keeps_no_name(path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*x: No space left on device"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x"]


def test_what_a_killed_run_left_is_no_obstacle(path):
    get_temporary_path(path).write_text("a longer rest of a killed run")
    write_file(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["x"]


def test_a_folder_by_its_descriptor(path, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with open_atomic(Path("x"), folder=folder) as file:
            file.write(b"new")
    finally:
        os.close(folder)
    assert path.read_text() == "new"
    assert os.listdir(other) == []


def test_private_files_are_for_their_owner_alone(path):
    with open_atomic(path, private=True) as file:
        (name,) = set(os.listdir(path.parent)) - {"x"}
        assert name != get_temporary_path(path).name, "nobody can put a link there before"
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError), open_atomic(tmp_path / "missing" / "x"):
        pass
    with pytest.raises(OutputError, match="No such file or directory"):
        write_file(tmp_path / "missing" / "x", b"")
