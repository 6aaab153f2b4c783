"""Figures from many timings: percentiles, medians with intervals, and contenders that take turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDS = 15
TURN, REST = 0.15, 0.05  # seconds of a contender's turn, and of the rest before it
RESAMPLES = 2000

Call = Callable[[], Any]


@dataclass(frozen=True)
class Summary:
    """Milliseconds of one thing, over `count` timings."""

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Figure:
    """The median over rounds, with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    rounds: int


def summary(milliseconds: Sequence[float]) -> Summary:
    values = np.asarray(milliseconds)
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
    return Summary(len(values), float(values.min()), float(values.mean()), p50, p90, p95, p99, float(values.max()))


def figure(values: Sequence[float]) -> Figure:
    """The median, and where it would lie in 95 % of rounds drawn anew from these (percentile bootstrap)."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5]).tolist()
    return Figure(statistics.median(values), low, high, len(values))


def time_in_turn(contenders: dict[str, Call], rounds: int = ROUNDS, turn: float = TURN) -> dict[str, list[float]]:
    """Milliseconds of a call of each contender, one figure a round.

    Every contender has its turn in every round, so that noise falls on all alike, and rests in between, for
    libraries' threads go on spinning a while.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(REST)
            call()
            began, calls = time.perf_counter(), 0
            while (seconds := time.perf_counter() - began) < turn or calls < 3:
                call()
                calls += 1
            taken[name].append(1e3 * seconds / calls)
    return taken


def latencies(call: Callable[[int], Any], seconds: float, least: int) -> list[float]:
    """Milliseconds of each call, for a minimum of time and of calls, after a tenth of both to warm up."""
    for number in range(least // 10):
        call(number)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end:
        began = time.perf_counter()
        call(len(taken))
        taken.append(1e3 * (time.perf_counter() - began))
    return taken
