"""Whatever a worker process does, or is done to it, costs the picture that did it and no other."""

import io
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image
from tests.engine.processes import (
    FAULTS,
    FAULTY_DECODER,
    WAIT,
    is_running,
    plant,
    servers,
    start_workers,
    wait_until,
    workers,
)
from tests.fuzz.kills import infer, make_pictures, rows

from fmengine import Engine, Failure, Isolation, Kind

pytestmark = pytest.mark.timeout(180)

SECONDS = 1.0  # that a picture may take, in either body
BODIES = {"workers": {}, "isolated": {"isolate": Isolation(seconds=SECONDS, memory=512 * 1024**2)}}

FAULTY_BODIES = ["workers", "isolated"]

# A worker that was taken over, or whose memory is broken: what it answers makes no sense from this picture on.
LIAR = """
    import os, simplejpeg
    whole = simplejpeg.decode_jpeg_header

    def decode_jpeg_header(data, *arguments):
        lie = LIES.get(bytes(data[-8:]))
        if lie:
            from fmengine.pipeline import worker
            lie(worker)
        return whole(data, *arguments)

    simplejpeg.decode_jpeg_header = decode_jpeg_header

    def answer(change):
        def lie(worker):
            honest = worker.Answer
            worker.Answer = lambda *fields: honest(*change([*fields, *[[], [], [], ""][len(fields) - 3:]]))
        return lie

    def send(message):
        class Answer:
            def __init__(self, *fields): pass
            def pack(self): return message
        def lie(worker):
            worker.Answer = Answer
        return lie

    def probabilities(*row):
        def lie(worker):
            honest = worker.Stages.infer
            def infer(self, batch, backend):
                honest(self, batch, backend)
                batch.probabilities[:] = row
            worker.Stages.infer = infer
        return lie

    def row(number):
        def lie(worker):
            worker._get_index = lambda task: number
        return lie

    def twice(worker):
        honest = worker.Answer
        class Answer(honest):
            def pack(self): return 2 * honest.pack(self)
        worker.Answer = Answer

    def end(worker):
        class Answer:
            def __init__(self, *fields): pass
            def pack(self): os._exit(0)
        worker.Answer = Answer

    def change(place, value):
        def of(fields):
            fields[place] = value
            return fields
        return answer(of)

    import json, struct
    def body(text):
        return lambda worker: setattr(worker, "Answer", lambda generation, slot, pictures, *_: type("Answer", (), {
            "pack": lambda self: struct.pack("<IBHI", generation, slot, pictures, len(text)) + text})())

    LIES = {
        b"nan_____": probabilities(float("nan"), 0.5),
        b"inf_____": probabilities(float("inf"), 0.0),
        b"above___": probabilities(1.5, 0.0),
        b"negative": probabilities(-0.25, 1.0),
        b"sum_____": probabilities(0.9, 0.9),
        b"nothing_": probabilities(0.0, 0.0),
        b"row_____": row(40_000),
        b"generati": change(0, 4_000_000_000),
        b"slot____": change(1, 200),
        b"count___": change(2, 60_000),
        b"less____": change(2, 0),
        b"failures": change(3, [(-1, "corrupt", "a lie")]),
        b"index___": change(3, [(9, "corrupt", "a lie")]),
        b"kind____": change(3, [(0, "of no kind", "a lie")]),
        b"text____": change(3, [(0, "corrupt", 7)]),
        b"unplaced": change(4, [999]),
        b"observed": change(5, [("read", "now", "then")]),
        b"garbage_": send(os.urandom(4096)),
        b"huge____": send(b"\\xff" * 64),
        b"notjson_": body(b"{[" * 1000),
        b"deep____": body(b"[" * 100_000),
        b"number__": body(b"7"),
        b"ends____": end,
    }
    HARMLESS = {b"twice___": twice, b"rows____": row(0)}
    LIES |= HARMLESS
"""
LIES = [
    *("nan_____", "generati", "row_____", "huge____", "inf_____", "above___", "negative", "sum_____", "nothing_"),
    *("slot____", "count___", "less____", "failures", "index___", "kind____", "text____", "unplaced", "observed"),
    *("garbage_", "notjson_", "deep____", "number__", "ends____"),
]


