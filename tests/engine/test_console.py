"""The voice of every command, in a process that it may do anything to."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
import textwrap

import pytest
from command_line import environment

from fmengine.cli.console import Progress, to_json, track


@pytest.fixture
def program(tmp_path):
    """Makes a program of the body of a command."""

    def make(body: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(
            "import click, logging, os, sys, warnings\n"
            "from pathlib import Path\n"
            "from fmengine.cli import main\n"
            "from fmengine.cli.console import *\n"
            "@click.command()\n"
            "def command():\n" + textwrap.indent(textwrap.dedent(body), "    ") + "main(command)\n"
        )
        return [sys.executable, str(path)]

    return make


def run(command: list[str], code: int = 0) -> tuple[bytes, bytes]:
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


MESSAGES = """
    inform("one", number=1)
    warn("two", number=2)
    report_error("three", number=3)
    logging.getLogger("fmengine.some.part").info("of no interest")
    logging.getLogger("fmengine.some.part").warning("four")
    warnings.warn("five")
    print_data("data")
"""


def test_messages_are_lines_on_stderr_and_data_is_alone_on_stdout(program):
    out, err = run(program(MESSAGES))
    assert out == b"data\n"
    *lines, warning, code = err.decode().splitlines()
    assert lines == ["one", "two", "three", "four"]
    assert "UserWarning: five" in warning
    assert "warnings.warn" in code


def test_messages_are_json_lines_with_levels_and_fields(program):
    out, err = run([*program(MESSAGES), "--log-json"])
    assert out == b"data\n"
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines[:-1]] == [
        ("info", "one"),
        ("warning", "two"),
        ("error", "three"),
        ("info", "of no interest"),
        ("warning", "four"),
    ]
    assert [line["number"] for line in lines[:3]] == [1, 2, 3]
    assert lines[-1]["level"] == "warning"
    assert "UserWarning: five" in lines[-1]["message"]


def test_paths_are_written_in_their_own_bytes_and_in_order(program):
    out, _ = run(
        program("print_data('before')\nprint_path(Path(os.fsdecode(b'\\xff.onnx')))\nprint_data('after')\n")
    )
    assert out == b"before\n\xff.onnx\nafter\n"


@pytest.mark.parametrize("statement", ["print_data('x')", "print_path(Path('x'))", "print_json({})"])
def test_a_stdout_that_takes_nothing_is_an_error(program, statement):
    with open("/dev/full", "wb") as full:
        command = program(statement + "\n")
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"fmengine: cannot write to stdout: No space left on device")


def test_numbers_that_json_lacks_are_null():
    document = {"a": float("nan"), "b": [float("inf"), 1.5], "c": (-0.0, None)}
    assert json.loads(to_json(document)) == {"a": None, "b": [None, 1.5], "c": [-0.0, None]}


BAR = """
    with Progress(8, "pictures", caption="reading", initial=3) as bar:
        bar.advance(4)
        bar.annotate(loss="0.5")
    with Progress(None, "steps", keep=False) as bar:
        bar.move_to(2, 9)
    list(track(range(5), 5, "batches"))
    with Progress(77, "hidden", shown=False) as bar:
        bar.advance()
"""


def on_a_terminal(command: list[str]) -> str:
    main, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # no bar without a width
    done = subprocess.run(command, stderr=other, stdout=subprocess.PIPE, env=environment(), timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")
    os.write(other, b"|")  # where nothing was written, to read would be an error
    os.close(other)
    text = os.read(main, 1 << 16).decode()
    os.close(main)
    return text.removesuffix("|")


def test_progress_shows_how_much_of_how_much(program):
    seen = on_a_terminal(program(BAR))
    assert "reading" in seen
    assert "7/8 [" in seen
    assert "loss=0.5" in seen
    assert "2/9 [" in seen
    assert "5/5 [" in seen
    assert "hidden" not in seen
    assert "77" not in seen


def test_progress_is_silent_among_json_lines_and_without_a_terminal(program):
    assert on_a_terminal([*program(BAR), "--log-json"]) == ""
    assert run(program(BAR)) == (b"", b"")


def test_what_is_tracked_passes_as_it_is(capsys):
    assert list(track("abc", 3, "letters")) == ["a", "b", "c"]
    assert list(Progress(None, "letters").track([])) == []
    assert capsys.readouterr() == ("", "")


def test_tqdm_is_imported_for_a_bar_alone(program):
    out, _ = run(program(BAR + "    print_data(str('tqdm' in sys.modules))\n"))
    assert out == b"False\n"
