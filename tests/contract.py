"""The executor's contract, from outside: what every body of an engine keeps, and the GPU path over the double.

Each check takes an engine and a picture's file. `CHECKS` lists them: `engine/test_contract.py` runs them on the
CPU, and `gpu_double/test_contract.py` on the emulated GPU.
"""

import gc
import io
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from fmengine import ClosedError, Engine, Failure, Prediction

WAIT = 60  # seconds after which something hangs


def frames(number: int, size: int = 48) -> list[np.ndarray]:
    """Different pictures, none of them flat."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (size, size), np.uint8) for _ in range(number)]


def answers(results: "list[Prediction | Failure]") -> list[object]:
    return [result.probabilities if isinstance(result, Prediction) else result.kind for result in results]


def alone(engine: Engine, sources: list) -> list[object]:
    """What each source's answer is by itself."""
    return [engine.predict(source).probabilities for source in sources]


def check_order(engine: Engine, picture: Path) -> None:
    sources = [b"no picture" if number % 5 == 3 else frame for number, frame in enumerate(frames(60))]
    for given in (sources, iter(sources)):
        results = list(engine.predict_many(given))
        assert [result.source is source for result, source in zip(results, sources, strict=True)] == [True] * 60
        for result, source in zip(results, sources, strict=True):
            if isinstance(source, bytes):
                assert isinstance(result, Failure)
            else:
                assert result.probabilities == engine.predict(source).probabilities


def check_memory(engine: Engine, picture: Path) -> None:
    taken = given = most = 0

    def sources() -> Iterator[Path]:
        nonlocal given, most
        for _ in range(60):
            given += 1
            most = max(most, given - taken)
            yield picture

    for feed in ("auto", "caller"):
        taken = given = 0
        for _ in engine.predict_many(sources(), in_flight=5, feed=feed):
            taken += 1
        assert taken == 60
        assert most <= 5


def check_camera(engine: Engine, picture: Path) -> None:
    """The answer to a frame is there before the next frame comes."""
    answered = threading.Event()

    def camera() -> Iterator[np.ndarray]:
        for frame in frames(4):
            yield frame
            assert answered.wait(WAIT), "the answer waits for the next frame"
            answered.clear()

    seen = 0
    for result in engine.predict_many(camera()):
        assert isinstance(result, Prediction)
        seen += 1
        answered.set()
    assert seen == 4


def check_refilled_buffer(engine: Engine, picture: Path) -> None:
    content = frames(30)
    expected = alone(engine, content)

    def refill() -> Iterator[np.ndarray]:
        buffer = np.empty_like(content[0])
        for frame in content:
            buffer[:] = frame
            yield buffer

    for feed in ("auto", "caller"):
        assert answers(list(engine.predict_many(refill(), feed=feed))) == expected


def check_reused_file(engine: Engine, picture: Path) -> None:
    content = [_encode(frame) for frame in frames(20)]
    expected = alone(engine, content)

    def reuse() -> Iterator[io.BytesIO]:
        file = io.BytesIO()
        for data in content:
            file.seek(0)
            file.truncate()
            file.write(data)
            file.seek(0)
            yield file

    assert answers(list(engine.predict_many(reuse()))) == expected
    assert answers(list(engine.predict_many([bytearray(data) for data in content]))) == expected


def check_lazy_images(engine: Engine, picture: Path) -> None:
    """A PIL image that is yet to be loaded, several times; the frames of a sequence are one object."""
    data = _encode(frames(1, 200)[0])
    expected = engine.predict(data).probabilities
    for _ in range(5):
        with Image.open(io.BytesIO(data)) as image:
            assert answers(list(engine.predict_many([image] * 8))) == [expected] * 8
    for suffix in ("GIF", "TIFF"):
        content, file = frames(12), io.BytesIO()
        first, *rest = map(Image.fromarray, content)
        first.save(file, suffix, save_all=True, append_images=rest)
        each = alone(engine, content)
        with Image.open(file) as sequence:
            for feed in ("auto", "caller"):
                assert answers(list(engine.predict_many(ImageSequence.Iterator(sequence), feed=feed))) == each


def check_feeder(engine: Engine, picture: Path) -> None:
    """One thread advances an iterator: the feeder's, or the caller's where it asks for that."""
    inside = threading.Lock()
    threads: set[str] = set()

    def sources() -> Iterator[Path]:
        for _ in range(40):
            assert inside.acquire(blocking=False), "two threads advance the sources at once"
            threads.add(threading.current_thread().name)
            inside.release()
            yield picture

    assert len(list(engine.predict_many(sources()))) == 40
    assert threads == {"fmengine-feeder"}
    threads.clear()
    assert len(list(engine.predict_many(sources(), feed="caller"))) == 40
    assert threads == {threading.current_thread().name}


def check_sources_that_fail(engine: Engine, picture: Path) -> None:
    def sources() -> Iterator[np.ndarray]:
        yield from frames(9)
        raise OSError("the camera is gone")

    for feed in ("auto", "caller"):
        stream = engine.predict_many(sources(), batch_size=4, feed=feed)
        assert [type(next(stream)) for _ in range(9)] == [Prediction] * 9
        with pytest.raises(OSError, match="the camera is gone"):
            next(stream)


def check_drop(engine: Engine, picture: Path) -> None:
    before = set(threading.enumerate())
    release = threading.Event()

    def camera() -> Iterator[Path]:
        yield picture
        release.wait(WAIT)

    for sources in (camera(), (picture for _ in count()), [picture] * 500):
        stream = engine.predict_many(sources)
        next(stream)
        del stream, sources
        gc.collect()
    release.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
        assert not thread.is_alive()


def check_close(engine: Engine, picture: Path) -> None:
    """Last: it closes the engine."""
    stream = engine.predict_many((picture for _ in count()), in_flight=4, batch_size=2)
    next(stream)
    engine.close()
    with pytest.raises(ClosedError):
        list(stream)


def _encode(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


CHECKS: list[Callable[[Engine, Path], None]] = [
    check_order,
    check_memory,
    check_camera,
    check_refilled_buffer,
    check_reused_file,
    check_lazy_images,
    check_feeder,
    check_sources_that_fail,
    check_drop,
    check_close,
]
