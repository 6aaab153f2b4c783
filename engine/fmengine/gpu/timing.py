"""Time a batch's stages on the GPU, by events of its stream."""

from itertools import pairwise
from typing import Any

from ..backend.protocol import StageTimes


class StageTimer:
    """Times one batch, with an event for its start and one for the end of each stage."""

    def __init__(self, cuda: Any) -> None:
        self._events = {name: cuda.Event() for name in ("start", *StageTimes._fields)}

    def record(self, event: str, stream: Any) -> None:
        """Record an event: `start`, or the end of the stage of that name."""
        self._events[event].record(stream)

    def elapsed(self) -> StageTimes:
        """Return the times, once, after the batch is collected; call it within the context."""
        events = list(self._events.values())
        self._events = {}  # destroyed here, where the context is current
        events[-1].synchronize()
        return StageTimes(*(later.time_since(earlier) for earlier, later in pairwise(events)))


def record_nothing(event: str, stream: Any) -> None:
    """Time nothing."""
