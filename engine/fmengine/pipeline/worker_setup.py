"""What workers are to do, and what each may take: set up by the engine, carried out in `worker.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..model.file import ModelFile
from ..model.spec import ModelSpec
from ..options import Isolation, Limits
from .arena import Layout

CAPACITY = 64  # pictures a chunk, unless the network's batch is smaller
PIXEL_BYTES = 16 * 1024 * 1024  # of decoded images a chunk
HANG_SECONDS = 30.0  # that a picture may take without `Isolation`: six times what `Limits` lets any take
MIN_WAIT, MAX_WAIT = 0.01, 1.0  # seconds between looks at a worker's pulse


Register = Callable[[npt.NDArray[np.uint8]], Callable[[], None]]


class Setup(NamedTuple):
    """What workers do.

    Attributes:
        service: `module:Class` of a `worker.ChunkService`.
        settings: its keyword arguments, as JSON, but for those that all have.
        layout: of a worker's arena.
        limits: of what a picture may cost.
        isolation: limits of the process; None for none.
        min_side: rows and columns that a JPEG keeps at least where it is decoded smaller.
        model: bytes of a model file; empty for none.
        register: is called with the memory of each worker's arena, and returns what is called before that goes.
    """

    service: str
    settings: dict[str, Any]
    layout: Layout
    limits: Limits
    isolation: Isolation | None
    min_side: int = 0
    model: bytes = b""
    register: Register | None = None

    @property
    def seconds(self) -> float:
        """Return how long a picture may take."""
        return self.isolation.seconds if self.isolation else HANG_SECONDS

    @property
    def look_every(self) -> float:
        """Return the seconds between looks at a worker's pulse."""
        return min(MAX_WAIT, max(MIN_WAIT, self.seconds / 8))


def set_up_answers(
    backend: str, model: ModelFile, limits: Limits, isolation: Isolation | None, *, min_side: int, max_batch: int
) -> Setup:
    """Set up workers that read, decode, preprocess, and run the network on one core each."""
    layout = Layout(min(CAPACITY, max_batch), model.spec)
    settings = {"backend": backend, "model": str(model.path)}
    return Setup(f"{__package__}.worker:AnswerService", settings, layout, limits, isolation, min_side, model.data)


def set_up_images(
    spec: ModelSpec,
    limits: Limits,
    isolation: Isolation | None,
    *,
    min_side: int,
    register: Register | None = None,
) -> Setup:
    """Set up workers that read and decode, for a GPU that does the rest."""
    shape = {"height": spec.height, "width": spec.width, "color": spec.color, "fit": spec.fit}
    make = f"{__package__}.worker:make_holdable"
    setup = set_up_shrinking(
        spec.color, limits, isolation, make=make, arguments={"spec": shape}, min_side=min_side
    )
    return setup._replace(register=register)


def set_up_shrinking(
    color: str,
    limits: Limits,
    isolation: Isolation | None,
    *,
    make: str,
    arguments: dict[str, Any],
    min_side: int = 0,
) -> Setup:
    """Set up workers that read and decode, and make each image smaller by a function `module:function` of ours."""
    settings = {"color": color, "pixel_bytes": PIXEL_BYTES, "make": make, "arguments": arguments}
    layout = Layout(CAPACITY, pixel_bytes=PIXEL_BYTES)
    return Setup(f"{__package__}.worker:ImageService", settings, layout, limits, isolation, min_side)
