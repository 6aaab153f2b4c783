"""Prove the preprocessing kernels on a GPU, without any network, also under compute-sanitizer.

Usage: python -m fmengine.gpu.kernel_proofs DEVICE PICTURES
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..check.gate import check_kernel
from ..check.proofs import NotRun
from ..model.file import load_model_file, resolve
from ..model.spec import ModelSpec
from ..types import DecodedImage, InputBatch, PackedImages
from .arena import Buffer
from .context import Context
from .interop import ImportStream
from .kernels import Kernels
from .launch import InputShape
from .preprocessor import Preprocessor, WeightTables, read_back
from .registered import RegisteredMemories
from .tables import LONGEST

SEED = 11
MAX_BATCH = 64
AROUND_THE_LIMIT = 12  # pictures


def prove_kernels(device: int, model: str | None, pictures: int) -> str:
    """Compare the kernels with the definition, without any network."""
    spec = load_model_file(resolve(model, ("fp16", "fp32", "int8"))).spec
    context = Context(device)
    opened: list[Callable[[], None]] = []
    try:
        with context.use():
            check = partial(check_kernel, spec=spec, batch=MAX_BATCH, seed=SEED)
            run = _make_preprocessing(context, spec, opened)
            check(run, pictures=pictures)
            check(partial(run, separately=True), pictures=pictures // 4)
            registered = RegisteredMemories(context)
            opened.append(registered.free)
            check(partial(_run_registered, registered, run), pictures=pictures // 4)
            check(run, pictures=AROUND_THE_LIMIT, largest=LONGEST + 100, smallest=LONGEST - 100)
    finally:
        context.close(opened)
    refusal = f" (not registered: {registered.refusal})" if registered.refusal else ""
    return (
        f"{pictures:,} random pictures of 1 to 300 pixels a side, a quarter of them by the three launches too, "
        f"a quarter from registered memory{refusal}, and {AROUND_THE_LIMIT} around the longest side of the one "
        "launch: no level differs"
    )


def _make_preprocessing(
    context: Context, spec: ModelSpec, opened: list[Callable[[], None]]
) -> Callable[..., InputBatch]:
    """Make a function that preprocesses on a stream of its own; what frees it is added to `opened`."""
    kernels = Kernels(context)
    opened.append(kernels.free)
    streams = [context.cuda.Stream(context.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)]
    opened.append(streams.clear)
    imports = ImportStream(context)
    opened.append(imports.free)
    weights = WeightTables(context, kernels, InputShape(*spec.input.shape))
    opened.append(weights.free)
    preprocessor = Preprocessor(context, kernels, imports, weights, spec, streams[0], MAX_BATCH)
    opened.append(preprocessor.free)
    images = Buffer(context, int(np.prod(spec.input_shape(MAX_BATCH))))
    opened.append(images.free)

    def run(batch: Sequence[DecodedImage], *, separately: bool = False) -> InputBatch:
        preprocessor.staging.stage(batch, streams[0])
        preprocessor.preprocess(images.address, separately=separately)
        streams[0].synchronize()
        return read_back(context, images.address, spec.input_shape(len(batch)))

    return run


def _run_registered(
    registered: RegisteredMemories, run: Callable[[PackedImages], InputBatch], batch: Sequence[DecodedImage]
) -> InputBatch:
    """Run a batch out of memory that is registered for it."""
    images = PackedImages.pack(batch)
    unregister = registered.register(images.memory)
    try:
        return registered.read(images, run)
    finally:
        unregister()


def prove_sanitized(tool: str, device: int, pictures: int) -> str:
    """Run `prove_kernels` in a process under one of compute-sanitizer's tools."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=_get_toolkit_folder())
    if sanitizer is None:
        raise NotRun("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    Context(device).close([])  # without a GPU it raises the reason to report
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    command += [sys.executable, "-m", __name__, str(device), str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return f"{pictures} pictures, no finding"


def _get_toolkit_folder() -> str:
    return str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")


if __name__ == "__main__":
    print(prove_kernels(int(sys.argv[1]), None, int(sys.argv[2])))
