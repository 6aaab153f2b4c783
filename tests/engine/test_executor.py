"""The executor's bodies: order, failures, errors, bounds and stopping, without a network."""

import threading
import time
from contextlib import closing
from itertools import chain, count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine import ClosedError, Failure, Kind, ModelSpec, Prediction
from fmengine.pipeline.batch import MAX_IMAGE_BYTES, Batch, Task
from fmengine.pipeline.executor import CHUNK, HELD_BYTES, WINDOW, InlineExecutor, ThreadExecutor
from fmengine.system import cores

pytestmark = pytest.mark.timeout(60)

SPEC = ModelSpec("tiny", ("a", "b"), 2, 2, "gray", "crop", "fp32", (0,), (1.0,))
BODIES = ["inline", "threads"]


class Stages:
    """Stages without a network: a number's prediction is its own label, and every seventh fails."""

    spec = SPEC

    def __init__(self, prepare=None, answer=None):
        self.on_prepare, self.on_answer = prepare or (lambda sources: None), answer or (lambda sources: None)

    def admit(self, source, channels):
        return Task(source, str(source))

    def run(self, tasks, batch, backend):
        self.prepare(tasks, batch)
        self.answer(batch, backend)
        batch.clear()

    def prepare(self, tasks, batch):
        self.on_prepare([task.source for task in tasks])
        for task in tasks:
            if int(task.source) % 7 == 3:
                task.result = Failure(Kind.CORRUPT, "seven", task.source)
            else:
                batch.tasks.append(task)

    def answer(self, batch, backend):
        self.on_answer([task.source for task in batch.tasks])
        for task in batch.tasks:
            task.result = Prediction(str(task.source), 1.0, {}, task.source)


def make(body="threads", *, threads=2, size=4, in_flight=None, **stages):
    options = {"batch_size": size, "max_in_flight": in_flight or WINDOW * size * threads}
    if body == "inline":
        return InlineExecutor(Stages(**stages), None, **options)
    return ThreadExecutor(Stages(**stages), None, threads=threads, **options)


def results_of(executor, sources, feed="auto"):
    return chain.from_iterable(executor.map(sources, "rgb", feed))


def expected(number):
    return "seven" if number % 7 == 3 else str(number)


def text_of(result):
    return result.message if isinstance(result, Failure) else result.label


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", [list, iter])
@given(pictures=st.integers(0, 200), threads=st.integers(1, 4), size=st.integers(1, 40))
def test_every_source_has_its_result_in_order(body, kind, pictures, threads, size):
    results = list(results_of(make(body, threads=threads, size=size), kind(range(pictures))))
    assert [text_of(result) for result in results] == [expected(number) for number in range(pictures)]
    assert [result.source for result in results] == list(range(pictures))


@pytest.mark.parametrize("body", BODIES)
@given(size=st.integers(1, 40))
def test_no_batch_is_larger_than_its_size(body, size):
    sizes = []
    list(results_of(make(body, size=size, answer=lambda sources: sizes.append(len(sources))), iter(range(150))))
    assert max(sizes) <= size


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("broken", ["prepare", "answer"])
def test_an_error_that_is_no_pictures_is_raised_in_order(broken, kind):
    def fail(sources):
        if 20 in sources:
            raise RuntimeError("the 20th")

    results = results_of(make(size=1, **{broken: fail}), kind(range(60)))
    assert [text_of(result) for result in islice(results, 20)] == [expected(number) for number in range(20)]
    with pytest.raises(RuntimeError, match="the 20th"):
        next(results)


def test_what_is_known_before_an_error_comes_first():
    last = threading.Event()

    def prepare_in_order(sources):
        (source,) = sources
        if source == 0:
            assert last.wait(20)  # by then 1 to 28 are known
        if source == 20:
            raise RuntimeError("the 20th")
        if source == 29:
            last.set()

    executor = make(prepare=prepare_in_order, size=1, in_flight=40)
    with closing(executor.map(list(range(30)), "rgb")) as chunks:
        assert [text_of(result) for result in next(chunks)] == [expected(number) for number in range(20)]
        with pytest.raises(RuntimeError, match="the 20th"):
            next(chunks)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("feed", ["auto", "caller"])
