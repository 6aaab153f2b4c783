"""Measures the scenarios that MLPerf defines: single stream, offline, server.

V. Janapa Reddi et al., MLPerf Inference Benchmark, ISCA 2020.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt

from fmengine.check.gate import draw_gate_pictures
from fmengine.engine import Engine
from fmengine.errors import BusyError, DeadlineError
from fmengine.image.decode import decode

from .processes import Usage, Watch
from .timing import Call, Figure, Summary, estimate_median, random_inputs, random_pixels, summarise, time_calls

BATCHES = (1, 4, 16, 64)
LOWEST = 100.0  # pictures a second: under it, the pictures that a percentile needs would take minutes
SHARE = 99  # percent of a server's answers that must meet the deadline
NETWORK = "the network alone"  # among the latencies of single stream
PATIENCE = 1.0  # seconds after the last arrival in which answers still count


@dataclass(frozen=True)
class Server:
    """Poisson arrivals, each a path; latency counts from when a picture was due, whether or not it was sent then.

    Attributes:
        deadline: milliseconds.
        rate: the highest rate, in pictures a second, at which `SHARE` percent meet the deadline, searched anew in
            every round; 0 where it is under `LOWEST`.
        tried: every rate that was tried, and the latency's percentile at it in milliseconds, infinite where some
            were refused.
    """

    deadline: float
    rate: Figure
    tried: list[tuple[float, float]]


def measure_single_stream(
    engine: Engine, paths: Sequence[str], seconds: float, min_calls: int, rounds: int = 5
) -> dict[str, Summary]:
    """Measure the latency of one picture after another: from its file, from decoded pixels, of the network alone.

    Also that of a camera's frame of 640×480, in BGR as OpenCV gives it: of a part of it, and of the face that is
    found in it.
    """
    decoded = [decode(path, engine.spec.color, engine.limits) for path in paths[:256]]
    resized = engine.prepare(decoded[0])
    array = resized[0] if len(resized) == 1 else decoded[0]
    images = random_inputs(engine.spec, 1)
    frame = random_pixels(480, 640, 3)
    seen = draw_frame()
    file, picture = cycle(paths), cycle(decoded)
    calls: dict[str, Call] = {
        "from a file": lambda: engine.predict(next(file)),
        "from an array": lambda: engine.predict(next(picture)),
        "from an array of the network's size": lambda: engine.predict(array),
        "120 pixels of a camera's frame": lambda: engine.predict(frame[100:220, 200:320], channels="bgr"),
        "240 pixels of a camera's frame": lambda: engine.predict(frame[100:340, 200:440], channels="bgr"),
        "a face found in a camera's frame": lambda: engine.find_faces(seen, channels="bgr"),
        NETWORK: lambda: engine.backend.run(images),
    }
    taken = time_calls(calls, rounds, seconds / rounds, -(-min_calls // rounds))
    return {name: summarise(each) for name, each in taken.items()}


def draw_frame() -> npt.NDArray[np.uint8]:
    """Draw a camera's frame with one face before noise, uint8 `[480, 640, 3]`, BGR."""
    frame: npt.NDArray[np.uint8] = random_pixels(480, 640, 3) // 4 + 96
    face = draw_gate_pictures()[-1]
    height, width = face.shape[:2]
    frame[100 : 100 + height, 240 : 240 + width] = face[..., ::-1]
    return frame


def measure_offline(
    engine: Engine, paths: Sequence[str], seconds: float, rounds: int = 5
) -> tuple[dict[int, Figure], Usage | None]:
    """Measure pictures a second through `predict_many`, from files, by batch size; batch sizes take turns.

    Returns:
        The rates, and what processes take with the largest batch, where the system says that.
    """
    watch = Watch(engine.list_processes)
    batches = [batch for batch in BATCHES if batch <= engine.max_batch]
    rates: dict[int, list[float]] = {batch: [] for batch in batches}
    few = max(64, len(paths) // 10)
    sum(1 for _ in engine.predict_many(paths[:few]))
    for _ in range(rounds):
        for batch in batches:
            with watch.watch() if batch == batches[-1] else nullcontext():
                done, began = 0, time.perf_counter()
                while done == 0 or time.perf_counter() - began < seconds / rounds:
                    done += sum(1 for _ in engine.predict_many(paths, batch_size=batch))
                rates[batch].append(done / (time.perf_counter() - began))
    return {batch: estimate_median(values) for batch, values in rates.items()}, watch.summarise(batches[-1])


def measure_server(
    engine: Engine, paths: Sequence[str], deadline: float, seconds: float, rounds: int = 5
) -> Server:
    """Search the highest rate that meets the deadline, once a round, each trial with other arrivals.

    A search begins where the last one ended, so that all but the first are short. A rate that fails is tried once
    more: a stall of the machine is no limit of the engine.

    Args:
        engine: whose queue takes what arrives within a deadline.
        paths: of the pictures, which come again and again.
        deadline: in milliseconds.
        seconds: of a trial.
        rounds: of the search.
    """
    tried: list[tuple[float, float]] = []

    def trial(rate: float) -> float:
        late = asyncio.run(_run_arrivals(engine, paths, rate, seconds, seed=len(tried)))
        tried.append((rate, late))
        return late

    def meets(rate: float) -> bool:
        return trial(rate) <= deadline or trial(rate) <= deadline

    rates: list[float] = []
    for _ in range(rounds):
        rates.append(_search(meets, start=max(LOWEST, rates[-1] if rates else 0.0)))
    return Server(deadline, estimate_median(rates), tried)


def _search(meets: Callable[[float], bool], start: float) -> float:
    """Search the highest rate that meets the deadline, to a thirtieth of it; 0 where `LOWEST` does not."""
    good = bad = start
    while not meets(good):
        if good <= LOWEST:
            return 0.0
        good, bad = max(LOWEST, good / 2), good
    if bad == good:  # met at once
        while meets(bad := 2 * good):
            good = bad
    for _ in range(5):
        middle = round((good + bad) / 2, 1)
        good, bad = (middle, bad) if meets(middle) else (good, middle)
    return good


async def _run_arrivals(engine: Engine, paths: Sequence[str], rate: float, seconds: float, seed: int) -> float:
    """Send pictures at a rate; return the percentile of the latency in milliseconds."""
    count = max(200, int(rate * seconds))
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    due = time.perf_counter() + 0.05 + np.cumsum(gaps)

    async def predict(path: str, at: float) -> float:
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
            tasks.append(group.create_task(predict(path, at)))
    return float(np.percentile([task.result() for task in tasks], SHARE, method="higher"))
