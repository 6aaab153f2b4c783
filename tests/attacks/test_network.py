"""What talks to the network, or writes where nobody asked it to: every backend and command, watched from outside.

Python's audit hooks do not see what a library in C does. `watch.cpp` is preloaded into a process and all that it
starts, in a fresh home and without the variables by which libraries know a test machine and keep quiet.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SIZE = 1 << 20  # bytes of the log, as watch.cpp has it
SECONDS = 32  # of a library at rest: those that report do it in the background, some after half a minute
GXX = shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(GXX is None, reason="g++ is missing: it builds what watches"),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's"),
]

USE = f"""
import sys, time
from fmengine import Engine, Isolation
end = time.monotonic() + {SECONDS}
for isolate in (None, Isolation()):
    with Engine.load(backend=sys.argv[1], isolate=isolate) as engine:
        results = list(engine.predict_many([sys.argv[2]] * 100))
        assert [result.label for result in results] == ["happy"] * 100
        while isolate is None and time.monotonic() < end:  # some use now and then, as an application has it
            engine.predict(sys.argv[2])
            time.sleep(1)
"""
TALK = """
import pathlib, socket
pathlib.Path("left").write_text("behind")
try: socket.create_connection(("localhost", 9), 1)
except OSError: pass
"""


class Watched:
    """A folder with a fresh home, in which processes are watched."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.home, self.output, self._log = folder / "home", folder / "output", folder / "log"
        for made in (self.home, self.output):
            made.mkdir(parents=True)
        self._log.write_bytes(bytes(SIZE))
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(self.home),
            "TMPDIR": str(self.output),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",  # threads wait for each other longer than so small a network computes
            "LD_PRELOAD": str(library),
            "WATCH": str(self._log),
        }

    def run(self, *arguments: object) -> int:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.output, env=self._environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode in (0, 3), done.stderr
        return done.returncode

    def found(self) -> list[str]:
        """What was done beyond our cache, the folder for output, and Matplotlib's list of the machine's fonts."""
        log = self._log.read_bytes()
        lines = log[8 : 8 + int.from_bytes(log[:8], sys.byteorder)].decode(errors="replace").splitlines()
        own = [f"file {place}" for place in (self.output, "/dev/", "/proc/self/")]
        own += [
            f"file {self.home}/.{place}" for place in ("cache/fmengine", "cache/matplotlib", "config/matplotlib")
        ]
        parents = {f"file {self.home}/.cache", f"file {self.home}/.config"}  # made where they are missing
        return sorted({line for line in lines if not line.startswith(tuple(own)) and line not in parents})


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watch") / "watch.so"
    source = Path(__file__).with_name("watch.cpp")
    subprocess.run([str(GXX), "-O1", "-shared", "-fPIC", str(source), "-o", str(path), "-ldl"], check=True)
    return path


def test_it_is_seen_who_talks_and_writes(library: Path, tmp_path: Path) -> None:
    """The watch itself: what follows could find nothing because it sees nothing."""
    watched = Watched(tmp_path, library)
    watched.run("-c", f"import os; os.chdir({str(watched.home)!r})\n{TALK}")
    talk = [line for line in watched.found() if not line.startswith("a socket")]
    assert talk == ["a look-up localhost", f"file {watched.home}/left"]
    assert len(watched.found()) > len(talk), "the socket"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_leaves_the_machine(
    library: Path, portrait: Path, tiny_run: Path, drawn_faces: Path, tmp_path: Path
) -> None:
    """Libraries in use for half a minute, and meanwhile one command after the other."""
    pictures = drawn_faces / "val"

    def use(backend: str) -> list[str]:
        watched = Watched(tmp_path / backend, library)
        watched.run("-c", USE, backend, portrait)
        return watched.found()

    def command(*arguments: object) -> list[str]:
        watched = Watched(tmp_path / str(arguments[0]), library)
        watched.run("-m", "fmengine", *arguments)
        return watched.found()

    commands: Sequence[Sequence[object]] = (
        ("infer", "--batch", pictures, "--isolate", "--output", "rows.jsonl", "--report", "sheet.html"),
        ("doctor",),
        ("info",),
        ("eval", "alexnet-slim", pictures, "--html", "page.html"),
        ("export", tiny_run, "--calibrate", pictures, "--name", "tiny"),
        ("train", drawn_faces, "--run", "run", "--epochs", "1", "--size", "40"),
        ("bench", "--pictures", pictures, "--limit", "8", "--seconds", "0.01", "--least", "10", "--rounds", "2"),
    )
    with ThreadPoolExecutor(4) as pool:
        libraries = {name: pool.submit(use, name) for name in ("onnxruntime", "openvino")}
        found = {str(words[0]): command(*words) for words in commands}
        found |= {name: running.result() for name, running in libraries.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.slow
def test_an_application_that_was_first_is_told_once() -> None:
    code = (
        "import {library}, logging\n"
        "logging.basicConfig(format='%(message)s')\n"
        "import fmengine, fmengine.system.telemetry as telemetry\n"
        "fmengine.Engine.load(backend='{library}').close()\n"
    )
    for library, otherwise in (
        ("onnxruntime", "set ORT_DISABLE_TELEMETRY=1"),
        ("openvino", "uninstall openvino-telemetry"),
    ):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
        for quiet in (False, True):
            environment |= {"ORT_DISABLE_TELEMETRY": "1"} if quiet else {}
            done = subprocess.run(
                [sys.executable, "-c", code.format(library=library)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode == 0, done.stderr
            told = [line for line in done.stderr.splitlines() if "before fmengine" in line]
            if quiet and library == "onnxruntime":
                assert told == []
            else:
                assert told == [
                    f"{library} was imported before fmengine, and may report to its maker: "
                    f"import fmengine first, or {otherwise}"
                ]
