"""Decoding in worker processes: whatever a decoder does, it costs its own picture and no other."""

import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.engine.processes import FAULTS, FAULTY_DECODER, children, is_running, plant, workers
from tests.page import Page

from fmengine import (
    Engine,
    Failure,
    Isolation,
    Kind,
    Limits,
    Prediction,
    SourceError,
)
from fmengine.errors import UnavailableError
from fmengine.jobs.report import write_report
from fmengine.jobs.rows import to_row
from fmengine.pipeline.worker import limit_memory

MEMORY = {"memory__": (Kind.OUT_OF_MEMORY, "no room to decode it")}
LIMITS = Isolation(seconds=2.0, memory=256 * 1024**2)

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:::PIL")]


@pytest.fixture
def planted(tmp_path, monkeypatch) -> None:
    """Workers of this test have the planted decoder; this process has not."""
    for name, value in plant(FAULTY_DECODER, tmp_path / "site").items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def jpeg(portrait) -> bytes:
    buffer = io.BytesIO()
    Image.open(portrait).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def test_answers_are_those_without(portrait, jpeg, portrait_pixels):
    sources = [
        portrait,
        str(portrait),
        portrait.read_bytes(),
        jpeg,
        bytearray(jpeg),
        memoryview(jpeg),
        portrait_pixels,
    ]
    with Engine.load() as plain, Engine.load(isolate=LIMITS) as isolated:
        assert list(isolated.predict_many(sources)) == list(plain.predict_many(sources))
        for source in sources:
            np.testing.assert_array_equal(isolated.prepare(source), plain.prepare(source))


def test_failures_are_those_without(tmp_path, jpeg):
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    sources = [
        *(b"", b"no picture", jpeg[:-600], b"\xff\xd8\xff", "nul\0.jpg", "\ud800.jpg", tmp_path),
        *(tmp_path / name for name in ("missing", "empty.jpg", "pipe.jpg")),
    ]
    limits = Limits(max_bytes=10_000, max_pixels=20_000)
    with Engine.load(limits=limits) as plain, Engine.load(limits=limits, isolate=LIMITS) as isolated:
        sources += [bytes(10_001), jpeg]
        found, expected = (list(engine.predict_many(sources)) for engine in (isolated, plain))
    assert all(isinstance(failure, Failure) for failure in expected)
    assert found == expected


@pytest.mark.slow
def test_hostile_files_get_the_same_answers(hostile_images):
    files = sorted(path for path in hostile_images.rglob("*") if path.is_file())
    with Engine.load() as plain, Engine.load(isolate=Isolation()) as isolated:
        assert list(isolated.predict_many(files)) == list(plain.predict_many(files))


@pytest.mark.slow
@pytest.mark.parametrize("fault", MEMORY | FAULTS)
def test_a_fault_costs_its_own_picture(planted, jpeg, fault):
    kind, message = (MEMORY | FAULTS)[fault]
    limits = replace(LIMITS, seconds=1.0)  # each that hangs is waited for twice
    with Engine.load(workers=2) as plain, Engine.load(isolate=limits, workers=2) as isolated:
        (good,) = plain.predict_many([jpeg])
        sources = [jpeg] * 20
        for place in (0, 7, 8, 19):
            sources[place] = jpeg + fault.encode()
        answers = list(isolated.predict_many(sources))
    assert [place for place, answer in enumerate(answers) if isinstance(answer, Failure)] == [0, 7, 8, 19]
    for answer in answers:
        if isinstance(answer, Failure):
            assert answer.kind is kind
            assert message in answer.message
        else:
            assert answer == good


def test_predict_raises_what_the_worker_did(planted, jpeg):
    with Engine.load(isolate=LIMITS) as engine:
        with pytest.raises(SourceError, match="died of SIGSEGV") as caught:
            engine.predict(jpeg + b"segfault")
        assert caught.value.kind is Kind.CRASHED
        assert isinstance(engine.predict(jpeg), Prediction)


def test_a_picture_is_not_blamed_for_an_earlier_one(planted, jpeg):
    """The poison breaks its worker silently; every picture after it must be answered all the same."""
    with Engine.load(isolate=LIMITS, workers=1) as engine:
        for source in [jpeg, jpeg + b"poisons_", jpeg, jpeg, jpeg + b"poisons_", jpeg]:
            assert engine.predict(source).label == "happy"


def test_a_worker_writes_no_files(planted, jpeg, tmp_path, monkeypatch):
    monkeypatch.setenv("FMENGINE_TEST_FILE", str(tmp_path / "written"))
    with Engine.load(isolate=LIMITS) as engine:
        engine.predict(jpeg + b"writes__")
    assert (tmp_path / "written").stat().st_size == 0


