"""Many pictures in order, decoded ahead: what `Engine.predict_many` stands on where a GPU computes.

Threads decode the next batches while the GPU works on as many as it takes at once.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from .image.source import is_on_device
from .pipeline.coalesce import Answer
from .types import Failure, Prediction, Source

if TYPE_CHECKING:
    from .pipeline.coalesce import Item

Prepare = Callable[[Source], "Item | Failure"]

BATCHES_AHEAD = 2  # beyond those that the GPU works on: bounds the memory


def outcomes(
    sources: Iterator[Source],
    prepare: Prepare,
    answer: Answer,
    *,
    workers: int,
    lanes: int,
    size: int,
    in_flight: int | None = None,
) -> Iterator[list[Prediction | Failure]]:
    """What comes of each source, in order: batch by batch.

    Args:
        sources: may be endless; read only as far as needed.
        prepare: a source to a picture, or a `Failure`.
        answer: the network on a batch.
        workers: threads that prepare.
        lanes: batches that the GPU works on at once, a thread each.
        size: pictures of a batch.
        in_flight: pictures that are under way at most, `size` or more; None for some batches.
    """
    most = BATCHES_AHEAD + lanes if in_flight is None else in_flight // size
    decoding = ThreadPoolExecutor(workers, thread_name_prefix="fmengine-decode")
    answering = ThreadPoolExecutor(lanes, thread_name_prefix="fmengine-answer")
    try:
        batches: deque[Future[list[Prediction | Failure]]] = deque()
        while batch := list(islice(sources, size)):
            prepared = [(source, _prepared(source, prepare, decoding)) for source in batch]
            batches.append(answering.submit(_finish, prepared, answer))
            if len(batches) >= most:
                yield batches.popleft().result()
        while batches:
            yield batches.popleft().result()
    finally:
        for pool in (decoding, answering):  # what runs is waited for, what waits is dropped
            pool.shutdown(cancel_futures=True)


def _prepared(source: Source, prepare: Prepare, decoding: ThreadPoolExecutor) -> "Future[Item | Failure]":
    """A picture to come. What is on a GPU is taken over in this thread, which made it."""
    if not is_on_device(source):
        return decoding.submit(prepare, source)
    done: Future[Item | Failure] = Future()
    done.set_result(prepare(source))
    return done


def _finish(prepared: "list[tuple[Source, Future[Item | Failure]]]", answer: Answer) -> list[Prediction | Failure]:
    outcomes = [(source, future.result()) for source, future in prepared]
    good = [(source, outcome) for source, outcome in outcomes if not isinstance(outcome, Failure)]
    answers = iter(answer(good) if good else ())
    return [outcome if isinstance(outcome, Failure) else next(answers) for _, outcome in outcomes]
