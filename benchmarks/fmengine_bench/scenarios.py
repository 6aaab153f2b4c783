"""The scenarios that MLPerf names: single stream, offline, server.

V. Janapa Reddi et al., MLPerf Inference Benchmark, ISCA 2020.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from fmengine.engine import Engine
from fmengine.errors import BusyError, DeadlineError

from .timing import Figure, Summary, figure, latencies, summary

BATCHES = (1, 4, 16, 64)
LOWEST = 100.0  # pictures a second: under it, the pictures that a percentile needs would take minutes
SHARE = 99  # percent of a server's answers that must meet the deadline
PATIENCE = 1.0  # seconds after the last arrival in which answers still count


@dataclass(frozen=True)
class Server:
    """Poisson arrivals, each a path; latency counts from when a picture was due, whether or not it was sent then.

    Attributes:
        deadline: milliseconds.
        rate: the highest rate found, in pictures a second, at which `SHARE` percent meet the deadline; 0 if
            it is under `LOWEST`.
        tried: for each rate tried, the latency's percentile in milliseconds, infinite where some were refused.
    """

    deadline: float
    rate: float
    tried: dict[float, float]


def single_stream(engine: Engine, paths: Sequence[str], seconds: float, least: int) -> dict[str, Summary]:
    """Latency of one picture after another: from its file, from decoded pixels, and of the network alone.

    And of a face cut out of a camera's frame, in BGR as OpenCV gives it.
    """
    decoded = [engine._decode(engine._read(path), "rgb") for path in paths[:256]]
    one = np.stack([engine.prepare(decoded[0])])
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    calls = {
        "from a file": lambda i: engine.predict(paths[i % len(paths)]),
        "from an array": lambda i: engine.predict(decoded[i % len(decoded)]),
        "from an array of the network's size": lambda i: engine.predict(
            one[0, 0] if len(one[0]) == 1 else decoded[0]
        ),
        "120 pixels of a camera's frame": lambda i: engine.predict(frame[100:220, 200:320], channels="bgr"),
        "240 pixels of a camera's frame": lambda i: engine.predict(frame[100:340, 200:440], channels="bgr"),
        "the network alone": lambda i: engine.backend.run(one),
    }
    return {name: summary(latencies(call, seconds, least)) for name, call in calls.items()}


def offline(engine: Engine, paths: Sequence[str], seconds: float, rounds: int = 5) -> dict[int, Figure]:
    """Pictures a second through `predict_many`, from files, by batch size; batch sizes take turns."""
    batches = [batch for batch in BATCHES if batch <= engine.max_batch]
    rates: dict[int, list[float]] = {batch: [] for batch in batches}
    few = max(64, len(paths) // 10)
    sum(1 for _ in engine.predict_many(paths[:few]))
    for _ in range(rounds):
        for batch in batches:
            done, began = 0, time.perf_counter()
            while done == 0 or time.perf_counter() - began < seconds / rounds:
                done += sum(1 for _ in engine.predict_many(paths, batch_size=batch))
            rates[batch].append(done / (time.perf_counter() - began))
    return {batch: figure(values) for batch, values in rates.items()}


def server(engine: Engine, paths: Sequence[str], deadline: float, seconds: float) -> Server:
    """Search the highest rate that meets the deadline: doubled until it fails, then the gap is halved five times.

    One stall of the machine is not the end: a rate that fails is tried twice more, and the median counts.
    """
    tried: dict[float, float] = {}

    def meets(rate: float) -> bool:
        late = [asyncio.run(_arrivals(engine, paths, rate, seconds))]
        if late[0] > deadline:
            late += [asyncio.run(_arrivals(engine, paths, rate, seconds)) for _ in "12"]
        tried[rate] = sorted(late)[len(late) // 2]
        return tried[rate] <= deadline

    if not meets(LOWEST):
        return Server(deadline, 0.0, tried)
    good, bad = LOWEST, 2 * LOWEST
    while meets(bad):
        good, bad = bad, bad * 2
    for _ in range(5):
        middle = round((good + bad) / 2, 1)
        good, bad = (middle, bad) if meets(middle) else (good, middle)
    return Server(deadline, good, tried)


async def _arrivals(engine: Engine, paths: Sequence[str], rate: float, seconds: float) -> float:
    """The percentile of the latency at a rate, in milliseconds."""
    count = max(200, int(rate * seconds))
    gaps = np.random.default_rng(0).exponential(1 / rate, count)
    due = time.perf_counter() + 0.05 + np.cumsum(gaps)

    async def ask(path: str, at: float) -> float:
        try:
            await engine.apredict(path, timeout=PATIENCE)
        except (BusyError, DeadlineError):
            return float("inf")
        return 1e3 * (time.perf_counter() - at)

    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[float]] = []
        for path, at in zip(islice(cycle(paths), count), due.tolist(), strict=True):
            if (early := at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            elif len(tasks) % 16 == 0:
                await asyncio.sleep(0)  # behind: let answers through
            tasks.append(group.create_task(ask(path, at)))
    return float(np.percentile([task.result() for task in tasks], SHARE, method="higher"))