def test_an_unforeseen_error_of_one_decoder_leaves_it_to_the_other(planted, jpeg):
    with Engine.load(isolate=LIMITS) as engine:
        assert engine.predict(jpeg + b"raises__").probabilities == engine.predict(jpeg).probabilities


@pytest.mark.slow
def test_sixteen_threads_with_faults_mixed_in(planted, jpeg):
    before = workers()
    with Engine.load(isolate=LIMITS, workers=4) as engine:
        expected = engine.predict(jpeg)
        wrong: list[object] = []

        def ask(number: int) -> None:
            for turn in range(20):
                bad = (number + turn) % 7 == 0
                try:
                    answer = engine.predict(jpeg + (b"segfault" if bad else b""))
                    if bad or answer != expected:
                        wrong.append(answer)
                except SourceError as error:
                    if not bad or error.kind is not Kind.CRASHED:
                        wrong.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, len(workers() - before))
            time.sleep(0.01)
        assert not wrong
        assert 0 < most <= 8, "four, each of which may be about to be replaced"


def test_workers_end_with_the_engine(jpeg):
    before = children()
    with Engine.load(isolate=LIMITS, workers=2) as engine:
        list(engine.predict_many([jpeg] * 40))
        assert children() > before
    assert children() == before


@pytest.mark.slow
def test_workers_end_when_the_engine_is_killed(planted, jpeg, tmp_path):
    """Also one that hangs in its decoder: nobody is left to end it."""
    (tmp_path / "hang.jpg").write_bytes(jpeg + b"hang____")
    program = (
        "import sys; from fmengine import Engine, Isolation; engine = Engine.load(isolate=Isolation(seconds=1)); "
    )
    program += "engine.predict(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "hang.jpg"])
    found: set[int] = set()
    while not found and process.poll() is None:
        for server in children(process.pid):
            found |= {server, *children(server)} if children(server) else set()
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert found
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in found):
        assert time.monotonic() < deadline, "a worker outlives its engine"
        time.sleep(0.05)


def test_a_worker_has_less_than_the_engine(jpeg):
    before, (soft, hard) = workers(), resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    with Engine.load(isolate=LIMITS, workers=1) as engine:
        engine.predict(jpeg)
        (worker,) = workers() - before
        assert os.getpgid(worker) != os.getpgrp(), "Ctrl-C is for the engine"
        assert resource.prlimit(worker, resource.RLIMIT_CORE)[0] == 0
        assert resource.prlimit(worker, resource.RLIMIT_FSIZE)[0] == 0
        assert resource.prlimit(worker, resource.RLIMIT_AS)[0] < 4 * 1024**3
        assert Path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "1000"
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_a_limit_that_the_process_has_is_kept(monkeypatch):
    """Only root may raise it: a worker that tried would not start."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    for most in (5 * 1024**3, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, most=most: (most, most))
        limit_memory(1024**4)
    assert limits[0] == (5 * 1024**3, 5 * 1024**3)
    assert limits[1][0] == limits[1][1] > 1024**4


def test_a_worker_imports_nothing_from_the_current_folder(jpeg, tmp_path, monkeypatch):
    for name in ("json", "sys", "numpy", "PIL", "simplejpeg", "fmengine"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    with Engine.load(isolate=LIMITS) as engine:
        assert engine.predict(jpeg).label == "happy"


def test_modules_are_found_whatever_is_in_the_path(jpeg, tmp_path, monkeypatch):
    """Python passes over what is no text there, and so must a worker: what lies below is not to be imported."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken from a folder that Python does not look into')")
    odd = [tmp_path, os.fsencode(tmp_path), None, 7, object(), ["a"], float("nan"), "\udcff"]
    with Engine.load(isolate=LIMITS) as engine:
        monkeypatch.setattr(sys, "path", [*odd, *sys.path])
        assert engine.predict(jpeg).label == "happy"


def test_a_path_is_that_of_the_current_folder_now(jpeg, tmp_path, monkeypatch):
    with Engine.load(isolate=LIMITS) as engine:
        engine.predict(jpeg)
        monkeypatch.chdir(tmp_path)
        Path("here.jpg").write_bytes(jpeg)
        assert engine.predict("here.jpg").label == "happy"


def test_a_worker_that_cannot_start_is_no_fault_of_a_picture(jpeg, monkeypatch):
    with Engine.load(isolate=LIMITS) as engine:
        for program, says in (("/bin/false", "ended with 1"), ("/missing", "cannot start")):
            monkeypatch.setattr(sys, "executable", program)
            with pytest.raises(UnavailableError, match=says):
                engine.predict(jpeg)
        monkeypatch.undo()
        assert engine.predict(jpeg).label == "happy"


