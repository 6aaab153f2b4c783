"""Each test here runs in a process of its own, which finds the test double as its driver, and nothing else does.

So a lost device, a crash or a leak is one test's, and the other tests' process never loads a driver.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..kernel.host import compile_kernel
from . import driver
from .build import HEADERS, build_double

ROOT = Path(__file__).parents[2]
BUILD = ROOT / ".cache" / "gpu_double"
INSIDE = driver.FOUND
TIMEOUT = 240  # seconds


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
        "OMP_NUM_THREADS": "1",
    }


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if INSIDE or pyfuncitem.get_closest_marker("outside"):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, pyfuncitem.nodeid], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    output = done.stdout + done.stderr
    if skipped := re.search(r"^SKIPPED \[1\] \S+ (.*)$", done.stdout, re.MULTILINE):
        pytest.skip(skipped[1])
    if done.returncode:
        pytest.fail(f"in a process of its own (exit status {done.returncode}):\n{output}", pytrace=False)
    print(output)
    return True