def test_an_error_of_the_sources_comes_after_the_results_before_it(body, feed):
    def sources():
        yield from range(5)
        raise OSError("no more of them")

    results = results_of(make(body), sources(), feed)
    assert [text_of(result) for result in islice(results, 5)] == [expected(number) for number in range(5)]
    with pytest.raises(OSError, match="no more of them"):
        next(results)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("feed", ["auto", "caller"])
@pytest.mark.parametrize("in_flight", [1, 2, 3, 7, 8, 9, 17])
def test_no_more_pictures_are_in_flight_than_may_be(body, feed, in_flight):
    given = answered = most = 0

    def sources():
        nonlocal given, most
        for number in range(100):
            given += 1
            most = max(most, given - answered)
            yield number

    executor = make(body, size=min(8, in_flight), in_flight=in_flight)
    for number, result in enumerate(results_of(executor, sources(), feed)):
        assert text_of(result) == expected(number)
        answered += 1
    assert answered == 100
    assert most <= in_flight


def test_threads_work_at_the_same_time():
    inside, most = set(), []

    def note(sources):
        inside.add(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.01)
        inside.discard(threading.get_ident())

    list(results_of(make(prepare=note), [0] * 40))
    assert max(most) == 2


@pytest.mark.parametrize("body", BODIES)
def test_a_result_does_not_wait_for_a_source_that_does_not_come(body):
    """A camera: what was taken is answered while the next picture is waited for."""
    taken = threading.Event()

    def camera():
        for number in (0, 1, 2):
            yield number
            assert taken.wait(20)
            taken.clear()

    results = results_of(make(body, size=64), camera())
    for number in (0, 1, 2):
        assert text_of(next(results)) == expected(number)
        taken.set()
    assert list(results) == []


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("kind", "feed", "own"), [(list, "auto", False), (iter, "auto", True), (iter, "caller", False)]
)
def test_who_advances_the_sources(body, kind, feed, own):
    """A list this thread; any other iterator one of its own, unless the caller asks for this one."""
    threads = set()

    class Sources(list):
        def __iter__(self):
            for number in range(50):
                threads.add(threading.current_thread().name)
                yield number

    sources = Sources() if kind is list else iter(Sources())
    assert len(list(results_of(make(body), sources, feed))) == 50
    assert threads == ({"fmengine-feeder"} if own else {threading.current_thread().name})


@pytest.mark.parametrize("body", BODIES)
def test_dropped_half_read_nothing_is_left_running(body):
    before = set(threading.enumerate())
    results = results_of(make(body), count())
    next(results)
    results = None
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("body", BODIES)
def test_a_feeder_that_waits_for_the_caller_does_not_hold_up_a_drop(body):
    release = threading.Event()

    def camera():
        yield 0
        release.wait(30)

    results = make(body).map(camera(), "rgb")
    next(results)
    results.close()
    release.set()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", [list, iter])
def test_closed_half_read_it_is_an_error_to_go_on(body, kind):
    executor = make(body, size=1, in_flight=2)
    results = results_of(executor, kind(range(1000)))
    next(results)
    executor.close()
    with pytest.raises(ClosedError):
        list(results)


def test_a_thread_that_meets_the_end_within_a_batch_stops():
    begun = threading.Event()

    def until_closed(sources):
        begun.set()
        while not (executor._stopped and executor._waiting.qsize()):
            time.sleep(0.001)

    executor = make(threads=1, size=8, prepare=until_closed)

    def read():
        with pytest.raises(ClosedError):
            list(results_of(executor, [1, 2]))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert begun.wait(20)
    executor.close()
    reader.join(20)
    assert not reader.is_alive()


