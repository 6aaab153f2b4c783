"""The proofs that need a GPU: `fmengine doctor --verify`.

Each is passed, failed, or not run with the reason; a report with one that was not run never says that all is well.
"""

import io
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
from PIL import Image

from ..backend.onnxruntime import OnnxRuntimeBackend
from ..backend.registry import GPU_BACKENDS, open_backend
from ..check.gate import (
    GateError,
    check_engine,
    check_kernel,
    draw_gate_inputs,
    draw_gate_pictures,
    draw_picture,
)
from ..errors import BackendError, DeviceError
from ..image.decode import decode_bytes
from ..model.file import ModelFile, load_model_file, resolve
from ..model.spec import ModelSpec
from ..options import BackendOptions, Limits
from ..types import DecodedImage, ImageOutputs, InputBatch, Outputs
from .arena import Buffer
from .backend import GpuBackend
from .context import Context
from .interop import Arrivals
from .preprocessor import Kernels, Preprocessor, read_back
from .runner import Slot, ways_through

Verdict = Literal["passed", "failed", "not run"]
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
    chosen = _Chosen(name, model, device)
    prove("engine against the CPU, every profile and graph", lambda: _parity(chosen))
    prove("one answer in any batch", lambda: _composition(chosen))
    prove("CUDA graphs on and off", lambda: _graphs(chosen))
    prove("1 to 4 streams", lambda: _streams(chosen, min(500, effort.pictures)))
    prove("JPEG files decoded on the GPU", lambda: _jpeg(chosen))
    prove(f"soak of {effort.soak:g} seconds", lambda: _soak(chosen, effort.soak))
    return proofs


def summarise(proofs: Sequence[Proof]) -> Literal["passed", "failed", "incomplete"]:
    """Of all proofs together."""
    verdicts = {proof.verdict for proof in proofs}
    if "failed" in verdicts:
        return "failed"
    return "incomplete" if "not run" in verdicts or not proofs else "passed"


def _outcome(run: Callable[[], str]) -> tuple[Verdict, str]:
    try:
        return "passed", run()
    except NotRun as reason:
        return "not run", str(reason)
    except (GateError, DeviceError, AssertionError) as error:
        return "failed", str(error)
    except BackendError as error:  # the machine lacks something
        return "not run", str(error)


class _Chosen:
    """The backend under proof, opened with what each proof asks for."""

    def __init__(self, name: str, model: str | None, device: int) -> None:
        self.names = GPU_BACKENDS if name == "auto" else (name,)
        self.model, self.device = model, device

    @contextmanager
    def open(
        self, *, streams: int = 2, graphs: bool = True, jpeg: Literal["cpu", "gpu"] = "cpu"
    ) -> Iterator[tuple[GpuBackend, ModelFile]]:
        """The first that this machine has. Raises NotRun if it has none."""
        options = BackendOptions(device=self.device, max_batch=MOST, streams=streams, graphs=graphs, jpeg=jpeg)
        reasons = []
        for name in self.names:
            try:
                backend, file, _ = open_backend(name, self.model, options)
            except (GateError, DeviceError):
                raise
            except BackendError as error:
                reasons.append(f"{name}: {error}")
                continue
            assert isinstance(backend, GpuBackend)
            try:
                yield backend, file
            finally:
                backend.close()
            return
        raise NotRun("; ".join(reasons))


def _kernel(device: int, model: str | None, pictures: int) -> str:
    """Without any network: the kernel, its buffers and its stream alone."""
    spec = load_model_file(resolve(model, ("fp16", "fp32", "int8"))).spec
    context = Context(device)
    opened: list[Callable[[], None]] = []
    try:
        with context.use():
            check_kernel(_alone(context, spec, opened), spec, MOST, pictures=pictures, seed=SEED)
    finally:
        context.close(opened)
    return f"{pictures:,} random pictures of 1 to 300 pixels a side, no level differs"


def _alone(
    context: Context, spec: ModelSpec, opened: list[Callable[[], None]]
) -> Callable[[Sequence[DecodedImage]], InputBatch]:
    """A preprocessor on a stream of its own; what must be given back is added to `opened`."""
    kernels = Kernels(context)
    opened.append(kernels.free)
    streams = [context.cuda.Stream(context.runtime.CUstream_flags.CU_STREAM_NON_BLOCKING.value)]
    opened.append(streams.clear)
    arrivals = Arrivals(context)
    opened.append(arrivals.free)
    preprocessor = Preprocessor(context, kernels, arrivals, spec, streams[0])
    opened.append(preprocessor.free)
    images = Buffer(context, int(np.prod(spec.input_shape(MOST))))
    opened.append(images.free)

    def run(batch: Sequence[DecodedImage]) -> InputBatch:
        preprocessor.launch(batch, preprocessor.stage(batch), images.address)
        streams[0].synchronize()
        return read_back(context, images.address, spec.input_shape(len(batch)))

    return run


