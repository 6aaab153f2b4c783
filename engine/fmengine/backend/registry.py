"""Open the backend that runs a network: one of `BACKENDS`, or the first that works.

Whether a backend works on this machine is found out by opening it: lists of "available" devices and
providers name what a library was compiled with, not what runs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import (
    BackendError,
    FmengineError,
    ModelError,
    RefusedModelError,
    UnavailableError,
)
from ..model.engine_file import SUFFIX as ENGINE_SUFFIX
from ..model.file import ModelFile, load_model_file, resolve
from ..options import BackendOptions, Hint
from ..system.imports import load_object
from ..system.nvidia import require_driver
from ..types import InputBatch
from .protocol import Backend, DeviceBackend

log = logging.getLogger(__name__)

# In the order in which `auto` tries them; by name, so that a machine without a GPU imports nothing of `gpu`.
BACKENDS = {
    "tensorrt": "fmengine.gpu.tensorrt:TensorRtBackend",
    "tensorrt-rtx": "fmengine.gpu.tensorrt:TensorRtRtxBackend",
    "onnxruntime-cuda": "fmengine.gpu.onnxruntime:OnnxRuntimeCudaBackend",
    "onnxruntime": "fmengine.backend.onnxruntime:OnnxRuntimeBackend",
    "openvino": "fmengine.backend.openvino:OpenVinoBackend",
}
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
# On a CPU, where several are installed, `auto` takes the fastest; see `select.py`.
CPU_BACKENDS = ("onnxruntime", "openvino")


class Attempt(NamedTuple):
    """One backend that was tried. `reason` is empty if it works."""

    name: str
    reason: str


def backends() -> list[str]:
    """List all backends, in the order in which `auto` tries them; `fmengine doctor` shows which of them work."""
    return list(BACKENDS)


def open_backend(
    name: str, model: str | None, options: BackendOptions, hint: Hint = "throughput"
) -> tuple[Backend, ModelFile, Sequence[Attempt]]:
    """Open a backend by name, or with `auto` the first that works, a GPU's where it is faster than the CPU.

    Args:
        name: one of `BACKENDS`, or `auto`. A backend that is named works, or it is an error.
        model: a path, the name of a shipped model, or None. An engine file is run by the backend that it names.
        options: device, batch and threads.
        hint: what `auto` is to be fast for.

    Returns:
        The backend, the model file that it runs, and what was tried before it and why not taken.

    Raises:
        UnavailableError: if nothing works, with each reason.
        ModelError: for a model file that cannot be used.
    """
    if name != "auto" and name not in BACKENDS:
        raise UnavailableError(f"unknown backend {name!r}; available are auto, {', '.join(BACKENDS)}")
    if model is not None and Path(model).suffix == ENGINE_SUFFIX:
        return _open_engine_file(name, model, options)
    load = cache(load_model_file)  # several candidates run the same file
    if name != "auto":
        file = _find_file(name, model, load)
        return open_file(name, file, options), file, [Attempt(name, "")]
    attempts: list[Attempt] = []
    for candidate, others in _list_candidates():
        try:
            file = _find_file(candidate, model, load)
            backend = open_file(candidate, file, options)
            _check_answers(backend, file)
            slower, not_taken = _compare_devices(backend, file, model, options, hint)
        except BackendError as error:
            attempts.append(Attempt(candidate, str(error)))
            continue
        if slower:
            backend.close()
            attempts.append(Attempt(candidate, slower))
            continue
        return backend, file, [*attempts, *others, *not_taken, Attempt(candidate, "")]
    reasons = "; ".join(f"{attempt.name}: {attempt.reason}" for attempt in attempts)
    raise UnavailableError(f"no backend works on this machine: {reasons}")


def _open_engine_file(
    name: str, path: str, options: BackendOptions
) -> tuple[Backend, ModelFile, Sequence[Attempt]]:
    """Open an engine file with the backend that it names: no other can run it."""
    file = load_model_file(path)
    assert file.engine is not None
    chosen = file.engine.backend if name == "auto" else name
    return open_file(chosen, file, options), file, [Attempt(chosen, "")]


def _compare_devices(
    backend: Backend, file: ModelFile, model: str | None, options: BackendOptions, hint: Hint
) -> tuple[str, Sequence[Attempt]]:
    """Explain why a backend that works is not taken, as the CPU is faster; else why the CPU's is not.

    Nothing is compared where what is asked needs a GPU, or nothing works on the CPU.
    """
    if not isinstance(backend, DeviceBackend) or options.jpeg == "gpu":
        return "", ()
    from .device_choice import compare_with_cpu  # here: most machines never need it

    def open_cpu(streams: int) -> tuple[Backend, ModelFile]:
        settings = replace(options, streams=streams)
        for candidate, _ in _list_cpu_candidates():
            with suppress(BackendError):
                found = _find_file(candidate, model, load_model_file)
                return open_file(candidate, found, settings), found
        raise UnavailableError("no backend works on the CPU")

    try:
        choice = compare_with_cpu(backend, file, options.max_batch, open_cpu)
    except UnavailableError:
        return "", ()
    except BaseException:
        backend.close()
        raise
    explanation = choice.explain(hint)
    log.info("%s", explanation)
    if choice.choose(hint) == backend.name:
        return "", [Attempt(choice.cpu, explanation)]
    return explanation, ()


def _list_candidates() -> Iterator[tuple[str, Sequence[Attempt]]]:
    """Yield the backends that `auto` tries, in order, each with the others to report where it is taken."""
    yield from ((name, ()) for name in BACKENDS if name not in CPU_BACKENDS)
    yield from _list_cpu_candidates()


def _list_cpu_candidates() -> Iterator[tuple[str, Sequence[Attempt]]]:
    """Yield those of them that run on a CPU, in the order of their speed."""
    on_cpu = [name for name in CPU_BACKENDS if name in BACKENDS]
    if sum(find_spec(name) is not None for name in on_cpu) < 2:
        yield from ((name, ()) for name in on_cpu)
        return
    from .select import select_backends  # here: most installations never need it

    selection = select_backends()
    reasons = [Attempt(name, selection.explain(name)) for name in selection.order[1:] if name in selection.rates]
    for number, name in enumerate(selection.order):
        yield name, () if number else reasons


def _check_answers(backend: Backend, file: ModelFile) -> None:
    """Compare a CPU backend's answers with those of the default one, where that is another and installed."""
    default, *others = CPU_BACKENDS
    if backend.name in others and find_spec(default) is not None:
        from .select import check_answers

        try:
            check_answers(backend, file)
        except BackendError as error:
            log.info("%s is not taken: %s", backend.name, error)
            backend.close()
            raise


