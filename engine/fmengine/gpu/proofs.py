"""The claims that `fmengine doctor --verify` proves on a GPU: kernels, engine, graphs, streams, JPEG, soak."""

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..backend.device_choice import SIDE, measure_choice, measure_seconds
from ..backend.onnxruntime import OnnxRuntimeBackend
from ..backend.protocol import Backend
from ..backend.registry import (
    CPU_BACKENDS,
    GPU_BACKENDS,
    load_detector_class,
    open_backend,
)
from ..check.gate import (
    GateError,
    check_engine,
    draw_gate_inputs,
    draw_gate_pictures,
    draw_picture,
)
from ..check.proofs import Claim, Effort, NotRun
from ..detect.gate import check_detector, draw_scenes
from ..errors import BackendError, DeviceError
from ..image.decode import decode_bytes
from ..model.detector import load_detector_file
from ..model.engine_file import SUFFIX as ENGINE_SUFFIX
from ..model.file import ModelFile
from ..options import BackendOptions, Limits
from ..types import ImageOutputs, InputBatch, Outputs, PackedImages
from .backend import STREAMS, GpuBackend
from .kernel_proofs import prove_kernels, prove_sanitized
from .runner import Runner, list_execution_paths
from .tables import LONGEST

SEED = 11
MAX_BATCH = 64


def list_claims(backend: str, model: str | None, options: BackendOptions, effort: Effort) -> list[Claim]:
    """List what is to be proven on a GPU, in order; see `fmengine.check.proofs.verify_gpu`."""
    device = options.device
    # The kernels need no TensorRT, so they are proven also where that is missing.
    kernels = Claim("preprocessing kernel, bit for bit", lambda: prove_kernels(device, model, effort.pictures))
    sanitized = [
        Claim(
            f"preprocessing kernel under compute-sanitizer {tool}",
            partial(prove_sanitized, tool, device, effort.sanitized),
        )
        for tool in ("memcheck", "racecheck", "initcheck")
    ]
    target = _Target(backend, model, options)
    return [
        kernels,
        *sanitized,
        Claim("engine against the CPU, every profile and graph", lambda: _prove_parity(target)),
        Claim("one answer in any batch", lambda: _prove_batch_invariance(target)),
        Claim("CUDA graphs against the stream, every class", lambda: _prove_graphs(target)),
        Claim("answers looked for, and waited for", lambda: _prove_waits(target)),
        Claim("memory of others, registered", lambda: _prove_registered(target)),
        Claim("1 to 4 streams", lambda: _prove_streams(target, min(500, effort.pictures))),
        Claim("JPEG files decoded on the GPU", lambda: _prove_jpeg(target)),
        Claim(f"soak of {effort.soak:g} seconds", lambda: _prove_soak(target, effort.soak)),
        Claim("speed, beside the CPU", lambda: _compare_speed(target)),
        Claim("detector of faces against the CPU", lambda: _prove_detector(target)),
    ]


class _Target:
    """The backend to prove, opened with the options of each proof."""

    def __init__(self, name: str, model: str | None, options: BackendOptions) -> None:
        self.names = GPU_BACKENDS if name == "auto" else (name,)
        self.model, self.options = model, options

    @contextmanager
    def open(
        self, *, streams: int = 2, graphs: bool = True, jpeg: Literal["cpu", "gpu"] = "cpu"
    ) -> Iterator[tuple[GpuBackend, ModelFile]]:
        """Open the first backend that works on this machine. Raises NotRun if none does."""
        options = replace(self.options, max_batch=MAX_BATCH, streams=streams, graphs=graphs, jpeg=jpeg)
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


def _prove_parity(target: _Target) -> str:
    with target.open() as (backend, file):
        reference = OnnxRuntimeBackend.open(file, BackendOptions())

        def check(runner: Runner) -> str:
            passed = check_engine(list_execution_paths(runner), reference.run, file.spec)
            rows = ", ".join(f"{p.path} batch {p.batch}: {p.largest:.2g}" for p in passed)
            return f"{backend.name}: largest difference of a probability, {rows}"

        with backend.context.use():
            return backend.pool.with_runner(check)


