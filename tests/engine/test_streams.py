"""Streams: any encoding, closed ones, lists of any making, and JSON lines from every command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMAND, NAMES, environment, json_rows, paths_of, run
from tests.params import quick_first

from fmengine.jobs.rows import decode_path


def raw(*arguments: object, stdin: bytes = b"", code: int = 0, **env: str) -> tuple[bytes, bytes]:
    """Run the command line and give back the bytes of stdout and stderr."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment(**env), timeout=120)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout, done.stderr


# Encodings.

narrow = pytest.mark.parametrize("encoding", quick_first(["latin-1", "ascii"]))


@pytest.fixture
def foreign(faces) -> Path:
    """Names that narrow encodings lack, also on a row of an error."""
    shutil.copy(faces / "a.png", faces / "漢字.png")
    (faces / "ш.png").touch()
    return faces


@narrow
def test_rows_escape_what_an_encoding_lacks(foreign, encoding):
    out, err = raw("infer", foreign, code=3, PYTHONIOENCODING=encoding)
    lines = out.decode("latin-1").splitlines()
    assert len(lines) == len(NAMES) + 2
    assert any(line.startswith(r"faces/\u6f22\u5b57.png  ") for line in lines)
    assert any(line.startswith(r"faces/\u0448.png  error  empty: ") for line in lines)
    assert b"8 pictures" in err


@pytest.mark.slow
def test_json_rows_are_the_same_in_any_encoding(foreign):
    out, _ = raw("infer", foreign, "--json", code=3, PYTHONIOENCODING="latin-1")
    out.decode("ascii")
    wide, _ = raw("infer", foreign, "--json", code=3, PYTHONIOENCODING="utf-8")
    assert "漢字".encode() in wide, "readable, not escaped"
    assert json_rows(out.decode()) == json_rows(wide.decode())


@pytest.mark.parametrize("command", [["info"], ["doctor"], ["eval"], ["bench", "compare"]], ids=" ".join)
def test_every_command_says_names_that_an_encoding_lacks(tmp_path, command):
    model = tmp_path / "漢字\udcff.onnx"
    model.write_bytes(b"no model")
    arguments = {"info": [model], "eval": [model, tmp_path], "doctor": ["--output", tmp_path / "漢字.html"]}
    _, err = raw(*command, *arguments.get(command[0], [model, model]), code=2, PYTHONIOENCODING="latin-1")
    assert rb"\u6f22\u5b57" in err


@pytest.mark.parametrize(
    "more", quick_first([{}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]), ids=["plain", "strict"]
)
def test_a_system_without_a_language_gives_every_row(foreign, more):
    """Where Python takes names for ASCII, these are bytes that are none, and percent-encoded."""
    out, _ = raw("infer", foreign, "--json", code=3, LC_ALL="C", **more)
    assert sorted(decode_path(row).encode(errors="surrogateescape") for row in json_rows(out.decode())) == sorted(
        os.fsencode(path) for path in foreign.rglob("*") if path.is_file()
    )


def test_the_file_of_a_model_whose_name_is_not_utf8(tmp_path):
    from fmengine.model.file import resolve

    model = tmp_path / "\udcff漢.onnx"
    shutil.copy(resolve(None, ("int8",)), model)
    out, _ = raw("info", model)
    assert r"\udcff漢.onnx (".encode() in out
    out, _ = raw("info", model, "--json", PYTHONIOENCODING="utf-8")
    assert json.loads(out)["path"] == str(model)


# Closed streams.


def closed(closing: str, *arguments: str, code: int = 0) -> str:
    """Run with some streams closed, and give back what is left of stdout and stderr."""
    script = f'exec "$@" {closing}'
    command = ["bash", "-c", script, "bash", *COMMAND, *arguments]
    done = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, env=environment(), timeout=120)
    assert done.returncode == code, done.stderr
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    "streams", quick_first(["<&- >&- 2>&-", ">&-", "<&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-"], quick=2)
)
def test_closed_streams_cost_no_row(faces, streams):
    """Not even where a library complains on stderr, whose number an output file could have been given."""
    from test_cli import broken_tiff

    (faces / "broken.tif").write_bytes(broken_tiff())
    said = closed(streams, "infer", "faces", "--output", "x.jsonl", "--debug", code=3)
    assert "Traceback" not in said
    assert sorted(paths_of(Path("x.jsonl"))) == sorted([*NAMES, "faces/broken.tif"])
    state = json.loads(Path("x.jsonl.state.json").read_text())
    assert state["bytes"] == Path("x.jsonl").stat().st_size


