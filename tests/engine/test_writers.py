"""Several runs on one output: at once, by other names for the same pictures, and again for what failed."""

import csv
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import COMMAND, NAMES, environment, paths_of, refused, run
from test_output import ROWS, answer, kill, opened, write
from tests.page import Page
from tests.params import quick_first

from fmengine.errors import OutputError
from fmengine.jobs.rows import Row, decode_path
from fmengine.jobs.state import get_state_path, list_output_files
from fmengine.system.lock import get_lock_path, hold

SUFFIXES = ("jsonl", "csv", "parquet")


def rows_of(output: Path) -> list[dict]:
    """Paths and kinds of error, in any format."""
    if output.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        rows = parquet.read_table(output).to_pylist()
    elif output.suffix == ".csv":
        with output.open(encoding="utf-8", newline="") as file:
            return [{"path": row["path"], "error": row["error_kind"]} for row in csv.DictReader(file)]
    else:
        rows = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    return [{"path": row["path"], "error": row["error"]["kind"] if row["error"] else ""} for row in rows]


# Two writers.


@contextmanager
def at_work(*options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has its files open and waits for the second line of its list."""
    process = subprocess.Popen(
        [*COMMAND, "--log-json", "infer", "-", *map(str, options)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        process.stdin.write(b"faces/a.png\n")
        process.stdin.flush()
        assert b"model loaded" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("suffix", "way"), [("jsonl", "--overwrite"), pytest.param("parquet", "--resume", marks=pytest.mark.slow)]
)
def test_a_second_writer_is_refused(faces, suffix, way):
    output = Path(f"x.{suffix}")
    with at_work("--output", output) as first:
        assert f"fmengine: another process writes {output}; wait" in refused(
            "infer", faces, "--output", output, way
        )
        first.communicate(b"faces/b.jpg\n")
        assert first.returncode == 0
    assert [row["path"] for row in rows_of(output)] == ["faces/a.png", "faces/b.jpg"]
    run("infer", faces, "--output", output, "--resume")
    assert sorted(row["path"] for row in rows_of(output)) == NAMES
    assert not [name for name in os.listdir() if name.startswith(".")], "nothing is left behind"


@pytest.mark.slow
def test_a_second_writer_is_known_under_other_names(faces):
    Path("folder").symlink_to(".")
    Path("link.jsonl").symlink_to("x.jsonl")
    with at_work("--output", "x.jsonl"):
        for name in ("folder/x.jsonl", "link.jsonl"):
            assert "another process writes" in refused("infer", faces, "--output", name, "--resume")
        run("infer", faces, "--output", "other.jsonl")


@pytest.mark.slow
def test_a_second_writer_of_a_report_is_refused(faces):
    with at_work("--report", "x.html"):
        assert "another process writes x.html" in refused("infer", faces, "--report", "x.html", "--overwrite")


def test_a_killed_writer_leaves_no_lock(faces):
    with at_work("--output", "x.jsonl") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run("infer", faces, "--output", "x.jsonl", "--resume")
    assert sorted(paths_of(Path("x.jsonl"))) == NAMES
    assert sorted(os.listdir()) == ["faces", "x.jsonl", "x.jsonl.state.json"]


@pytest.mark.slow
def test_writers_that_begin_together(faces):
    """One of them writes, and the others are refused, or find nothing left to do."""
    command = [*COMMAND, "infer", "faces", "--output", "x.jsonl", "--resume"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, env=environment()) for _ in range(3)]
    errors = [process.communicate()[1] for process in runs]
    codes = [process.returncode for process in runs]
    assert 0 in codes
    assert all(code == 0 or (code == 2 and b"another process" in e) for code, e in zip(codes, errors, strict=True))
    assert sorted(paths_of(Path("x.jsonl"))) == NAMES


def test_a_lock_that_is_removed_as_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    """Whoever held it before may give it back between our two steps; what we then hold has no name any more."""
    flock, path = fcntl.flock, tmp_path / "x"

    def give_back_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        get_lock_path(path).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", give_back_first)
    with hold(path):
        with pytest.raises(OutputError, match="another process writes"), hold(path):
            pass
        assert get_lock_path(path).exists()
    assert os.listdir(tmp_path) == []


def test_a_drive_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "x"):
        pass
    assert "No locks available; start no other run that writes it" in caplog.text


def test_a_system_without_locks_writes_all_the_same(faces):
    program = "import sys; sys.modules['fcntl'] = None; from fmengine.cli import main; main()"
    arguments = ["infer", "faces", "--output", "x.jsonl", "--backend", "onnxruntime"]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, env=environment())
    assert sorted(paths_of(Path("x.jsonl"))) == NAMES


# The same pictures by other names.


def test_resume_knows_a_folder_however_it_is_named(faces):
    run("infer", "./faces//", "--output", "x.jsonl")
    _, err = run("infer", faces.absolute(), "--output", "x.jsonl", "--resume")
    assert err.startswith("no new pictures; 6 had a row already\n")
    assert paths_of(Path("x.jsonl")) == NAMES


def test_resume_knows_a_listed_file_however_it_is_named(faces):
    run("infer", faces, "--output", "x.jsonl")
    listed = ["./faces/a.png", "faces//b.jpg", "./faces/./below/e.png", str((faces / "é.png").absolute())]
    others = ["./faces//c*.png", "faces/./.hidden.png"]
    run("infer", "-", *others, "--output", "x.jsonl", "--resume", stdin="\n".join(listed).encode())
    assert paths_of(Path("x.jsonl")) == NAMES


def test_dots_that_lead_through_a_link_stay(faces):
    """`faces/link/..` is not `faces`."""
    Path("elsewhere/below").mkdir(parents=True)
    shutil.copy(faces / "a.png", "elsewhere/other.png")
    (faces / "link").symlink_to("../elsewhere/below")
    out, _ = run("infer", "faces/link/../other.png")
    assert out.startswith("faces/link/../other.png  ")


def test_a_picture_given_twice_has_two_rows_also_after_a_resume(faces):
    arguments = ["infer", "--batch", faces, "--batch", f"./{faces}/below", "--output", "x.jsonl"]
    run(*arguments)
    expected = [*NAMES, "faces/below/e.png"]
    assert paths_of(Path("x.jsonl")) == expected
    run(*arguments, "--resume")
    assert paths_of(Path("x.jsonl")) == expected


# What failed is tried again.


@pytest.fixture
def half_broken(faces) -> list[object]:
    """The pictures, one of which is broken, and one that is not there."""
    (faces / "broken.png").write_bytes(b"no picture")
    return ["infer", faces, "missing.png", "--output"]


@pytest.mark.parametrize("suffix", quick_first(SUFFIXES))
def test_failed_pictures_are_tried_again(half_broken, faces, suffix):
    output = Path(f"x.{suffix}")
    run(*half_broken, output, code=3)
    before = [row for row in rows_of(output) if not row["error"]]
    shutil.copy(faces / "a.png", faces / "broken.png")
    _, err = run(*half_broken, output, "--resume", "--retry-failed", "--report", "x.html", code=3)
    assert err.startswith("2 pictures: 1 ")
    assert "6 had a row already" in err
    again = [{"path": "faces/broken.png", "error": ""}, {"path": "missing.png", "error": "not_found"}]
    assert rows_of(output) == before + again
    assert len(Page(Path("x.html")).cards) == 8
    shutil.copy(faces / "a.png", "missing.png")
    run("infer", faces, "--output", output, "--resume", "--retry-failed")  # also where it is not given any more
    assert rows_of(output) == [*before, again[0], {"path": "missing.png", "error": ""}]
    assert not [name for name in os.listdir() if name.startswith(".")], "nothing is left behind"


def test_without_retry_failed_they_keep_their_rows(half_broken, faces):
    run(*half_broken, "x.jsonl", code=3)
    before = Path("x.jsonl").read_bytes()
    shutil.copy(faces / "a.png", faces / "broken.png")
    _, err = run(*half_broken, "x.jsonl", "--resume", code=3)
    assert err.startswith("no new pictures; 8 had a row already, 2 of them failed\n")
    assert Path("x.jsonl").read_bytes() == before


def test_retry_failed_needs_resume(half_broken):
    assert "add --resume" in refused(*half_broken, "x.jsonl", "--retry-failed")
    assert "give one of them" in refused(*half_broken, "x.jsonl", "--resume", "--overwrite")
    assert not Path("x.jsonl").exists()


@pytest.mark.slow
def test_a_retry_through_a_link_keeps_the_link(half_broken, faces):
    Path("link.jsonl").symlink_to("x.jsonl")
    run(*half_broken, "x.jsonl", code=3)
    Path("x.jsonl.state.json").rename("link.jsonl.state.json")
    run(*half_broken, "link.jsonl", "--resume", "--retry-failed", code=3)
    assert Path("link.jsonl").is_symlink()
    assert len(paths_of(Path("x.jsonl"))) == 8


def test_files_of_a_killed_retry_are_no_pictures(faces):
    output = faces / "x.jsonl"
    for file in list_output_files(output)[2:]:
        file.write_text("[]")
    run("infer", faces, "--output", output, "--overwrite")
    assert paths_of(output) == NAMES


def test_a_damaged_list_of_what_to_retry_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    write(path)
    for text in ("", "{", "{}", "[3]", "null"):
        (tmp_path / ".x.jsonl.retry.json").write_text(text)
        err = refused_to_open(path, resume=True)
        assert "cannot resume" in err
        assert "use --overwrite" in err
    write(path, overwrite=True)
    write(path, [], resume=True)


def refused_to_open(path: Path, **options: bool) -> str:
    with pytest.raises(OutputError) as caught, opened(path, **options):
        pass
    return str(caught.value)


FILE_EVENTS = ("open", "os.rename", "os.remove", "os.truncate")


def survives(number: int, action) -> bool:
    """Whether a process is done with an action before its file operation of that number, at which it is killed."""
    if (child := os.fork()) == 0:
        left = iter(range(number))

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event in FILE_EVENTS and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def finish(path: Path, given: list[str], *, retry: bool) -> None:
    with opened(path, resume=True, retry=retry) as file:
        for name in file.select_unfinished(given):
            file.write([answer(name)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "first"),
    [("jsonl", ROWS), ("jsonl", ROWS[1:2]), ("csv", ROWS), ("parquet", ROWS)],
    ids=["jsonl", "jsonl of failed rows alone", "csv", "parquet"],
)
def test_a_retry_that_is_killed_at_any_moment_loses_and_doubles_no_row(tmp_path, suffix, first):
    """Also of pictures that nobody names any more."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    names = sorted(map(decode_path, first))
    number, done = 0, False
    while not done:
        path = tmp_path / str(number) / f"x.{suffix}"
        path.parent.mkdir()
        with opened(path) as file:
            file.write(first)
        done = survives(number, lambda path=path: finish(path, [], retry=True))
        finish(path, [names[0]], retry=False)
        assert sorted(decode_path(row) for row in read(path)) == names, number
        assert set(os.listdir(path.parent)) <= {file.name for file in list_output_files(path)}, number
        number += 1
    assert number > 12, "the retry has so many file operations at least"


def read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        from test_parquet import read as read_parquet

        return read_parquet(path)
    with opened(path, resume=True) as file:
        return list(file.read_rows())


def test_a_retry_of_a_run_that_was_killed(tmp_path):
    path = tmp_path / "x.jsonl"
    kill(path, ROWS)
    path.write_bytes(path.read_bytes() + b'{"path": "torn')
    finish(path, ["new.png"], retry=True)
    state = json.loads(get_state_path(path).read_text())
    assert state["rows"] == len(ROWS) + 1
    assert state["bytes"] == path.stat().st_size