def _prove_batch_invariance(target: _Target) -> str:
    with target.open() as (backend, file):
        images = draw_gate_inputs(file.spec)
        whole = backend.run(images).probabilities
        largest = 0.0
        for size in (1, 2, 7, 33):
            parts = [
                backend.run(InputBatch(images[start : start + size])) for start in range(0, len(images), size)
            ]
            found = np.concatenate([part.probabilities for part in parts])
            _check_labels(found, whole, f"batches of {size}")
            largest = max(largest, float(np.abs(found - whole).max()))
        return (
            f"{len(images)} pictures in batches of 1, 2, 7, 33 and {MAX_BATCH}: the same labels, "
            f"{largest:.2g} at most"
        )


def _prove_graphs(target: _Target) -> str:
    pictures = [draw_picture(np.random.default_rng(index)) for index in range(MAX_BATCH)]

    def compare(runner: Runner) -> str:
        if not runner.graphs:
            raise NotRun(f"no batch size is captured: {runner.refusal or 'graphs are off'}")
        smallest = 1
        for most in runner.graphs:
            for count in sorted({smallest, most}):
                batch = pictures[:count]
                _check_bits([runner.run(batch, _launch_singly), runner.run(batch)])
            smallest = most + 1
        return f"batches of at most {', '.join(map(str, runner.graphs))}: the same bits as launched one by one"

    with target.open() as (backend, _), backend.context.use():
        return backend.pool.with_runner(compare)


def _launch_singly(event: str, stream: object) -> None:
    """Record nothing; that there is something to record keeps a runner from its graphs."""


def _prove_waits(target: _Target) -> str:
    rng = np.random.default_rng(SEED)
    batches = [[draw_picture(rng) for _ in range(1 + index % 9)] for index in range(100)]

    def compare(runner: Runner) -> str:
        for batch in batches:
            answers = []
            for poll in (True, False):
                runner.submit(batch)
                answers.append(runner.collect(poll=poll))
            _check_bits(answers)
        return f"{len(batches)} batches of 1 to 9 pictures, the same bits"

    with target.open() as (backend, _), backend.context.use():
        return backend.pool.with_runner(compare)


def _prove_registered(target: _Target) -> str:
    """Read batches out of memory as workers share it: few where they lie, many by DMA."""
    rng = np.random.default_rng(SEED)
    batches = [[draw_picture(rng) for _ in range(size)] for size in (1, 8, MAX_BATCH, MAX_BATCH + 9)]
    with target.open() as (backend, _):
        for batch in batches:
            images = PackedImages.pack(batch)
            unregister = backend.register_memory(images.memory)
            try:
                if backend.registered.refusal:
                    raise NotRun(f"this system registers none: {backend.registered.refusal}")
                _check_bits([backend.run_pictures(batch), *(backend.run_pictures(images) for _ in range(20))])
            finally:
                unregister()
        sizes = ", ".join(str(len(batch)) for batch in batches)
        return f"batches of {sizes}, 20 times each: the same bits as of copies"


def _prove_streams(target: _Target, count: int) -> str:
    answers = []
    for streams in (1, 2, 3, 4):
        with target.open(streams=streams) as (backend, _):
            if backend.streams != streams:
                raise NotRun(f"there is room for {backend.streams} streams of {streams}")
            pictures = [draw_picture(np.random.default_rng(index)) for index in range(count)]
            with ThreadPoolExecutor(streams) as threads:
                rounds = list(threads.map(backend.run_pictures, [pictures] * streams))
            answers += rounds
    return _check_bits(answers)


def _prove_jpeg(target: _Target) -> str:
    """Measure how far the GPU's decoder is from the CPU's: pixels may differ, no label may flip."""
    files = _make_jpeg_files()
    with target.open(jpeg="gpu") as (backend, file):
        spec, limits = file.spec, Limits()
        pictures = [backend.decode_jpeg(data) for data in files]
        if refused := sum(picture is None for picture in pictures):
            raise NotRun(f"nvImageCodec decodes {len(files) - refused} of {len(files)} files")
        found = backend.run_pictures([picture for picture in pictures if picture is not None])
        expected = backend.run_pictures([decode_bytes(data, spec.color, limits) for data in files])
        _check_labels(found.probabilities, expected.probabilities, "JPEG files")
        same = int((found.logits == expected.logits).all(axis=1).sum())
        largest = float(np.abs(found.probabilities - expected.probabilities).max())
        return f"{len(files)} files: {same} have the same bits, no label flips, {largest:.2g} at most"


def _make_jpeg_files() -> list[bytes]:
    """Encode the portrait and noise as JPEG files of many qualities, sizes and chroma samplings."""
    files = []
    for index, picture in enumerate(draw_gate_pictures()[-64:]):
        image = Image.fromarray(picture).resize((40 + 3 * index, 50 + 2 * index))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=30 + index, subsampling=index % 3)
        files.append(file.getvalue())
    return files