@pytest.mark.slow
def test_a_read_that_stalls_is_a_timeout(jpeg, tmp_path, monkeypatch):
    """As on a network drive that went away: the worker sleeps in `read`, whatever signal it is sent but one."""
    stalling = """
        import os, time
        whole = os.open
        def open_(path, *arguments, **more):
            if os.fsencode(path).endswith(b"stalls.jpg"): time.sleep(3600)
            return whole(path, *arguments, **more)
        os.open = open_
    """
    for name, value in plant(stalling, tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    paths = [tmp_path / name for name in ("a.jpg", "stalls.jpg", "b.jpg")]
    for path in paths:
        path.write_bytes(jpeg)
    with Engine.load(isolate=LIMITS) as engine:
        answers = list(engine.predict_many(paths))
    assert [getattr(answer, "kind", None) for answer in answers] == [None, Kind.TIMEOUT, None]


@pytest.mark.parametrize(
    "limits",
    [{"seconds": 0}, {"seconds": -1.0}, {"seconds": float("nan")}, {"seconds": float("inf")}, {"memory": 0}],
)
def test_limits_that_nothing_passes_are_refused(limits):
    with pytest.raises(ValueError, match="expected more than 0"):
        Isolation(**limits)


def test_a_gpu_decodes_nothing_in_isolation():
    with pytest.raises(ValueError, match="isolate needs jpeg 'cpu'"):
        Engine.load(jpeg="gpu", isolate=LIMITS)


def test_a_worker_that_had_no_room_is_not_kept(planted, jpeg):
    """What it could not free would count against the next picture."""
    before = workers()
    with Engine.load(isolate=LIMITS, workers=1) as engine:
        with pytest.raises(SourceError):
            engine.predict(jpeg + b"memory__")
        assert workers() == before


@pytest.mark.parametrize(("isolate", "heard"), [("None", True), ("Isolation()", False)])
def test_decoders_in_a_worker_are_not_heard(tmp_path, isolate, heard):
    """libtiff complains on the process's own stderr."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 9).save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    data[9:13] = b"\xff" * 4
    (tmp_path / "a.tif").write_bytes(data)
    program = "import sys; from fmengine import Engine, Isolation; "
    program += f"print(*Engine.load(isolate={isolate}).predict_many(sys.argv[1:]))"
    command = [sys.executable, "-c", program, tmp_path / "a.tif"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "corrupt" in done.stdout
    assert ("LZWDecode" in done.stderr) is heard


@pytest.mark.slow
def test_a_contact_sheet_is_made_in_isolation_too(planted, jpeg, tmp_path):
    """A file that changed since it was labelled, to one that crashes its decoder."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    with Engine.load(isolate=LIMITS) as engine:
        row = to_row(str(path), engine.predict(path))
        path.write_bytes(jpeg + b"segfault")
        write_report(tmp_path / "x.html", [row, row], engine.spec, {}, isolate=LIMITS)
        assert Page(tmp_path / "x.html").thumbnails == []
        path.write_bytes(jpeg)
        write_report(tmp_path / "x.html", [row, row], engine.spec, {}, isolate=LIMITS)
        assert len(Page(tmp_path / "x.html").thumbnails) == 2
        write_report(tmp_path / "x.html", [row], engine.spec, {}, Limits(max_pixels=100))
        assert Page(tmp_path / "x.html").thumbnails == []


@pytest.mark.slow
def test_a_contact_sheet_takes_what_its_limits_allow(tmp_path):
    """Beyond where Pillow refuses by itself, in a worker that made no network's input before."""
    Image.new("1", (15_000, 12_000)).save(tmp_path / "large.png")
    row = {"path": str(tmp_path / "large.png"), "label": "sad", "confidence": 0.75, "reason": None, "error": None}
    row["probabilities"] = {"happy": 0.25, "sad": 0.75}
    with Engine.load() as engine:
        limits = Limits(max_pixels=200_000_000)
        write_report(tmp_path / "x.html", [row], engine.spec, {}, limits, Isolation(seconds=60.0))
    assert len(Page(tmp_path / "x.html").thumbnails) == 1


@pytest.mark.slow
def test_ctrl_c_reaches_the_engine_alone(jpeg, tmp_path):
    """A terminal sends it to the whole group; a worker that obeyed would make its picture a crash."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    output = tmp_path / "x.jsonl"
    command = [sys.executable, "-m", "fmengine", "infer", "--batch", folder, "--output", output, "--isolate"]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"go on with --resume" in err
    assert '"label": null' not in output.read_text()
    assert subprocess.run([*command, "--resume"], capture_output=True, timeout=100).returncode == 0
    assert output.read_text().count("\n") == 3000
