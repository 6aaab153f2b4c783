"""Measures where the time goes: each stage of a picture's way, one after the other and overlapped.

The engine itself is observed and nothing stands in for it: a stage that is slow there is slow here.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from fmengine.backend.protocol import DeviceBackend
from fmengine.engine import Engine
from fmengine.image.decode import decode
from fmengine.pipeline.stages import STAGES

from .timing import Figure, Summary, estimate_median, summarise

AGREE = 0.05  # the stages add up to the whole within this share of it, as far as the interval can tell


@dataclass(frozen=True)
class Serial:
    """One picture at a time, from its file to its answer, in milliseconds.

    Attributes:
        stages: by name. On a GPU `infer` holds host-to-device, preprocessing, network and device-to-host, which
            `device` splits by the stream's events.
        device: those parts, on a GPU.
        whole: `Engine.predict` without an observer, called in turn with the stages.
        share: of the whole's mean that the stages' means add up to, in each round.
    """

    stages: dict[str, Summary]
    device: dict[str, Summary]
    whole: Summary
    share: Figure

    @property
    def agrees(self) -> bool:
        return self.share.low <= 1 + AGREE and self.share.high >= 1 - AGREE


@dataclass(frozen=True)
class Overlapped:
    """`Engine.predict_many` over the pictures, once a round.

    Attributes:
        pictures: that were answered.
        wall: seconds of the whole.
        busy: seconds of all threads together, by stage.
        hidden: share of `busy` during which some thread was in `infer`, by stage; a stage without work has none.
    """

    pictures: int
    wall: Figure
    busy: dict[str, Figure]
    hidden: dict[str, Figure]


def measure_serial(
    engine: Engine, paths: Sequence[str], seconds: float, min_calls: int = 100, rounds: int = 5
) -> Serial:
    """Time the stages of one picture after another, and `predict` on the same picture in turn."""
    taken: dict[str, list[float]] = {stage: [] for stage in STAGES}
    wholes: list[float] = []
    device: dict[str, list[float]] = {}
    for path in paths[:10]:
        engine.predict(path)
    end = time.perf_counter() + seconds
    while len(wholes) < max(min_calls, rounds) or time.perf_counter() < end:
        path = paths[len(wholes) % len(paths)]
        began = time.perf_counter()
        engine.predict(path)
        wholes.append(1e3 * (time.perf_counter() - began))
        with _record_spans(engine) as spans:
            engine.predict(path)
        for stage in STAGES:
            taken[stage].append(1e3 * sum(until - since for since, until in spans[stage]))
        for part, milliseconds in _time_on_device(engine, path).items():
            device.setdefault(part, []).append(milliseconds)
    in_rounds = partial(np.array_split, indices_or_sections=rounds)
    stages = {stage: in_rounds(values) for stage, values in taken.items()}
    whole = in_rounds(wholes)
    shares = [sum(stage[i].mean() for stage in stages.values()) / whole[i].mean() for i in range(rounds)]
    return Serial(
        {stage: summarise(values) for stage, values in stages.items()},
        {part: summarise(in_rounds(values)) for part, values in device.items()},
        summarise(whole),
        estimate_median(shares),
    )


def _time_on_device(engine: Engine, path: str) -> dict[str, float]:
    """Time the parts of a GPU's work on one picture, in milliseconds by name; none without a GPU."""
    if not isinstance(engine.backend, DeviceBackend):
        return {}
    _, stages = engine.backend.time_stages([decode(path, engine.spec.color, engine.limits)])
    return {
        "host-to-device": stages.upload,
        "preprocess": stages.preprocess,
        "network": stages.network,
        "device-to-host": stages.download,
    }


def measure_overlapped(engine: Engine, paths: Sequence[str], rounds: int = 5) -> Overlapped:
    """Measure which stages threads are in, and when, while `predict_many` runs."""
    walls: list[float] = []
    busy: dict[str, list[float]] = {stage: [] for stage in STAGES}
    hidden: dict[str, list[float]] = {stage: [] for stage in STAGES if stage != "infer"}
    for _ in range(rounds):
        with _record_spans(engine) as spans:
            began = time.perf_counter()
            pictures = sum(1 for _ in engine.predict_many(paths))
            walls.append(time.perf_counter() - began)
        inferring = _merge_spans(spans["infer"])
        for stage in STAGES:
            busy[stage].append(sum(until - since for since, until in spans[stage]))
            if stage in hidden and busy[stage][-1] > 0:  # a GPU preprocesses within infer
                covered = sum(_measure_covered(span, inferring) for span in spans[stage])
                hidden[stage].append(covered / busy[stage][-1])
    return Overlapped(
        pictures,
        estimate_median(walls),
        {stage: estimate_median(seconds) for stage, seconds in busy.items()},
        {stage: estimate_median(shares) for stage, shares in hidden.items() if shares},
    )


@contextmanager
def _record_spans(engine: Engine) -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Record from when to when each of the engine's stages runs."""
    spans: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    with engine.observe(lambda stage, begin, end: spans[stage].append((begin, end))):
        yield spans


def _merge_spans(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Merge spans that touch; return the same time in order."""
    merged: list[tuple[float, float]] = []
    for since, until in sorted(spans):
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(until, merged[-1][1]))
        else:
            merged.append((since, until))
    return merged


def _measure_covered(span: tuple[float, float], others: list[tuple[float, float]]) -> float:
    """Measure the seconds of a span that lie within others."""
    return sum(max(0.0, min(span[1], until) - max(span[0], since)) for since, until in others)