def load_backend_class(name: str) -> type[Backend]:
    """Import the class of one of `BACKENDS`.

    Raises:
        UnavailableError: for a backend on GPUs, on a machine without a driver.
    """
    if name in GPU_BACKENDS:
        require_driver()  # first: what a GPU needs takes longer to import than everything else
    kind: type[Backend] = load_object(BACKENDS[name])
    return kind


def _find_file(name: str, model: str | None, load: Callable[[Path], ModelFile]) -> ModelFile:
    """Find the model file that suits a backend."""
    return load(resolve(model, load_backend_class(name).precisions))


def open_file(name: str, file: ModelFile, options: BackendOptions) -> Backend:
    """Open one of `BACKENDS` with a model file, and warm it up.

    Raises:
        BackendError: if it does not work on this machine, or does not run this file.
        ModelError: if the file is at fault.
    """
    if file.engine is not None and file.engine.backend != name:
        raise RefusedModelError(
            f"{file.path} is an engine of {file.engine.backend}, which {name} does not run; leave the backend at "
            f"auto, or give {name} the model file that the engine was built from"
        )
    kind = load_backend_class(name)
    if file.spec.precision not in kind.precisions:
        raise RefusedModelError(
            f"{file.path} is {file.spec.precision}, which {name} does not run; "
            f"it needs {' or '.join(kind.precisions)}"
        )
    backend = kind.open(file, options)
    try:
        for batch in sorted({1, options.max_batch}):
            _warm_up(backend, file, batch)
    except FmengineError:
        backend.close()
        raise
    return backend


def _warm_up(backend: Backend, file: ModelFile, batch: int) -> None:
    """Run a batch of zeros: the first run of a shape is slow, and shows whether the model takes it."""
    expected = (batch, len(file.spec.labels))
    try:
        outputs = backend.run(InputBatch(np.zeros(file.spec.input_shape(batch), dtype=np.uint8)))
    except BackendError:  # of the machine, not of the model
        raise
    except Exception as error:  # every library has its own
        raise ModelError(
            f"{file.path} does not run on {backend.name} with a batch of {batch}; "
            f"expected a model that takes any batch: {error}"
        ) from error
    if outputs.probabilities.shape != expected:
        raise ModelError(
            f"{file.path} answers with {outputs.probabilities.shape} for a batch of {batch}; "
            f"expected {expected}, one column a label"
        )
    if outputs.features is not None and outputs.features.shape != (batch, file.spec.features):
        raise ModelError(
            f"{file.path} gives features of {outputs.features.shape} for a batch of {batch}; "
            f"expected {(batch, file.spec.features)}, as its metadata say"
        )