def test_a_list_on_a_closed_stdin_is_refused(faces):
    said = closed("<&-", "infer", "-", "--output", "x.jsonl", code=2)
    assert said == (
        "fmengine: `-` is a list of paths on stdin, which is closed; expected a file or a pipe there\n"
    )
    assert os.listdir() == ["faces"]


def test_rows_on_a_closed_stdout_are_lost_and_nothing_else(faces):
    assert closed(">&-", "infer", "faces").startswith("6 pictures: ")
    assert closed("2>&-", "infer", "faces").count("\n") == 6


def test_a_stderr_that_takes_nothing_costs_no_row(faces):
    for more in ([], ["--log-json"]):
        with open("/dev/full", "wb") as full:
            command = [*COMMAND, *more, "infer", faces]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, env=environment(), timeout=120)
        assert (done.returncode, done.stdout.count(b"\n")) == (0, 6)


# JSON lines on stderr.


def lines_of(*arguments: object, code: int = 0) -> list[dict]:
    """What a command says, each line of which is to be a JSON object."""
    _, err = run(*arguments, "--log-json", code=code)
    lines = [json.loads(line) for line in err.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    return lines


@pytest.fixture
def labelled(drawn_faces, tmp_path, monkeypatch) -> Path:
    """Some labelled pictures, one of which is broken, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for label in ("happy", "sad"):
        (tmp_path / "faces" / label).mkdir(parents=True)
        for number in range(4):
            shutil.copy(drawn_faces / "val" / label / f"{number:03}.png", tmp_path / "faces" / label)
    (tmp_path / "faces" / "sad" / "broken.png").write_bytes(b"no picture")
    return Path("faces")


def test_prepare_says_json_lines(labelled):
    said = [line["message"] for line in lines_of("prepare", labelled, "--output", "clean", "--validation", 0.5)]
    assert any(message.startswith("dropped 1: ") for message in said)


def test_eval_says_json_lines(labelled):
    said = [line["message"] for line in lines_of("eval", "alexnet-slim", labelled, "--json", code=3)]
    assert "left out faces/sad/broken.png: no known image format; expected JPEG, PNG, WebP or alike" in said


def test_doctor_says_json_lines(tmp_path):
    lines = lines_of("doctor", "--verify", "--output", tmp_path / "x.json", code=4)
    assert lines[-1]["verdict"] in ("failed", "incomplete")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["train", "missing"], ["export", "missing"], ["bench", "compare", "a", "b"], ["parity", "a"], ["nothing"]],
    ids=lambda arguments: arguments[0],
)
def test_errors_of_every_command_are_json_lines(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    *_, line = lines_of(*arguments, code=2)
    assert (line["level"], line["exit_code"]) == ("error", 2)


def test_whoever_writes_to_stderr_writes_json_lines(tmp_path):
    """Python's warnings, a thread's traceback, click and progress bars, and whoever knows the descriptor."""
    program = tmp_path / "program.py"
    program.write_text(
        "import click, os, sys, threading, tqdm, warnings\n"
        "from fmengine.cli import main\n"
        "@click.command()\n"
        "def command():\n"
        "    warnings.warn('careful')\n"
        "    thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()\n"
        "    click.secho('two\\nlines', err=True, fg='red')\n"
        "    for _ in tqdm.tqdm(range(3), disable=None): pass\n"
        "    sys.stderr.write('half'); sys.stderr.write(' and half\\n')\n"
        "    os.write(2, b'from C\\n')\n"
        "    raise KeyError('oh')\n"
        "main(command)\n"
    )
    command = [sys.executable, program, "--log-json"]
    done = subprocess.run(command, capture_output=True, env=environment(), text=True, timeout=60)
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert {"two", "lines", "half and half", "ZeroDivisionError: division by zero"} <= set(said)
    assert any("UserWarning: careful" in message for message in said)
    assert said[-1].startswith("fmengine: KeyError: 'oh'")
    assert not [message for message in said if "it/s" in message or "from C" in message]


# Words that are options for some and names for others.


def test_files_that_are_called_like_options(faces):
    for name in ("--debug", "--log-json", "--json"):
        shutil.copy(faces / "a.png", name)
    out, err = run("infer", "--", "--debug", "--log-json", "--json")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["--debug", "--log-json", "--json"]
    assert err.startswith("3 pictures: ")
    out, err = run("--debug", "infer", "--debug", "--log-json", "--", "--debug")
    assert out.startswith("--debug  ")
    assert all(json.loads(line) for line in err.splitlines())
