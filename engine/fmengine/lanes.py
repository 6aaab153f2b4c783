"""Many pictures in order, over several threads: what `Engine.predict_many` stands on where the CPU computes.

A lane is a thread that takes some pictures, decodes them, and runs the network on what it has when its batch is
full or nothing waits. Decoding in one lane overlaps the network in another, no picture is handed from
thread to thread, and near the end the lanes share what is left.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from .types import Failure, Prediction, Source

if TYPE_CHECKING:
    from .pipeline.coalesce import Item

Prepare = Callable[[list[Source]], "list[Item | Failure]"]
Answer = Callable[[list[Source], "list[Item]"], Iterable[Prediction | Failure]]

WINDOW = 2  # batches a lane that are under way at most, unless told otherwise: bounds the memory
HANDFUL = 16  # pictures that a lane takes at once: of fewer, not many are of one size


class Place:
    """A picture's place in the order. `outcome` is None until it is known; an exception is for whoever waits."""

    __slots__ = ("outcome", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.outcome: Prediction | Failure | BaseException | None = None


class Lanes:
    """Threads that turn sources into outcomes.

    Args:
        prepare: some sources to the network's inputs, or a `Failure` in the place of one.
        answer: the network on a batch of such inputs.
        count: threads.
        size: pictures of the largest batch.
        in_flight: pictures that are under way at most, `size` or more; None for `WINDOW` batches a lane.
    """

    def __init__(
        self, prepare: Prepare, answer: Answer, *, count: int, size: int, in_flight: int | None = None
    ) -> None:
        self._prepare, self._answer, self._size = prepare, answer, size
        self._most = in_flight or WINDOW * size * count
        self._waiting: SimpleQueue[Place | None] = SimpleQueue()  # None: stop
        self._finished = threading.Event()  # set when some batch is
        self._stopped = False
        self._threads = [threading.Thread(target=self._run, name=f"fmengine-lane-{i}") for i in range(count)]
        for thread in self._threads:
            thread.start()

    def outcomes(self, sources: Iterable[Source]) -> Iterator[list[Prediction | Failure]]:
        """What comes of each source, in order and as soon as it is known: in lists of those that are."""
        places: deque[Place] = deque()
        for source in sources:
            place = Place(source)
            places.append(place)
            self._waiting.put(place)
            if places[0].outcome is not None or len(places) >= self._most:
                yield self._known(places)
        while places:
            yield self._known(places)

    def close(self) -> None:
        """Stop; what waits is dropped, what runs is waited for."""
        self._stopped = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _known(self, places: deque[Place]) -> list[Prediction | Failure]:
        """Take the first outcome, as soon as it is known, and those behind it that are known by then."""
        while places[0].outcome is None:
            self._finished.clear()
            if places[0].outcome is None:  # else it came before `clear`, and nobody would set the event again
                self._finished.wait()
        if isinstance(error := places[0].outcome, BaseException):
            places.popleft()
            raise error
        known: list[Prediction | Failure] = []
        while places and isinstance(outcome := places[0].outcome, Prediction | Failure):
            known.append(outcome)
            places.popleft()
        return known

    def _run(self) -> None:
        while (place := self._waiting.get()) and not self._stopped:
            batch: list[Place] = []
            pictures: list[Item] = []
            while place and not self._stopped:
                self._take(self._handful(place, self._size - len(batch)), batch, pictures)
                # A batch that is not full does not wait for what comes.
                place = self._next() if len(batch) < self._size else None
            self._finish(batch, pictures)

    def _handful(self, first: Place, most: int) -> list[Place]:
        """A lane's share of what waits, so that all lanes end together."""
        handful = [first]
        share = min(HANDFUL, most, self._waiting.qsize() // len(self._threads))
        while len(handful) < share and (place := self._next()):
            handful.append(place)
        return handful

    def _next(self) -> Place | None:
        """What waits, if anything does."""
        try:
            place = self._waiting.get_nowait()
        except Empty:
            return None
        if place is None:
            self._waiting.put(None)  # for whoever waits for it
        return place

    def _take(self, handful: list[Place], batch: list[Place], pictures: "list[Item]") -> None:
        try:
            prepared = self._prepare([place.source for place in handful])
        except BaseException as error:
            for place in handful:
                place.outcome = error
            return
        for place, picture in zip(handful, prepared, strict=True):
            if isinstance(picture, Failure):
                place.outcome = picture
            else:
                batch.append(place)
                pictures.append(picture)

    def _finish(self, batch: list[Place], pictures: "list[Item]") -> None:
        try:
            if batch:
                sources = [place.source for place in batch]
                for place, outcome in zip(batch, self._answer(sources, pictures), strict=True):
                    place.outcome = outcome
        except BaseException as error:
            for place in batch:
                place.outcome = error
        self._finished.set()