@pytest.fixture(scope="module")
def jpegs(portrait: Path) -> list[bytes]:
    """Four pictures with four answers."""
    with Image.open(portrait) as image:
        turned = [image.convert("RGB").rotate(angle) for angle in (0, 90, 180, 270)]
    files = [io.BytesIO() for _ in turned]
    for image, file in zip(turned, files, strict=True):
        image.save(file, "JPEG")
    return [file.getvalue() for file in files]


@contextmanager
def loaded(body: str, **options: object) -> Iterator[Engine]:
    """An engine whose workers run."""
    with Engine.load(**{"workers": 2, "backend": "onnxruntime"} | BODIES[body] | options) as engine:
        start_workers(engine)
        yield engine


def expect(jpegs: list[bytes], count: int = 200) -> tuple[list[bytes], list[object]]:
    """Sources, and what each is to be answered."""
    with Engine.load(workers="threads", backend="onnxruntime") as engine:
        each = list(engine.predict_many(jpegs))
    return [jpegs[number % 4] for number in range(count)], [each[number % 4] for number in range(count)]


def write(folder: Path, sources: list[bytes]) -> list[str]:
    folder.mkdir()
    for number, data in enumerate(sources):
        (folder / f"{number:05}.jpg").write_bytes(data)
    return sorted(map(str, folder.iterdir()))


# Faults of decoders


