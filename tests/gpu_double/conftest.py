"""Each test here runs in a process of its own, which finds the test double as its driver, and nothing else does.

So a lost device, a crash or a leak is one test's, and the other tests' process never loads a driver.
"""

import gc
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..kernel.host import compile_kernel
from . import driver
from .build import HEADERS, build_double
from .server import PIPE

ROOT = Path(__file__).parents[2]
BUILD = ROOT / ".cache" / "gpu_double"
INSIDE = driver.FOUND


def environment() -> dict[str, str]:
    """What a process needs to find the double."""
    if not HEADERS.is_dir():
        pytest.skip("CUDA's headers are not in .cache/cuda; `make test` fetches them and builds pycuda")
    pytest.importorskip("pycuda", reason="pycuda is not built; `make test` builds it")
    here = Path(__file__).parent
    return os.environ | {
        "LD_LIBRARY_PATH": str(build_double(BUILD).parent),
        "GPU_DOUBLE_KERNELS": str(compile_kernel(BUILD)),
        "PYTHONPATH": os.pathsep.join([str(here / "stand_in"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "FMENGINE_CACHE": str(BUILD / "cache"),  # so that the gate is passed once
    }


class Server:
    """The process with the double that every test is forked from (see server.py)."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.pipe, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rs", "-p", "no:cacheprovider"]
        # Before this process's own limit; the method is the one that also ends what hangs in a library.
        command += ["--timeout=240", "--timeout-method=thread"]
        with output.open("ab") as file, theirs:
            self.process = subprocess.Popen(
                [*command, "-p", "tests.gpu_double.server", "tests/gpu_double"],
                cwd=ROOT,
                env=environment() | {PIPE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def run(self, name: str) -> tuple[int, str]:
        """Run the test of this id, and return its exit status and output."""
        os.truncate(self.output, 0)
        self.pipe.send(name)
        try:
            status = self.pipe.recv()
        except EOFError:
            status = self.process.wait()
        return status, self.output.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("gpu-double") / "output")
    yield server
    server.close()


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Everything that a test made in the driver is given back at its end."""
    yield
    if INSIDE:
        gc.collect()
        assert driver.live() == {}


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if INSIDE or pyfuncitem.get_closest_marker("outside"):
        return None
    server: Server = pyfuncitem._request.getfixturevalue("server")
    status, output = server.run(pyfuncitem.nodeid)
    if skipped := re.search(r"^SKIPPED \[1\] \S+ (.*)$", output, re.MULTILINE):
        pytest.skip(skipped[1])
    if status:
        pytest.fail(f"in a process of its own (exit status {status}):\n{output}", pytrace=False)
    print(output)
    return True
