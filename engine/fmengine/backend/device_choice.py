"""Decide whether `auto` takes a GPU that works: only where it is faster than the CPU for what is asked.

One picture and many are two questions: a GPU may answer for thousands a second and take longer for a single one.
Both are measured with the very model, from decoded faces to answers, at the first `auto` (a second or two), and
kept in the cache until the machine, the GPU, its driver, a library or the model changes.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np

from ..image.preprocess import preprocess_batch
from ..model.file import ModelFile
from ..options import Hint
from ..system.cache import Cache, CacheError
from ..system.cores import usable_cores
from ..types import DecodedImage
from .protocol import Backend, DeviceBackend
from .select import describe_machine

log = logging.getLogger(__name__)

SIDE = 48  # pixels of the faces to measure with
BATCH = 64  # of them at once, or as many as the backend was opened for
SECONDS = 0.3  # that each measurement takes
MIN_CALLS = 10

Run = Callable[[Sequence[DecodedImage]], object]
OpenCpu = Callable[[int], tuple[Backend, ModelFile]]  # with so many batches in flight


class Speed(NamedTuple):
    """How fast a backend is on this machine, from decoded faces to answers.

    Attributes:
        seconds: that it takes for one alone.
        rate: pictures a second of large batches.
    """

    seconds: float
    rate: float


class Choice(NamedTuple):
    """A GPU and the CPU, measured.

    Attributes:
        gpu: name of its backend.
        cpu: name of the other.
        of_gpu: its speed.
        of_cpu: the other's.
    """

    gpu: str
    cpu: str
    of_gpu: Speed
    of_cpu: Speed

    def choose(self, hint: Hint) -> str:
        """Return the name of the faster one."""
        if hint == "latency":
            return self.gpu if self.of_gpu.seconds <= self.of_cpu.seconds else self.cpu
        return self.gpu if self.of_gpu.rate >= self.of_cpu.rate else self.cpu

    def explain(self, hint: Hint) -> str:
        """Explain why the slower one is not taken although it works, and what the other hint would take."""
        taken = self.choose(hint)
        (first, speed), (second, slower) = ((self.gpu, self.of_gpu), (self.cpu, self.of_cpu))
        if taken == self.cpu:
            (first, speed), (second, slower) = ((second, slower), (first, speed))
        one = f"one picture takes it {1e6 * speed.seconds:,.0f} µs, {second} {1e6 * slower.seconds:,.0f}"
        many = f"of many it answers {speed.rate:,.0f} a second, {second} {slower.rate:,.0f}"
        order = (one, many) if hint == "latency" else (many, one)
        other: Hint = "throughput" if hint == "latency" else "latency"
        more = "" if self.choose(other) == taken else f"; hint {other!r} takes {self.choose(other)}"
        return f"works; {first} is taken: {'; '.join(order)}{more}"


def compare_with_cpu(backend: DeviceBackend, model: ModelFile, batch: int, open_cpu: OpenCpu) -> Choice:
    """Compare a GPU's backend with the CPU's, by speeds that are kept for this machine, or else measured now.

    Args:
        backend: on the GPU.
        model: that it runs.
        batch: pictures of its largest batch.
        open_cpu: opens the backend that the CPU would answer with, for so many batches at once.

    Raises:
        FmengineError: if nothing works on the CPU, or the GPU fails.
    """
    key = describe_machine() | backend.describe() | {"model": model.spec.file_sha256, "batch": str(batch)}
    try:
        cache = Cache()
        if (cached := cache.load("speeds", key)) is not None:
            cpu, of_gpu, of_cpu = json.loads(cached)
            return Choice(backend.name, cpu, Speed(*of_gpu), Speed(*of_cpu))
        choice = measure_choice(backend, batch, open_cpu)
        cache.store("speeds", key, json.dumps([choice.cpu, choice.of_gpu, choice.of_cpu]).encode())
    except CacheError as error:  # it will be measured again
        log.info("whether the GPU is faster cannot be remembered: %s", error)
        choice = measure_choice(backend, batch, open_cpu)
    return choice


def measure_choice(backend: DeviceBackend, batch: int, open_cpu: OpenCpu) -> Choice:
    """Measure a GPU's backend and the CPU's: one face alone, and batches in as many threads as work at once."""
    faces = np.random.default_rng(7).integers(0, 256, (min(batch, BATCH), SIDE, SIDE), np.uint8)
    many = [DecodedImage(face) for face in faces]
    of_gpu = Speed(
        measure_seconds(partial(backend.run_pictures, many[:1])),
        _measure_rate(backend.run_pictures, many, backend.streams),
    )
    cores = usable_cores()
    found = []
    for streams in (1, cores):
        cpu, file = open_cpu(streams)
        try:

            def run(images: Sequence[DecodedImage], cpu: Backend = cpu, file: ModelFile = file) -> object:
                return cpu.run(preprocess_batch(images, file.spec.input))

            one = partial(run, many[:1])
            found.append(measure_seconds(one) if streams == 1 else _measure_rate(run, many, cores))
        finally:
            cpu.close()
    return Choice(backend.name, cpu.name, of_gpu, Speed(*found))


def measure_seconds(call: Callable[[], object]) -> float:
    """Return the median of the seconds that a call takes, once it is warm."""
    for _ in range(MIN_CALLS):
        call()
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(taken) < MIN_CALLS:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return median(taken)


def _measure_rate(run: Run, images: Sequence[DecodedImage], threads: int) -> float:
    """Return the images a second that several threads get answers for, once they are warm."""

    def work(seconds: float) -> float:
        begin = time.perf_counter()
        calls = 0
        while (elapsed := time.perf_counter() - begin) < seconds or not calls:
            run(images)
            calls += 1
        return calls * len(images) / elapsed

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [SECONDS / 10] * threads))
        return sum(pool.map(work, [SECONDS] * threads))
