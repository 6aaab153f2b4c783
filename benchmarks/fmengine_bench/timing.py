"""Times calls in turn, and gives percentiles and medians with their intervals.

All is measured in rounds. Timings of one moment are alike; what differs from round to round, as clocks and other
work on the machine do, is what the next run will see too. So an interval is a bootstrap over whole rounds.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fmengine.model.spec import ModelSpec
from fmengine.types import InputBatch

ROUNDS = 15
TURN, REST = 0.15, 0.05  # seconds of a contender's turn, and of the rest before it
RESAMPLES = 2000
PERCENTILES = (50, 90, 95, 99)

Call = Callable[[], Any]
Interval = tuple[float, float]
Timings = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """The median over rounds, with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Summary:
    """Milliseconds of one thing, over `count` timings in some rounds.

    Attributes:
        intervals: 95 % of the mean and of each percentile, by their names here: where they would lie in rounds
            drawn anew from these.
    """

    count: int
    rounds: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    intervals: dict[str, Interval]

    @property
    def median(self) -> Figure:
        return Figure(self.p50, *self.intervals["p50"], self.rounds)


def summarise(rounds: Sequence[Timings]) -> Summary:
    """Summarise the milliseconds of each round."""
    values = np.concatenate(rounds)
    typical = _compute_typical(values)
    drawn = np.sort(np.random.default_rng(0).integers(0, len(rounds), (RESAMPLES, len(rounds))), axis=1)
    # The same rounds are often drawn again; their percentiles are computed once.
    distinct, often = np.unique(drawn, axis=0, return_counts=True)
    resampled = [list(_compute_typical(np.concatenate([rounds[i] for i in row])).values()) for row in distinct]
    ends = np.percentile(np.repeat(resampled, often, axis=0), [2.5, 97.5], axis=0)
    intervals = {name: (low, high) for name, low, high in zip(typical, *ends.tolist(), strict=True)}
    return Summary(
        len(values), len(rounds), min=float(values.min()), max=float(values.max()), **typical, intervals=intervals
    )


def _compute_typical(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Compute the mean and the percentiles, by their names in `Summary`."""
    percentiles = np.percentile(values, PERCENTILES).tolist()
    return {"mean": float(values.mean())} | {
        f"p{p}": value for p, value in zip(PERCENTILES, percentiles, strict=True)
    }


def estimate_median(values: Sequence[float]) -> Figure:
    """Estimate the median, and its interval in 95 % of rounds drawn anew from these (percentile bootstrap)."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5]).tolist()
    return Figure(statistics.median(values), low, high, len(values))


def time_calls(
    calls: Mapping[str, Call], rounds: int, turn: float, min_calls: int
) -> dict[str, list[list[float]]]:
    """Time calls in milliseconds, by name and round.

    Each has its turn in every round, so that noise falls on all alike, and rests before it, for libraries' threads
    go on spinning a while.

    Args:
        calls: by name.
        rounds: of turns.
        turn: seconds of a turn, at minimum.
        min_calls: calls of a turn, at minimum, after a tenth of them to warm up.
    """
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(REST)
            taken[name].append(_take_turn(call, turn, min_calls))
    return taken


def _take_turn(call: Call, turn: float, min_calls: int) -> list[float]:
    for _ in range(max(1, min_calls // 10)):
        call()
    taken: list[float] = []
    end = time.perf_counter() + turn
    while len(taken) < min_calls or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def time_in_turn(
    contenders: Mapping[str, Call], rounds: int = ROUNDS, turn: float = TURN
) -> dict[str, list[float]]:
    """Time a call of each contender in milliseconds, in turn: the mean of each round, for throughput."""
    taken = time_calls(contenders, rounds, turn, min_calls=3)
    return {name: [statistics.fmean(each) for each in taken[name]] for name in contenders}


def random_inputs(spec: ModelSpec, batch: int) -> InputBatch:
    """Draw a batch of a network's inputs, uint8 `[N, C, H, W]`; see `random_pixels`."""
    return InputBatch(random_pixels(*spec.input_shape(batch)))


def random_pixels(*shape: int) -> npt.NDArray[np.uint8]:
    """Draw seeded uint8 values to time a network on.

    Zeros would flatter it: a GPU whose bits do not change draws less power, and clocks higher.
    """
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
