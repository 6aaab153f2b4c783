"""Lanes: order, failures, errors and stopping, without a network."""

import threading
import time
from contextlib import closing
from itertools import chain, count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine.errors import Kind
from fmengine.lanes import HANDFUL, WINDOW, Lanes
from fmengine.system import cores
from fmengine.types import Failure, Prediction

pytestmark = pytest.mark.timeout(60)


def prepare(sources):
    return [prepared(source) for source in sources]


def prepared(source):
    number = int(source)
    if number % 7 == 3:
        return Failure(Kind.CORRUPT, "seven", source)
    return np.full((1, 2, 2), number % 251, dtype=np.uint8)


def answer(sources, pictures):
    return [Prediction(str(picture[0, 0, 0]), 1.0, {}, s) for s, picture in zip(sources, pictures, strict=True)]


def expected(number):
    return "seven" if number % 7 == 3 else str(number % 251)


def outcomes_of(lanes, sources):
    return chain.from_iterable(lanes.outcomes(sources))


def told(outcome):
    return outcome.message if isinstance(outcome, Failure) else outcome.label


@given(pictures=st.integers(0, 200), lanes=st.integers(1, 4), size=st.integers(1, 40))
def test_every_source_has_its_outcome_in_its_place(pictures, lanes, size):
    with closing(Lanes(prepare, answer, count=lanes, size=size)) as opened:
        outcomes = list(outcomes_of(opened, map(str, range(pictures))))
    assert [told(outcome) for outcome in outcomes] == [expected(number) for number in range(pictures)]
    assert [outcome.source for outcome in outcomes] == [str(number) for number in range(pictures)]


@given(size=st.integers(1, 40))
def test_no_batch_is_larger_than_asked_for(size):
    sizes = []

    def noting(sources, pictures):
        sizes.append(len(pictures))
        return answer(sources, pictures)

    with closing(Lanes(prepare, noting, count=2, size=size)) as opened:
        list(outcomes_of(opened, map(str, range(150))))
    assert max(sizes) <= size


@pytest.mark.parametrize("broken", ["prepare", "answer"])
def test_an_error_reaches_the_caller_in_its_place(broken):
    def fail_prepare(sources):
        if "20" in sources:
            raise RuntimeError("the 20th")
        return prepare(sources)

    def fail_answer(sources, pictures):
        if "20" in sources:
            raise RuntimeError("the 20th")
        return answer(sources, pictures)

    work = (fail_prepare, answer) if broken == "prepare" else (prepare, fail_answer)
    with closing(Lanes(*work, count=2, size=1)) as opened:
        outcomes = outcomes_of(opened, map(str, count()))
        assert [told(outcome) for outcome in islice(outcomes, 20)] == [expected(number) for number in range(20)]
        with pytest.raises(RuntimeError, match="the 20th"):
            next(outcomes)


def test_what_is_known_before_an_error_is_given_first():
    last = threading.Event()

    def prepare_in_order(sources):
        (source,) = sources
        if source == "0":
            assert last.wait(20)  # by then 1 to 28 are known
        if source == "20":
            raise RuntimeError("the 20th")
        if source == "29":
            last.set()
        return prepare(sources)

    with closing(Lanes(prepare_in_order, answer, count=2, size=1, in_flight=40)) as opened:
        chunks = opened.outcomes(map(str, range(30)))
        assert [told(outcome) for outcome in next(chunks)] == [expected(number) for number in range(20)]
        with pytest.raises(RuntimeError, match="the 20th"):
            next(chunks)


def test_the_window_bounds_what_is_under_way():
    begun = count()
    with closing(Lanes(prepare, answer, count=2, size=4)) as opened:
        next(outcomes_of(opened, (str(next(begun)) for _ in count())))
        assert next(begun) <= WINDOW * 4 * 2 + 1


def test_lanes_work_at_the_same_time():
    inside, most = set(), []

    def note(sources):
        inside.add(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.01)
        inside.discard(threading.get_ident())
        return prepare(sources)

    with closing(Lanes(note, answer, count=2, size=4)) as opened:
        list(outcomes_of(opened, "0" * 40))
    assert max(most) == 2


def test_an_outcome_does_not_wait_for_a_full_batch():
    """A slow source, such as a camera: what was taken is answered while the next picture is waited for."""
    answered = threading.Event()

    def noting(sources, pictures):
        answered.set()
        return answer(sources, pictures)

    def slow():
        yield "0"
        assert answered.wait(20)
        yield "1"

    with closing(Lanes(prepare, noting, count=2, size=64)) as opened:
        assert len(list(outcomes_of(opened, slow()))) == 2


def test_a_lane_that_meets_the_end_within_a_batch_stops():
    begun = threading.Event()

    def until_closed(sources):
        begun.set()
        while not (opened._stopped and opened._waiting.qsize()):
            time.sleep(0.001)
        return prepare(sources)

    opened = Lanes(until_closed, answer, count=1, size=8)
    reader = threading.Thread(target=lambda: list(outcomes_of(opened, ["1"])), daemon=True)
    reader.start()
    assert begun.wait(20)
    opened.close()
    reader.join(20)
    assert not reader.is_alive()


def test_closing_drops_what_waits():
    begun = []

    def slow(sources):
        begun.extend(sources)
        time.sleep(0.002 * len(sources))
        return prepare(sources)

    opened = Lanes(slow, answer, count=2, size=64)
    next(outcomes_of(opened, map(str, count())))
    opened.close()
    done = len(begun)
    assert done < 0.75 * WINDOW * 64 * 2  # of what waited
    time.sleep(0.05)
    assert len(begun) == done
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fmengine-lane")]


def test_lanes_share_what_is_left_and_take_no_more_at_once_than_a_handful():
    taken = []

    def noting(sources):
        taken.append(len(sources))
        time.sleep(0.001 * len(sources))  # such as photographs: all wait before the first is ready
        return prepare(sources)

    with closing(Lanes(noting, answer, count=2, size=64)) as opened:
        list(outcomes_of(opened, map(str, range(200))))
    assert max(taken) == HANDFUL
    assert sum(taken) == 200
    assert taken[-1] <= 2  # else one lane would work on alone


@pytest.mark.parametrize(
    ("quota", "most"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)]
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, quota, most):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(cores, "CGROUP", file)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: range(64))
    assert cores.usable_cores() == most


@pytest.mark.parametrize("in_flight", [1, 2, 3, 7, 8, 9, 17])
@pytest.mark.parametrize("lanes", [1, 3])
def test_no_more_pictures_are_under_way_than_may_be(in_flight, lanes):
    given = answered = most = 0

    def sources():
        nonlocal given, most
        for number in range(100):
            given += 1
            most = max(most, given - answered)
            yield number

    with closing(Lanes(prepare, answer, count=lanes, size=min(8, in_flight), in_flight=in_flight)) as opened:
        for number, outcome in enumerate(outcomes_of(opened, sources())):
            assert told(outcome) == expected(number)
            answered += 1
    assert answered == 100
    assert most <= in_flight
