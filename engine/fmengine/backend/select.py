"""Select the backend that `auto` takes on a CPU where several are installed: the fastest on this machine.

The measurement takes a second, at the first `auto`, with the shipped model. Speed is not enough: before another
than the default one may answer for a model file, its answers are compared with the default one's, with that very
file. Both results are kept in the cache until the CPU, the cores or a library change.
"""

import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..check.compare import CPU_LIBRARIES, Comparison, compare
from ..check.gate import draw_gate_inputs
from ..errors import BackendError, FmengineError
from ..model.file import ModelFile
from ..options import BackendOptions
from ..system.cache import Cache, CacheError
from ..system.cores import read_cpuinfo, usable_cores
from ..types import InputBatch
from .protocol import Backend
from .registry import CPU_BACKENDS, open_backend, open_file

log = logging.getLogger(__name__)

DEFAULT = CPU_BACKENDS[0]
BATCH = 64
ROUNDS = 25  # of all backends in turn; the best of each counts, for other work on the machine only slows it down
# How many times as fast as the default another backend must be: the network takes a third of a picture's time, and
# start-up counts too.
MIN_SPEEDUP = 1.3
COMPARED_BATCH = 32  # pictures in a batch where answers are compared


class DisagreementError(BackendError):
    """A backend does not answer as the default one does: `auto` must not take it for this model."""

    exit_code = 1


class Selection(NamedTuple):
    """The backends in the order to try them.

    Attributes:
        order: names of `CPU_BACKENDS`, the one to take first.
        rates: pictures a second of each that was measured.
    """

    order: Sequence[str]
    rates: dict[str, float]

    def explain(self, name: str) -> str:
        """Explain why a backend that works is not taken."""
        first = self.order[0]
        rates = (
            f"{self.rates[first]:,.0f} pictures a second through its network here, {name} {self.rates[name]:,.0f}"
        )
        more = f"; it would have to be {MIN_SPEEDUP} times as fast" if first == DEFAULT else ""
        return f"works; {first} is taken: {rates}{more}"


def select_backends() -> Selection:
    """Select by the rates that are kept in the cache for this machine, or else by rates measured now."""
    key = describe_machine()
    try:
        cache = Cache()
        if (cached := cache.load("rates", key)) is not None:
            return _select_by_rates(json.loads(cached))
        rates = measure_rates()
        cache.store("rates", key, json.dumps(rates).encode())
    except CacheError as error:  # it will be measured again
        log.info("the fastest backend cannot be remembered: %s", error)
        rates = measure_rates()
    return _select_by_rates(rates)


def check_answers(backend: Backend, model: ModelFile) -> None:
    """Compare a backend's answers for a model with the default one's, once for each model and machine.

    Where the default one does not run the model, nothing is compared: there is no other backend to take.

    Raises:
        DisagreementError: if they do not agree.
    """
    key = describe_machine() | {"backend": backend.name, "model": model.spec.file_sha256}
    try:
        cache = Cache()
        if (cached := cache.load("comparison", key)) is not None:
            breach: str = json.loads(cached)
        else:
            comparison = _compare_with_default(backend, model)
            breach = _describe_breach(comparison)
            if comparison is not None:
                cache.store("comparison", key, json.dumps(breach).encode())
    except CacheError as error:
        log.info("whether backends agree cannot be remembered: %s", error)
        breach = _describe_breach(_compare_with_default(backend, model))
    if breach:
        raise DisagreementError(f"does not answer as {DEFAULT} does with {model.path.name}: {breach}")


def _describe_breach(comparison: Comparison | None) -> str:
    """Describe what exceeds the tolerance; empty where nothing does, or nothing was compared."""
    return "" if comparison is None or comparison.holds else str(comparison)


def _compare_with_default(backend: Backend, model: ModelFile) -> Comparison | None:
    """Compare on the pictures that a GPU's engine must pass; None if the default one does not run the model."""
    try:
        default = open_file(DEFAULT, model, BackendOptions())
    except FmengineError as error:
        log.info("%s cannot be compared with %s: %s", backend.name, DEFAULT, error)
        return None
    try:
        inputs = draw_gate_inputs(model.spec)
        starts = range(0, len(inputs), COMPARED_BATCH)
        batches = [InputBatch(inputs[start : start + COMPARED_BATCH]) for start in starts]
        found, expected = (
            np.concatenate([each.run(batch).probabilities for batch in batches]) for each in (backend, default)
        )
        return compare(found, expected, CPU_LIBRARIES)
    except Exception as error:  # every library has its own
        raise DisagreementError(f"fails where its answers are compared with {DEFAULT}'s: {error}") from error
    finally:
        default.close()


def describe_machine() -> dict[str, str]:
    """Describe what rates and comparisons depend on: the CPU, its cores, and the versions of the libraries."""
    versions = {name: _get_version(name) for name in CPU_BACKENDS}
    return {"fmengine": __version__, "cpu": _describe_cpu(), "cores": str(usable_cores()), **versions}


def measure_rates() -> dict[str, float]:
    """Measure each backend's network in turn, in pictures a second; one that fails is left out."""
    opened: dict[str, Backend] = {}
    try:
        for name in CPU_BACKENDS:
            try:
                opened[name], file, _ = open_backend(name, None, BackendOptions(max_batch=BATCH))
            except FmengineError as error:
                log.info("%s is not measured: %s", name, error)
        if not opened:
            return {}
        images = InputBatch(np.random.default_rng(7).integers(0, 256, file.spec.input_shape(BATCH), np.uint8))
        seconds: dict[str, list[float]] = {name: [] for name in opened}
        for _ in range(ROUNDS):
            for name in opened:
                began = time.perf_counter()
                opened[name].run(images)
                seconds[name].append(time.perf_counter() - began)
        return {name: BATCH / min(taken) for name, taken in seconds.items()}
    finally:
        for backend in opened.values():
            backend.close()


def _select_by_rates(rates: dict[str, float]) -> Selection:
    """Select the default, unless another is `MIN_SPEEDUP` times as fast."""
    min_rate = MIN_SPEEDUP * rates.get(DEFAULT, 0.0)
    faster = [name for name, rate in rates.items() if rate >= min_rate and name != DEFAULT]
    order = sorted(faster, key=lambda name: -rates[name])
    return Selection([*order, *(name for name in CPU_BACKENDS if name not in order)], rates)


def _get_version(name: str) -> str:
    """Return the version of an installed library, also where its distribution is the one for GPUs."""
    for distribution in (name, f"{name}-gpu"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return "unknown"


def _describe_cpu() -> str:
    """Return the CPU's name and instruction sets."""
    fields = read_cpuinfo()
    names = ("model name", "flags", "Features")
    return "; ".join(fields[name] for name in names if name in fields) or platform.processor()