@pytest.mark.slow
@pytest.mark.parametrize("body", FAULTY_BODIES)
@pytest.mark.parametrize(
    ("fault", "give"), [*((fault, "paths") for fault in FAULTS), ("segfault", "encoded"), ("sleep___", "encoded")]
)
def test_a_fault_costs_its_own_picture(tmp_path, monkeypatch, jpegs, give, body, fault):
    monkeypatch.setattr("fmengine.pipeline.worker_setup.HANG_SECONDS", SECONDS)
    for name, value in plant(FAULTY_DECODER, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    kind, message = FAULTS[fault]
    sources, expected = expect(jpegs)
    places = [0, 100] if kind is Kind.TIMEOUT else [0, 63, 64, 150]
    for place in places:
        sources[place] += fault.encode()
    with loaded(body) as engine:
        given = write(tmp_path / "pictures", sources) if give == "paths" else sources
        found = list(engine.predict_many(given))
    check(found, expected, places, kind, message)


def check(found: list, expected: list, places: list[int], kind: Kind, message: str) -> None:
    wrong = [place for place, answer in enumerate(found) if place not in places and answer != expected[place]]
    assert not wrong, [found[place] for place in wrong[:3]]
    for place in places:
        assert isinstance(found[place], Failure), found[place]
        assert found[place].kind is kind
        assert message in found[place].message


@pytest.mark.parametrize("body", BODIES)
def test_a_picture_is_not_blamed_for_what_another_did(tmp_path, monkeypatch, jpegs, body):
    """The poison is answered, and ends whatever picture comes after it in the same worker."""
    for name, value in plant(FAULTY_DECODER, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    sources, expected = expect(jpegs, 150)
    for place in (5, 64, 66):
        sources[place] += b"poisons_"
    with loaded(body) as engine:
        assert list(engine.predict_many(sources)) == expected


def test_after_a_death_nothing_is_decoded_in_the_engines_process(tmp_path, monkeypatch, jpegs):
    """There, the next fault would be the end of it: once workers run, what is encoded is theirs."""
    for name, value in plant(FAULTY_DECODER, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    sources, expected = expect(jpegs, 1000)
    places = [0, 63, 64, 150]
    for place in places:
        sources[place] += b"segfault"

    def refuse(*_: object) -> None:
        raise AssertionError("decoded in the engine's process")

    monkeypatch.setattr("fmengine.pipeline.stages.decode_bytes", refuse)
    with loaded("workers") as engine:
        found = list(engine.predict_many(write(tmp_path / "pictures", sources)))
    check(found, expected, places, Kind.CRASHED, "SIGSEGV")


# What makes no sense


@pytest.mark.parametrize("body", FAULTY_BODIES)
@pytest.mark.parametrize("lies", [LIES[:2], pytest.param(LIES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_lie_costs_the_picture_that_made_the_worker_lie(tmp_path, monkeypatch, jpegs, body, lies):
    for name, value in plant(LIAR, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    sources, expected = expect(jpegs, 70 * len(lies))
    for number, lie in enumerate(lies):
        sources[3 + 70 * number] += lie.encode()
    with loaded(body) as engine:
        found = list(engine.predict_many(sources))
    check(found, expected, list(range(3, len(sources), 70)), Kind.CRASHED, "its decoder ")
    for place, lie in zip(range(3, len(sources), 70), lies, strict=True):
        says = "ended the process with exit code 0" if lie == "ends____" else "gave an answer that makes no sense"
        assert says in found[place].message, (lie, found[place])


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("lie", ["twice___", "rows____"])
def test_a_lie_that_makes_sense_for_one_picture_alone_costs_nothing(tmp_path, monkeypatch, jpegs, body, lie):
    for name, value in plant(LIAR, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    sources, expected = expect(jpegs, 150)
    sources[3] += lie.encode()
    with loaded(body) as engine:
        assert list(engine.predict_many(sources)) == expected


# What takes its time


SLOW_DECODER = """
    import simplejpeg, time
    whole = simplejpeg.decode_jpeg_header

    def decode_jpeg_header(data, *arguments):
        time.sleep(0.1)
        return whole(data, *arguments)

    simplejpeg.decode_jpeg_header = decode_jpeg_header
"""


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_a_worker_that_takes_no_more_while_it_is_at_work_is_not_ended(tmp_path, monkeypatch, jpegs, body):
    """Its next chunk does not fit into the socket, and it is at one for longer than a picture may take."""
    monkeypatch.setattr("fmengine.pipeline.worker_setup.HANG_SECONDS", SECONDS)
    for name, value in plant(SLOW_DECODER, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    sources, expected = expect(jpegs, 80)
    with loaded(body) as engine:
        before = workers()
        assert list(engine.predict_many([data + bytes(1_000_000) for data in sources])) == expected
        assert workers() == before


# Kills from outside


def disturb(engine: Engine, sources: list, choose: Callable[[], set[int]]) -> tuple[list, int]:
    """Answer for sources while processes are killed at random moments; the answers, and how many were killed.

    Between two kills more pictures are answered than are in flight at once: so none of them is hit three times,
    which would be blamed on it.
    """
    rng, found, hits = random.Random(7), [], 0
    after = 1
    for answer in engine.predict_many(sources):
        found.append(answer)
        if len(found) >= after and (targets := sorted(choose())):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(targets), signal.SIGKILL)
                hits += 1
            after = len(found) + rng.randrange(600, 900)
    return found, hits


@pytest.mark.parametrize("body", BODIES)
def test_a_worker_that_is_killed_costs_nothing(tmp_path, jpegs, body):
    sources, expected = expect(jpegs, 600)
    with loaded(body) as engine:
        stream = engine.predict_many(write(tmp_path / "pictures", sources))
        found = [next(stream)]
        os.kill(min(workers()), signal.SIGKILL)
        found += stream
        assert found == expected


@pytest.mark.parametrize("body", BODIES)
def test_a_fork_server_that_is_killed_costs_nothing(tmp_path, jpegs, body):
    sources, expected = expect(jpegs, 600)
    with loaded(body) as engine:
        paths = write(tmp_path / "pictures", sources)
        stream = engine.predict_many(paths)
        found = [next(stream)]
        os.kill(min(servers()), signal.SIGKILL)
        found += stream
        assert found == expected
        assert list(engine.predict_many(paths)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("choose", [workers, servers])
def test_kills_at_random_moments(tmp_path, jpegs, body, choose):
    sources, expected = expect(jpegs, 2000)
    with loaded(body) as engine:
        paths = write(tmp_path / "pictures", sources) * 5
        found, hits = disturb(engine, paths, choose)
    assert hits > 5
    assert found == expected * 5


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_workers_killed_while_they_start(tmp_path, jpegs, body):
    """As where memory ran out a moment ago: another one is started."""
    sources, expected = expect(jpegs, 400)
    paths = write(tmp_path / "pictures", sources)
    for seed in range(6):
        rng = random.Random(seed)
        with Engine.load(workers=2, backend="onnxruntime", **BODIES[body]) as engine:
            before, ended = workers(), threading.Event()

            def kill_first(before=before, ended=ended, rng=rng) -> None:
                while not ended.is_set():
                    if new := workers() - before:
                        time.sleep(rng.uniform(0, 0.01))
                        os.kill(min(new), signal.SIGKILL)
                        return

            thread = threading.Thread(target=kill_first)
            thread.start()
            assert list(engine.predict_many(paths)) == expected
            ended.set()
            thread.join(WAIT)


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_a_worker_that_is_stopped_counts_as_one_that_hangs(tmp_path, monkeypatch, jpegs, body):
    monkeypatch.setattr("fmengine.pipeline.worker_setup.HANG_SECONDS", SECONDS)
    sources, expected = expect(jpegs, 1200)
    with loaded(body) as engine:
        stream = engine.predict_many(write(tmp_path / "pictures", sources))
        found = [next(stream)]
        for worker in workers():
            os.kill(worker, signal.SIGSTOP)
        found += stream
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_a_fork_server_that_is_stopped_is_replaced(tmp_path, monkeypatch, jpegs, body):
    monkeypatch.setattr("fmengine.pipeline.forkserver.START_SECONDS", 8.0)
    sources, expected = expect(jpegs, 1200)
    with loaded(body) as engine:
        stream = engine.predict_many(write(tmp_path / "pictures", sources))
        found = [next(stream)]
        killed = workers()
        os.kill(min(servers()), signal.SIGSTOP)
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        found += stream
        assert found == expected


# The engine killed, and interrupted


def descendants(pid: int) -> set[int]:
    return servers(pid) | workers(pid)


def wait_for_rows(process: subprocess.Popen, output: Path, count: int = 1) -> None:
    def has_rows() -> bool:
        assert process.poll() is None, "it ended before"
        return output.exists() and output.read_bytes().count(b"\n") >= count

    wait_until(has_rows, "row")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--isolate",)], ids=["workers", "isolated"])
def test_no_worker_outlives_the_engine_and_resume_ends_with_the_same_rows(tmp_path, more):
    pictures, output = make_pictures(tmp_path / "pictures", 6000), tmp_path / "x.jsonl"
    more = ("--workers", "2", *more)
    for turn in range(3):
        process = subprocess.Popen(infer(pictures, output, "--resume", *more), stderr=subprocess.DEVNULL)
        wait_for_rows(process, output, 1 + turn * 1000)
        wait_until(lambda pid=process.pid: workers(pid), "worker")
        found = descendants(process.pid)
        process.kill()
        process.wait()
        assert found
        wait_until(lambda found=found: not any(map(is_running, found)), "end of the workers")
    subprocess.run(infer(pictures, output, "--resume", *more), stderr=subprocess.DEVNULL, timeout=100)
    whole = tmp_path / "whole.jsonl"
    subprocess.run(infer(pictures, whole, "--workers", "threads"), stderr=subprocess.DEVNULL, timeout=100)
    assert rows(output) == rows(whole)
    assert len(rows(whole)) == 6000


AT_ONCE = 15  # seconds, half of what a picture may take: one that hangs must not be waited for


def interrupt(command: list[str], output: Path, count: int, **environment: str) -> str:
    """Run a command, once it wrote so many rows send its group Ctrl-C as a terminal does; its stderr."""
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        wait_for_rows(process, output, count)
        wait_until(lambda: len(workers(process.pid)) == 2, "worker")
        found = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=AT_ONCE)
    finally:
        process.kill()
    assert process.returncode == 130, err
    wait_until(lambda: not any(map(is_running, found)), "end of the workers")
    return err


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--isolate",)], ids=["workers", "isolated"])
def test_ctrl_c_in_mid_run(tmp_path, more):
    pictures, output = make_pictures(tmp_path / "pictures", 6000), tmp_path / "x.jsonl"
    err = interrupt(infer(pictures, output, "--workers", "2", *more), output, 1)
    assert "go on with --resume" in err
    assert "Traceback" not in err
    kinds = [line for line in output.read_text().splitlines() if '"crashed"' in line or '"timeout"' in line]
    assert not kinds, "a worker that was ended is no picture's fault"
    subprocess.run(infer(pictures, output, "--resume"), stderr=subprocess.DEVNULL, timeout=100)
    assert len(rows(output)) == 6000


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang____", "deaf____", "sleep___"])
@pytest.mark.parametrize("more", [(), ("--isolate", "--max-seconds", "60")], ids=["workers", "isolated"])
def test_ctrl_c_while_decoders_hang(tmp_path, jpegs, fault, more):
    sources = [jpegs[number % 4] for number in range(3000)]
    for place in (2000, 2001, 2100, 2101):
        sources[place] += fault.encode()
    write(tmp_path / "pictures", sources)
    output = tmp_path / "x.jsonl"
    command = infer(tmp_path / "pictures", output, "--workers", "2", *more)
    err = interrupt(command, output, 1900, **plant(FAULTY_DECODER, tmp_path / "site"))
    assert "Traceback" not in err