def test_closing_drops_what_waits():
    begun = []

    def slow(sources):
        begun.extend(sources)
        time.sleep(0.002 * len(sources))

    executor = make(size=64, prepare=slow)
    next(results_of(executor, count(), "caller"))
    executor.close()
    done = len(begun)
    assert done < 0.75 * WINDOW * 64 * 2  # of what waited
    time.sleep(0.05)
    assert len(begun) == done


def test_threads_share_what_is_left_and_take_no_more_at_once_than_a_chunk():
    taken = []

    def note(sources):
        taken.append(len(sources))
        time.sleep(0.001 * len(sources))  # such as photographs: all wait before the first is ready

    list(results_of(make(size=64, prepare=note), list(range(200))))
    assert max(taken) == CHUNK
    assert sum(taken) == 200
    assert taken[-1] <= 2  # else one thread would work on alone


@pytest.mark.parametrize(
    ("quota", "most"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)]
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, quota, most):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(cores, "CGROUP", file)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: range(64))
    assert cores.usable_cores() == most


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("feed", ["auto", "caller"])
def test_what_takes_much_memory_counts_for_several(body, feed):
    given = answered = most = 0

    def photographs():
        nonlocal given, most
        for _ in range(40):
            given += 1
            most = max(most, given - answered)
            yield 1

    class Heavy(Stages):
        def admit(self, source, channels):
            return Task(source, np.zeros(3 * HELD_BYTES, np.uint8))

    executor = make(body, size=16, in_flight=16)
    executor._stages = Heavy()
    for _ in results_of(executor, photographs(), feed):
        answered += 1
    assert answered == 40
    assert most <= 5  # each counts for four, and the last is weighed once it was read


def test_no_picture_counts_for_more_than_may_be_in_flight():
    class Heavy(Stages):
        def admit(self, source, channels):
            return Task(source, np.zeros(99 * HELD_BYTES, np.uint8))

    for body in BODIES:
        for kind in (list, iter):
            executor = make(body, size=2, in_flight=3)
            executor._stages = Heavy()
            assert len(list(results_of(executor, kind([1] * 9)))) == 9


# The batch


def test_a_batch_lies_in_the_memory_that_it_is_given():
    memory = bytearray(Batch.size_of(SPEC, 3))
    batch = Batch(SPEC, 3, memory)
    batch.inputs[:], batch.probabilities[:], batch.flat[:] = 7, 0.5, True
    other = Batch(SPEC, 3, memory)
    assert (other.inputs == 7).all()
    assert (other.probabilities == 0.5).all()
    assert other.flat.all()
    assert other.inputs.shape == (3, 1, 2, 2)
    assert other.probabilities.shape == (3, 2)


def test_a_row_of_a_batch_shares_its_memory():
    batch = Batch(SPEC, 3)
    batch.tasks = [Task(number, None) for number in range(3)]
    row = batch.select(1)
    row.probabilities[0] = 0.25
    assert [task.source for task in row.tasks] == [1]
    assert (batch.probabilities[1] == 0.25).all()


def test_images_that_wait_for_a_gpu_fill_a_batch_by_their_size():
    batch = Batch(SPEC, 64)
    while batch.room:
        batch.add_image(Task("", None), np.zeros((1000, 8000), np.uint8))
    assert len(batch.tasks) == -(-MAX_IMAGE_BYTES // 8_000_000)
    batch.clear()
    assert batch.room == 64


@pytest.mark.parametrize("kind", [list, iter])
def test_whoever_takes_results_sleeps_until_there_are_some(kind, monkeypatch):
    """Also once the sources ended: a loop would take the processor from the threads that compute."""
    waits, wait = [], ThreadExecutor._wait
    monkeypatch.setattr(ThreadExecutor, "_wait", lambda executor: waits.append(1) or wait(executor))
    executor = make(size=2, in_flight=64, prepare=lambda sources: time.sleep(0.02))
    assert len(list(results_of(executor, kind(range(20))))) == 20
    assert len(waits) <= 40  # each batch, and the end, wake it once
