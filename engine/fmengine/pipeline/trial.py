"""A trial of worker processes: one is started for real, answers a drawn picture, and is ended."""

import io
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import FmengineError, UnavailableError
from ..model.file import ModelFile
from ..options import EngineOptions, Limits
from ..system.memory import read_pss
from .batch import Task
from .chunk import Chunk
from .death import WorkerDiedError
from .worker_count import find_obstacle

if TYPE_CHECKING:
    from .worker_process import Worker
    from .worker_setup import Setup


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        works: whether the worker answered.
        problem: why not; empty if it works.
        first_seconds: until the first worker is ready, which the fork server's imports are a part of.
        next_seconds: until another one is.
        memory_bytes: that a worker takes which has answered; None where the system does not say.
    """

    works: bool
    problem: str = ""
    first_seconds: float = 0.0
    next_seconds: float = 0.0
    memory_bytes: int | None = None


def try_workers(backend: str, model: ModelFile, *, on_gpu: bool) -> Trial:
    """Start a worker as an engine with this model does, and have it answer.

    Args:
        backend: that runs the network, in the worker unless `on_gpu`.
        model: that is run.
        on_gpu: whether the backend is a GPU's, whose workers only decode.
    """
    if problem := find_obstacle():
        return Trial(False, problem)
    try:
        return _run_trial(_set_up(backend, model, on_gpu), network=not on_gpu)
    except (FmengineError, WorkerDiedError) as error:
        return Trial(False, str(error))


def _set_up(backend: str, model: ModelFile, on_gpu: bool) -> "Setup":
    from . import worker_setup  # needs Linux

    if on_gpu:
        return worker_setup.set_up_images(model.spec, Limits(), None, min_side=0)
    max_batch = EngineOptions().max_batch
    return worker_setup.set_up_answers(backend, model, Limits(), None, min_side=0, max_batch=max_batch)


def _run_trial(setup: "Setup", network: bool) -> Trial:
    from .workers import Workers

    with closing(Workers(setup, 1)) as workers:
        began = time.perf_counter()
        worker = workers.wait_for_one()
        first_seconds = time.perf_counter() - began
        _have_answered(worker, network)
        memory = read_pss(worker.pid)
        workers.end(worker)
        began = time.perf_counter()
        workers.give_back(workers.wait_for_one())
        return Trial(True, "", first_seconds, time.perf_counter() - began, memory)


def _have_answered(worker: "Worker", network: bool) -> None:
    """Have a worker answer a drawn picture. Raises UnavailableError if it does not."""
    picture = draw_picture()
    worker.submit(Chunk.of([Task(picture, picture)]), network=network, observe=False)
    for _, _, message in worker.wait(None).failures:
        raise UnavailableError(f"it cannot read a picture that was drawn for it: {message}")


def draw_picture() -> bytes:
    """Draw a grey ramp, as a JPEG file."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "JPEG")
    return file.getvalue()
