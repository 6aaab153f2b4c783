"""The proofs that need a GPU: `fmengine doctor --verify`.

Each is passed, failed, or not run with the reason; a report with one that was not run never says that all is well.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..backends import Options, Outputs, open_backend
from ..backends.onnxruntime import OnnxRuntimeBackend
from ..errors import BackendError, DeviceError, FmengineError
from ..model_file import ModelFile, ModelSpec, load_model_file, resolve
from ..preprocess import Pixels
from .backend import GpuBackend
from .context import Context
from .gate import GateError, check_engine, check_kernel, gate_images, random_picture
from .memory import Buffer
from .preprocessor import Kernels, Preprocessor, read_back
from .slot import Slot

Verdict = Literal["passed", "failed", "not run"]
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
SEED = 11
MOST = 64  # pictures a batch


class Proof(NamedTuple):
    """One proof, and how it ended.

    Attributes:
        detail: what was measured, what was wrong, or why it was not run.
        seconds: that it took.
    """

    name: str
    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True)
class Effort:
    """How much is tried: the defaults are the proof, less is a try-out.

    Attributes:
        pictures: random ones through the preprocessing kernel.
        sanitized: the same under compute-sanitizer, which is a hundred times slower.
        soak: seconds.
    """

    pictures: int = 20_000
    sanitized: int = 200
    soak: float = 600.0


class NotRun(Exception):  # noqa: N818
    """A proof cannot be run here; the message says why."""


def verify(
    name: str, model: str | None, device: int, effort: Effort, tell: Callable[[Proof], None]
) -> list[Proof]:
    """Run every proof on the GPU that is here.

    Args:
        name: a backend of `GPU_BACKENDS`, or `auto` for the first that works.
        model: a path, the name of a shipped model, or None.
        device: index of the GPU.
        effort: how much is tried.
        tell: called with each proof as it ends.
    """
    proofs: list[Proof] = []

    def prove(what: str, run: Callable[[], str]) -> None:
        start = time.monotonic()
        verdict, detail = _outcome(run)
        proofs.append(Proof(what, verdict, detail, round(time.monotonic() - start, 1)))
        tell(proofs[-1])

    # The kernel needs no TensorRT, so it is proven also where that is missing.
    prove("preprocessing kernel, bit for bit", lambda: _kernel(device, model, effort.pictures))
    for tool in ("memcheck", "racecheck", "initcheck"):
        prove(
            f"preprocessing kernel under compute-sanitizer {tool}",
            partial(_sanitize, tool, device, effort.sanitized),
        )


def _graphs(chosen: _Chosen) -> str:
    answers = []
    for graphs in (True, False):
        with chosen.open(graphs=graphs) as (backend, file):
            answers.append(backend.run(gate_images(file.spec)))
            if graphs and (captured := backend.describe()["cuda graphs"]).startswith("none"):
                raise NotRun(f"no batch size is captured: {captured}")
    return _same_bits(answers)


def _streams(chosen: _Chosen) -> str:
    answers = []
    for streams in (1, 2, 3, 4):
        with chosen.open(streams=streams) as (backend, _):
            if backend.lanes != streams:
                raise NotRun(f"there is room for {backend.lanes} streams of {streams}")
            pictures = [random_picture(np.random.default_rng(index)) for index in range(500)]
            with ThreadPoolExecutor(streams) as threads:
                rounds = list(threads.map(backend.run_pictures, [pictures] * streams))
            answers += rounds
    return _same_bits(answers)


def _soak(chosen: _Chosen, seconds: float) -> str:
    """Everything at once for a while: the same answers, and no memory lost."""
    with chosen.open() as (backend, _):
        rng = np.random.default_rng(SEED)
        batches = [[random_picture(rng) for _ in range(size)] for size in (1, 5, MOST, MOST + 9)]
        expected = [backend.run_pictures(batch) for batch in batches]
        with backend.context.use():
            before, total = backend.context.free_memory()
        end = time.monotonic() + seconds

        def work(number: int) -> int:
            runs = 0
            while time.monotonic() < end or not runs:
                index = (number + runs) % len(batches)
                _same_bits([expected[index], backend.run_pictures(batches[index])])
                runs += 1
            return runs

        with ThreadPoolExecutor(4) as threads:
            runs = sum(threads.map(work, range(4)))
        with backend.context.use():
            after, _ = backend.context.free_memory()
        lost = before - after
        assert lost < total // 100, f"{lost:,} bytes of the GPU's memory were lost over {runs:,} batches"
        return f"{runs:,} batches in 4 threads, the same bits each time; {lost:,} bytes less are free"


def _same_labels(
    found: np.typing.NDArray[np.float32], expected: np.typing.NDArray[np.float32], where: str
) -> None:
    flipped = found.argmax(axis=1) != expected.argmax(axis=1)
    assert not flipped.any(), f"{where}: {int(flipped.sum())} of {len(found)} labels flip"


def _same_bits(answers: Sequence[Outputs]) -> str:
    for outputs in answers[1:]:
        largest = float(np.abs(outputs.probabilities - answers[0].probabilities).max())
        assert np.array_equal(outputs.logits, answers[0].logits), f"answers differ, by {largest:.2g} at most"
    return f"{len(answers)} times {len(answers[0].logits)} answers, the same bits"


if __name__ == "__main__":
    print(_kernel(int(sys.argv[1]), None, int(sys.argv[2])))
