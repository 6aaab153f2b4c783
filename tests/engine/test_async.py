"""`await engine.apredict(x)`: the same answers, in shared batches, under a deadline, with a bounded queue."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from fmengine import (
    BusyError,
    DeadlineError,
    Engine,
    FmengineError,
    Kind,
    SourceError,
)
from fmengine.types import InputBatch, Outputs


def faces(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 256, (40, 40), np.uint8) for _ in range(count)]


class Watched:
    """A backend that notes the size of each batch, and waits while it is told to."""

    def __init__(self, engine: Engine) -> None:
        self.run_of_backend, self.sizes = engine.backend.run, []
        self.go, self.began = threading.Event(), threading.Event()
        self.go.set()
        engine.backend.run = self.run  # type: ignore[method-assign]

    def run(self, images: InputBatch) -> Outputs:
        self.sizes.append(len(images))
        self.began.set()
        assert self.go.wait(20)
        return self.run_of_backend(images)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.load(max_batch=16, queue_size=8) as engine:
        yield engine


@pytest.fixture
def watched(engine: Engine) -> Iterator[Watched]:
    watched = Watched(engine)
    yield watched
    watched.go.set()


def test_many_callers_get_the_answers_that_predict_gives() -> None:
    pictures = faces(100)

    async def ask() -> list[dict[str, float]]:
        return [answer.probabilities for answer in await asyncio.gather(*map(engine.apredict, pictures))]

    with Engine.load(max_batch=16) as engine:
        watched = Watched(engine)
        answers = asyncio.run(ask())
        assert sum(watched.sizes) == 100
        assert max(watched.sizes) > 1  # they shared batches
        assert max(watched.sizes) <= 16
        assert answers == [engine.predict(picture).probabilities for picture in pictures]


@pytest.mark.timeout(30)  # ends a wait that is as good as endless
def test_a_lone_picture_does_not_wait_for_others() -> None:
    with Engine.load(queue_delay=24 * 3600) as engine:
        watched = Watched(engine)
        for face in faces(2):
            asyncio.run(engine.apredict(face))
    assert watched.sizes == [1, 1]


def test_a_full_queue_refuses_at_once_and_takes_more_later(engine: Engine, watched: Watched) -> None:
    async def ask() -> None:
        watched.go.clear()
        waiting = [asyncio.create_task(engine.apredict(face)) for face in faces(8)]
        await asyncio.sleep(0)  # they are under way
        with pytest.raises(BusyError, match=r"8 pictures are under way already, .* larger queue_size"):
            await engine.apredict(faces(1)[0])
        watched.go.set()
        assert len(await asyncio.gather(*waiting)) == 8
        await engine.apredict(faces(1)[0])

    asyncio.run(ask())


def test_what_is_late_is_told_and_not_worked_on(engine: Engine, watched: Watched) -> None:
    async def ask() -> None:
        watched.go.clear()
        first = asyncio.create_task(engine.apredict(faces(1)[0]))
        while not watched.began.is_set():
            await asyncio.sleep(0.001)
        late = [engine.apredict(face, timeout=0.05) for face in faces(5)]
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineError}
        assert "no answer within 0.05 s" in str(outcomes[0])
        watched.go.set()
        await first
        await engine.apredict(faces(1)[0], timeout=20)  # and there is room again

    asyncio.run(ask())
    assert watched.sizes == [1, 1]


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_no_time_at_all_is_no_deadline(engine: Engine, timeout: float) -> None:
    with pytest.raises(DeadlineError, match="leaves no time"):
        asyncio.run(engine.apredict(faces(1)[0], timeout=timeout))


def test_a_bad_picture_fails_alone(engine: Engine) -> None:
    async def ask() -> list[object]:
        sources = [faces(1)[0], b"no picture", "missing.jpg", faces(1)[0]]
        return await asyncio.gather(*map(engine.apredict, sources), return_exceptions=True)

    good, broken, missing, again = asyncio.run(ask())
    assert good == again
    assert isinstance(broken, SourceError)
    assert isinstance(missing, SourceError)
    assert (broken.kind, missing.kind) == (Kind.NOT_AN_IMAGE, Kind.NOT_FOUND)


def test_an_error_of_the_network_reaches_every_caller_and_the_engine_goes_on(engine: Engine) -> None:
    async def ask() -> list[object]:
        return await asyncio.gather(*map(engine.apredict, faces(3)), return_exceptions=True)

    def broken(images: InputBatch) -> Outputs:
        raise RuntimeError("a fault")

    run, engine.backend.run = engine.backend.run, broken  # type: ignore[method-assign]
    assert [outcome.message for outcome in asyncio.run(ask())] == ["RuntimeError: a fault"] * 3
    engine.backend.run = run  # type: ignore[method-assign]
    assert {answer.label for answer in asyncio.run(ask())} <= {"happy", "sad"}  # type: ignore[attr-defined]


def test_a_caller_who_leaves_takes_nobody_along(engine: Engine, watched: Watched) -> None:
    async def ask() -> None:
        watched.go.clear()
        tasks = [asyncio.create_task(engine.apredict(face)) for face in faces(4)]
        while not watched.began.is_set():
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        tasks[3].cancel()
        watched.go.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [False, True, False, True]

    asyncio.run(ask())


def test_closing_answers_what_is_under_way(engine: Engine, watched: Watched) -> None:
    async def ask() -> list[object]:
        watched.go.clear()
        tasks = [asyncio.create_task(engine.apredict(face)) for face in faces(5)]
        await asyncio.sleep(0)
        watched.go.set()
        await asyncio.get_running_loop().run_in_executor(None, engine.close)
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(ask())) == 5
    with pytest.raises(FmengineError, match="closed"):
        asyncio.run(engine.apredict(faces(1)[0]))
    assert not [t for t in threading.enumerate() if t.name.startswith("fmengine-")]


def test_event_loops_in_several_threads_share_an_engine() -> None:
    pictures = faces(40)
    answers: dict[int, list[dict[str, float]]] = {}

    async def ask() -> list[dict[str, float]]:
        return [answer.probabilities for answer in await asyncio.gather(*map(engine.apredict, pictures))]

    with Engine.load() as engine:
        threads = [
            threading.Thread(target=lambda number=number: answers.update({number: asyncio.run(ask())}))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = [engine.predict(picture).probabilities for picture in pictures]
    assert [answers[number] for number in range(4)] == [expected] * 4


@pytest.mark.parametrize("options", [{"queue_delay": -1}, {"queue_size": 0}])
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 0, 1 or more"):
        Engine.load(**options)  # type: ignore[arg-type]


def test_who_does_not_await_does_not_import_asyncio() -> None:
    """It would be a fifth of the time that `fmengine infer` takes to start."""
    code = "import sys, fmengine; fmengine.Engine.load().close(); sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