def _sanitize(tool: str, device: int, pictures: int) -> str:
    """The same in a process under one of compute-sanitizer's tools."""
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=_toolkit())
    if found is None:
        raise NotRun("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    Context(device).close([])  # without a GPU, say that
    command = [found, "--tool", tool, "--error-exitcode", "9"]
    command += [sys.executable, "-m", __name__, str(device), str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return f"{pictures} pictures, no finding"


def _toolkit() -> str:
    return str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")


def _parity(chosen: _Chosen) -> str:
    with chosen.open() as (backend, file):
        reference = OnnxRuntimeBackend.open(file, BackendOptions())

        def check(slot: Slot) -> str:
            passed = check_engine(ways_through(slot), reference.run, file.spec)
            rows = ", ".join(f"{p.way} batch {p.batch}: {p.largest:.2g}" for p in passed)
            return f"{backend.name}: largest difference of a probability, {rows}"

        with backend.context.use():
            return backend.pool.with_slot(check)


def _composition(chosen: _Chosen) -> str:
    with chosen.open() as (backend, file):
        images = draw_gate_inputs(file.spec)
        whole = backend.run(images).probabilities
        largest = 0.0
        for size in (1, 2, 7, 33):
            parts = [
                backend.run(InputBatch(images[start : start + size])) for start in range(0, len(images), size)
            ]
            found = np.concatenate([part.probabilities for part in parts])
            _same_labels(found, whole, f"batches of {size}")
            largest = max(largest, float(np.abs(found - whole).max()))
        return (
            f"{len(images)} pictures in batches of 1, 2, 7, 33 and {MOST}: the same labels, {largest:.2g} at most"
        )


def _graphs(chosen: _Chosen) -> str:
    answers = []
    for graphs in (True, False):
        with chosen.open(graphs=graphs) as (backend, file):
            answers.append(backend.run(draw_gate_inputs(file.spec)))
            if graphs and (captured := backend.describe()["cuda graphs"]).startswith("none"):
                raise NotRun(f"no batch size is captured: {captured}")
    return _same_bits(answers)


def _streams(chosen: _Chosen, count: int) -> str:
    answers = []
    for streams in (1, 2, 3, 4):
        with chosen.open(streams=streams) as (backend, _):
            if backend.lanes != streams:
                raise NotRun(f"there is room for {backend.lanes} streams of {streams}")
            pictures = [draw_picture(np.random.default_rng(index)) for index in range(count)]
            with ThreadPoolExecutor(streams) as threads:
                rounds = list(threads.map(backend.run_pictures, [pictures] * streams))
            answers += rounds
    return _same_bits(answers)


def _jpeg(chosen: _Chosen) -> str:
    """How far the GPU's decoder is from the CPU's: no difference is promised, no label may flip."""
    files = jpeg_files()
    with chosen.open(jpeg="gpu") as (backend, file):
        spec, limits = file.spec, Limits()
        pictures = [backend.decode_jpeg(data) for data in files]
        if refused := sum(picture is None for picture in pictures):
            raise NotRun(f"nvImageCodec decodes {len(files) - refused} of {len(files)} files")
        found = backend.run_pictures([picture for picture in pictures if picture is not None])
        expected = backend.run_pictures([decode_bytes(data, spec.color, limits) for data in files])
        _same_labels(found.probabilities, expected.probabilities, "JPEG files")
        same = int((found.logits == expected.logits).all(axis=1).sum())
        largest = float(np.abs(found.probabilities - expected.probabilities).max())
        return f"{len(files)} files: {same} have the same bits, no label flips, {largest:.2g} at most"


def jpeg_files() -> list[bytes]:
    """The portrait and noise as JPEG files of many qualities, sizes and chroma samplings."""
    files = []
    for index, picture in enumerate(draw_gate_pictures()[-64:]):
        image = Image.fromarray(picture).resize((40 + 3 * index, 50 + 2 * index))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=30 + index, subsampling=index % 3)
        files.append(file.getvalue())
    return files


def _soak(chosen: _Chosen, seconds: float) -> str:
    """Everything at once for a while: the same answers, and no memory lost."""
    with chosen.open() as (backend, _):
        rng = np.random.default_rng(SEED)
        batches = [[draw_picture(rng) for _ in range(size)] for size in (1, 5, MOST, MOST + 9)]
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


def _same_bits(answers: Sequence[Outputs | ImageOutputs]) -> str:
    for outputs in answers[1:]:
        largest = float(np.abs(outputs.probabilities - answers[0].probabilities).max())
        assert np.array_equal(outputs.logits, answers[0].logits), f"answers differ, by {largest:.2g} at most"
    return f"{len(answers)} times {len(answers[0].logits)} answers, the same bits"


if __name__ == "__main__":
    print(_kernel(int(sys.argv[1]), None, int(sys.argv[2])))
