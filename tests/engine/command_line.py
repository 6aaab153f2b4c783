"""The command line as a shell runs it: its arguments, streams and exit code.

`run` forks each command from a server that has imported what commands import; interpreter starts take longer than
the commands. `COMMAND` is for tests of what is not the same there: the start and the end of a process, signals,
terminals, the environment.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import PIL

KEYS = {"path", "label", "confidence", "probabilities", "reason", "error"}
COMMAND = [sys.executable, "-m", "fmengine"]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | more


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["fmengine.cli.infer", "fmengine.backend.onnxruntime", "pytest", *(f"PIL.{name}" for name in PIL._plugins)]
)
STREAMS = {"stdin": os.O_RDONLY, "stdout": os.O_WRONLY | os.O_CREAT, "stderr": os.O_WRONLY | os.O_CREAT}


def run(
    *arguments: object, code: int = 0, cwd: Path | None = None, stdin: bytes = b"", **env: str
) -> tuple[str, str]:
    """Run the command line, hold it to its exit code, and give back stdout and stderr."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stdin").write_bytes(stdin)
        process = FORKS.Process(
            target=_run_command,
            args=([*map(str, arguments)], folder),
            kwargs={"cwd": cwd or Path.cwd(), "environ": environment(**env)},
        )
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
        out, err = ((folder / stream).read_bytes().decode() for stream in ("stdout", "stderr"))
    assert process.exitcode == code, (out[-500:], err)
    assert "\x1b" not in out + err, "no colours and no cursor movements where there is no terminal"
    return out, err


def _run_command(arguments: list[str], folder: Path, cwd: Path, environ: dict[str, str]) -> None:
    from fmengine.cli import main

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    for number, (name, flags) in enumerate(STREAMS.items()):
        os.dup2(os.open(folder / name, flags), number)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has closed it
    sys.argv = ["fmengine", *arguments]
    main()


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