def _prove_soak(target: _Target, seconds: float) -> str:
    """Run batches in several threads for a while: the same answers, and no memory lost."""
    with target.open() as (backend, _):
        rng = np.random.default_rng(SEED)
        batches = [[draw_picture(rng) for _ in range(size)] for size in (1, 5, MAX_BATCH, MAX_BATCH + 9)]
        batches.append([draw_picture(rng, LONGEST - 300, LONGEST + 300) for _ in range(4)])
        expected = [backend.run_pictures(batch) for batch in batches]
        with backend.context.use():
            before, total = backend.context.free_memory()
        end = time.monotonic() + seconds

        def work(number: int) -> int:
            runs = 0
            while time.monotonic() < end or not runs:
                index = (number + runs) % len(batches)
                _check_bits([expected[index], backend.run_pictures(batches[index])])
                runs += 1
            return runs

        with ThreadPoolExecutor(4) as threads:
            runs = sum(threads.map(work, range(4)))
        with backend.context.use():
            after, _ = backend.context.free_memory()
        lost = before - after
        assert lost < total // 100, f"{lost:,} bytes of the GPU's memory were lost over {runs:,} batches"
        return f"{runs:,} batches in 4 threads, the same bits each time; {lost:,} bytes less are free"


def _compare_speed(target: _Target) -> str:
    """Measure one small picture and many, from pixels to answers, and the same on the CPU of this machine."""
    model = None if target.model is None or target.model.endswith(ENGINE_SUFFIX) else target.model
    with target.open() as (backend, _):

        def open_cpu(streams: int) -> tuple[Backend, ModelFile]:
            opened, file, _ = open_backend(CPU_BACKENDS[0], model, BackendOptions(streams=streams))
            return opened, file

        choice = measure_choice(backend, MAX_BATCH, open_cpu)
        told = [
            f"{name} {1e6 * speed.seconds:,.0f} µs for one, {speed.rate:,.0f} pictures/s"
            for name, speed in ((choice.gpu, choice.of_gpu), (choice.cpu, choice.of_cpu))
        ]
        return f"{SIDE}×{SIDE} arrays in batches of {MAX_BATCH}: {'; '.join(told)}"


def _prove_detector(target: _Target) -> str:
    """Find the faces of drawn photographs, alone and in threads, and measure the search on both."""
    with target.open() as (backend, _):
        name, device = backend.name, backend.device_index
    kind: Any = load_detector_class(name)
    file = load_detector_file(precisions=kind.precisions)
    detector = kind.open(file, BackendOptions(device=device, streams=STREAMS))
    cpu: Any = OnnxRuntimeBackend.open(load_detector_file(), BackendOptions())
    try:
        agreement = check_detector(detector.run, cpu.run, file.spec)
        scenes = draw_scenes(file.spec)
        expected = [detector.run(scene) for scene in scenes]
        with ThreadPoolExecutor(4) as threads:
            for number, found in enumerate(threads.map(detector.run, scenes * 20)):
                same = map(np.array_equal, found, expected[number % len(scenes)])
                assert all(same), f"photograph {number} has other answers where four threads search"
        scene = np.zeros((1, 3, 480, 640), np.uint8)
        times = []
        for each in (detector, cpu):
            times.append(measure_seconds(partial(each.run, scene)))
        return (
            f"{agreement.faces} faces: scores to {agreement.largest:.2g}, boxes overlap by {agreement.iou:.3f} "
            f"or more; 640×480 in {1e3 * times[0]:.2f} ms, on the CPU in {1e3 * times[1]:.2f} ms"
        )
    finally:
        detector.close()
        cpu.close()


def _check_labels(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], where: str) -> None:
    flipped = found.argmax(axis=1) != expected.argmax(axis=1)
    assert not flipped.any(), f"{where}: {int(flipped.sum())} of {len(found)} labels flip"


def _check_bits(answers: Sequence[Outputs | ImageOutputs]) -> str:
    for outputs in answers[1:]:
        largest = float(np.abs(outputs.probabilities - answers[0].probabilities).max())
        assert np.array_equal(outputs.logits, answers[0].logits), f"answers differ, by {largest:.2g} at most"
    return f"{len(answers)} times {len(answers[0].logits)} answers, the same bits"
