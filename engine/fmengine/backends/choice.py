"""Which backend `auto` takes on a CPU where several are installed: the fastest on this machine, measured once.

The measurement takes a second, at the first `auto`, with the shipped model; what it found is remembered in the
cache until the CPU, the cores or a library change. Answers must agree: a label never changes for speed.
"""

import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..cores import usable_cores
from ..errors import FmengineError
from ..gpu.cache import Cache, CacheError
from . import CPU_BACKENDS, Backend, Options, open_backend

log = logging.getLogger(__name__)

DEFAULT = CPU_BACKENDS[0]
BATCH = 64
ROUNDS = 25  # in turn; the best of each counts, for other work on the machine only ever slows one down
# Times as fast as the default that another must be: the network is a third of a picture's way, and start counts.
WORTH = 1.3
AGREE = 0.01  # probabilities: a tie of INT8's rounding moved one of 64 pictures of noise by 0.005


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


def machine() -> dict[str, str]:
    """What a choice holds for."""
    versions = {name: _version(name) for name in CPU_BACKENDS}
    return {"fmengine": __version__, "cpu": _cpu(), "cores": str(usable_cores()), **versions}


def measure() -> dict[str, float]:
    """Pictures a second of each backend's network, in turn; one that fails, or answers otherwise, is left out."""
    opened: dict[str, Backend] = {}
    try:
        for name in CPU_BACKENDS:
            try:
                opened[name], file, _ = open_backend(name, None, Options(max_batch=BATCH))
            except FmengineError as error:
                log.info("%s is not measured: %s", name, error)
        if not opened:
            return {}
        images = np.random.default_rng(7).integers(0, 256, file.spec.input_shape(BATCH), np.uint8)
        answers = {name: backend.run(images).probabilities for name, backend in opened.items()}
        expected = next(iter(answers.values()))
        agreeing = [name for name, found in answers.items() if _agree(found, expected)]
        seconds: dict[str, list[float]] = {name: [] for name in agreeing}
        for _ in range(ROUNDS):
            for name in agreeing:
                began = time.perf_counter()
                opened[name].run(images)
                seconds[name].append(time.perf_counter() - began)
        return {name: BATCH / min(taken) for name, taken in seconds.items()}
    finally:
        for backend in opened.values():
            backend.close()


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    return bool(same and np.abs(found - expected).max() <= AGREE)


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
