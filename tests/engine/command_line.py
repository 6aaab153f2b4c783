"""The command line as a shell runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

KEYS = {"path", "label", "confidence", "probabilities", "reason", "error"}
COMMAND = [sys.executable, "-m", "fmengine"]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | more


def run(
    *arguments: object, code: int = 0, cwd: Path | None = None, stdin: bytes = b"", **env: str
) -> tuple[str, str]:
    """Run the command line, hold it to its exit code, and give back stdout and stderr."""
    done = subprocess.run(
        [*COMMAND, *map(os.fspath, map(str, arguments))],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=environment(**env),
        timeout=120,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, (out[-500:], err)
    assert "\x1b" not in out + err, "no colours and no cursor movements where there is no terminal"
    return out, err


def refused(*arguments: object, cwd: Path | None = None, code: int = 2) -> str:
    """Run into an error: nothing on stdout, a message and no traceback on stderr."""
    out, err = run(*arguments, code=code, cwd=cwd)
    assert out == ""
    assert "Traceback" not in err
    return err


def json_rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def paths_of(path: Path) -> list[str]:
    return [row["path"] for row in json_rows(path.read_text())]


# The pictures of the fixture `faces`, in the order of their rows.
NAMES = ["faces/.hidden.png", "faces/a.png", "faces/b.jpg", "faces/below/e.png", "faces/c d.png", "faces/é.png"]
