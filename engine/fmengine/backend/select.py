"""Which backend `auto` takes on a CPU where several are installed: the fastest on this machine, measured once.

The measurement takes a second, at the first `auto`, with the shipped model. Speed is not enough: before another
than the default one may answer for a model file, its answers are held against the default one's, with that very
file. What is found is remembered in the cache until the CPU, the cores or a library change.
"""

import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..check.compare import SAME, Agreement, compare
from ..check.gate import gate_images
from ..errors import BackendError, FmengineError
from ..model.file import ModelFile
from ..options import BackendOptions
from ..system.cache import Cache, CacheError
from ..system.cores import usable_cores
from ..types import InputBatch
from .registry import CPU_BACKENDS, Backend, open_backend, open_file

log = logging.getLogger(__name__)

DEFAULT = CPU_BACKENDS[0]
BATCH = 64
ROUNDS = 25  # in turn; the best of each counts, for other work on the machine only ever slows one down
# Times as fast as the default that another must be: the network is a third of a picture's way, and start counts.
WORTH = 1.3
TOGETHER = 32  # pictures at once where answers are compared


class DisagreementError(BackendError):
    """A backend does not answer as the default one does: `auto` must not take it for this model."""

    exit_code = 1


class Choice(NamedTuple):
    """The backends in the order to try them, and pictures a second of each that was measured."""

    order: Sequence[str]
    rates: dict[str, float]

    def reason(self, name: str) -> str:
        """Why a backend that works is not taken."""
        first = self.order[0]
        rates = (
            f"{self.rates[first]:,.0f} pictures a second through its network here, {name} {self.rates[name]:,.0f}"
        )
        more = f"; it would have to be {WORTH} times as fast" if first == DEFAULT else ""
        return f"works; {first} is taken: {rates}{more}"


def choose() -> Choice:
    """What is remembered of this machine, or else measured now."""
    key = machine()
    try:
        cache = Cache()
        if (known := cache.load("choice", key)) is not None:
            return _by_rates(json.loads(known))
        rates = measure()
        cache.store("choice", key, json.dumps(rates).encode())
    except CacheError as error:  # it will be measured again
        log.info("the fastest backend cannot be remembered: %s", error)
        rates = measure()
    return _by_rates(rates)


def check_answers(backend: Backend, model: ModelFile) -> None:
    """Hold a backend's answers for a model against the default one's, once for each model and machine.

    Where the default one does not run the model there is nothing to hold them against, and nothing else to take.

    Raises:
        DisagreementError: if they do not agree.
    """
    key = machine() | {"backend": backend.name, "model": model.spec.file_sha256}
    try:
        cache = Cache()
        if (known := cache.load("agreement", key)) is not None:
            found: Agreement | None = Agreement(*json.loads(known))
        elif (found := _compare_on(backend, model)) is not None:
            cache.store("agreement", key, json.dumps(astuple(found)).encode())
    except CacheError as error:
        log.info("whether backends agree cannot be remembered: %s", error)
        found = _compare_on(backend, model)
    if found is not None and not found.holds:
        raise DisagreementError(f"does not answer as {DEFAULT} does with {model.path.name}: {found}")


def _compare_on(backend: Backend, model: ModelFile) -> Agreement | None:
    """On the pictures that a GPU's engine must pass too; None where the default backend does not run the model."""
    try:
        default = open_file(DEFAULT, model, BackendOptions())
    except FmengineError as error:
        log.info("%s cannot be compared with %s: %s", backend.name, DEFAULT, error)
        return None
    try:
        images = gate_images(model.spec)
        parts = [InputBatch(images[start : start + TOGETHER]) for start in range(0, len(images), TOGETHER)]
        found, expected = (
            np.concatenate([each.run(part).probabilities for part in parts]) for each in (backend, default)
        )
        return compare(found, expected, SAME)
    except Exception as error:  # every library has its own
        raise DisagreementError(f"fails where its answers are compared with {DEFAULT}'s: {error}") from error
    finally:
        default.close()


def machine() -> dict[str, str]:
    """What a choice holds for."""
    versions = {name: _version(name) for name in CPU_BACKENDS}
    return {"fmengine": __version__, "cpu": _cpu(), "cores": str(usable_cores()), **versions}


def measure() -> dict[str, float]:
    """Pictures a second of each backend's network, in turn; one that fails is left out."""
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


def _by_rates(rates: dict[str, float]) -> Choice:
    """The default, unless another is worth it."""
    least = WORTH * rates.get(DEFAULT, 0.0)
    faster = [name for name, rate in rates.items() if rate >= least and name != DEFAULT]
    order = sorted(faster, key=lambda name: -rates[name])
    return Choice([*order, *(name for name in CPU_BACKENDS if name not in order)], rates)


def _version(name: str) -> str:
    for distribution in (name, f"{name}-gpu"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features")
    return "; ".join(dict.fromkeys(line.partition(":")[2].strip() for line in lines if line.startswith(told)))
