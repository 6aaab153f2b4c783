"""The executor's contract on the CPU: every body, dropped at the interpreter's end, and after a fork."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract import CHECKS

from fmengine import Engine, Isolation
from fmengine.pipeline.executor import InlineExecutor, ThreadExecutor
from fmengine.pipeline.process_executor import ProcessExecutor

pytestmark = pytest.mark.timeout(180)

BODIES = {
    "inline": {"threads": 1},
    "threads": {"threads": 2, "workers": "threads"},
    "processes": {"threads": 2, "workers": 2},
    "isolated": {"threads": 2, "isolate": Isolation()},
    "openvino": {"threads": 2, "workers": "threads", "backend": "openvino"},
}


# These have quick tests of their own besides (test_workers.py, test_isolation.py, test_openvino.py).
SLOW = ("processes", "isolated", "openvino")
EXPECTED = {"inline": InlineExecutor, "processes": ProcessExecutor, "isolated": ProcessExecutor}


@pytest.fixture(params=[pytest.param(body, marks=[pytest.mark.slow] * (body in SLOW)) for body in BODIES])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with Engine.load(**{"backend": "onnxruntime"} | BODIES[request.param]) as engine:
        expected = EXPECTED.get(request.param, ThreadExecutor)
        assert type(engine._make_executor(iter([]), 64, None)) is expected
        yield engine


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_contract(check: Callable[[Engine, Path], None], engine: Engine, portrait: Path) -> None:
    check(engine, portrait)


# At the interpreter's end, and after a fork. Each script runs in a process of its own, which must not hang.

BEGIN = """
import os, signal, sys, threading, time
from itertools import count
import numpy as np
from fmengine import Engine, FmengineError, Isolation
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
frame = np.random.default_rng(1).integers(0, 256, (48, 48), np.uint8)
"""


def run(script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    code = BEGIN + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize("threads", [pytest.param("1", marks=pytest.mark.slow), "2"])
@pytest.mark.parametrize("how", ["at the end", "within the engine", "blocked camera", "interrupted", "exit"])
def test_the_interpreter_ends_with_a_stream_that_was_dropped_half_read(how: str, threads: str) -> None:
    done = run(
        """
        how, threads = sys.argv[1], int(sys.argv[2])
        engine = Engine.load(backend="onnxruntime", threads=threads)

        def camera():
            yield frame
            if how == "blocked camera":
                threading.Event().wait()
            while True:
                yield frame

        try:
            other = Engine.load(backend="onnxruntime", threads=threads)
            with engine if how == "within the engine" else other as used:
                stream = used.predict_many(camera())
                print(next(stream).label)
                if how == "interrupted":
                    signal.raise_signal(signal.SIGINT)
                if how == "exit":
                    sys.exit(0)
        except KeyboardInterrupt:
            print("interrupted")
        stream = engine.predict_many(camera()) if how == "at the end" else stream
        if how == "at the end":
            next(stream)
        """,
        how,
        threads,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] in ("happy", "sad")


FORKED = """
backend, isolate = sys.argv[1], sys.argv[2] == "isolated"
engine = Engine.load(backend=backend, threads=2, isolate=Isolation() if isolate else None)
import io
from PIL import Image
pictures = []
for number in range(40):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 48), np.uint8)).save(file, "PNG")
    pictures.append(file.getvalue())
expected = [engine.predict(picture).probabilities for picture in pictures]
assert [a.probabilities for a in engine.predict_many(pictures)] == expected
import asyncio
async def ask(pictures):
    return [(await engine.apredict(picture)).probabilities for picture in pictures]
asyncio.run(ask(pictures[:3]))
half_read = engine.predict_many(pictures * 20)
next(half_read)

def use():
    for _ in range(3):
        assert [engine.predict(picture).probabilities for picture in pictures] == expected
        assert [a.probabilities for a in engine.predict_many(pictures)] == expected
        assert [a.probabilities for a in engine.predict_many(iter(pictures))] == expected
        assert asyncio.run(ask(pictures)) == expected
"""


@pytest.mark.slow
@pytest.mark.parametrize("isolate", ["", "isolated"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_after_a_fork_parent_and_children_answer_right(backend: str, isolate: str) -> None:
    pytest.importorskip(backend)
    done = run(
        FORKED
        + textwrap.dedent(
            """
            children = []
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    signal.alarm(100)
                    try:
                        use()
                        engine.backend.run(np.zeros(engine.spec.input_shape(3), np.uint8))
                        try:
                            list(half_read)
                        except FmengineError as error:
                            assert "after a fork" in str(error), error
                        else:
                            raise AssertionError("the parent's stream goes on in the child")
                        engine.close()
                    except BaseException:
                        import traceback
                        traceback.print_exc()
                        sys.stderr.flush()
                        os._exit(1)
                    os._exit(0)
                children.append(child)
            use()
            for child in children:
                _, status = os.waitpid(child, 0)
                assert status == 0, status
            assert len(list(half_read)) == 799
            """
        ),
        backend,
        isolate,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_forked_child_that_does_not_use_the_engine_ends(backend: str) -> None:
    pytest.importorskip(backend)
    done = run(
        FORKED
        + textwrap.dedent(
            """
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                sys.exit(0)
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            """
        ),
        backend,
        "",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_engine_works_in_a_process_pool_that_forks() -> None:
    done = run(
        """
        import multiprocessing
        engine = Engine.load(backend="onnxruntime", threads=2)
        list(engine.predict_many([frame] * 10))

        def work(_):
            return [answer.confidence for answer in engine.predict_many([frame] * 10)]

        with multiprocessing.get_context("fork").Pool(3) as pool:
            found = pool.map(work, range(6))
        assert found == 6 * [10 * [engine.predict(frame).confidence]]
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_a_list_on_stdin_is_answered_as_it_comes(portrait: Path, json: list[str]) -> None:
    """As behind `tail -f`: every path has its row before the next one comes, and Ctrl-C ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fmengine", "infer", "-", "--backend", "onnxruntime", *json],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for _ in range(3):
            process.stdin.write(f"{portrait}\n")
            process.stdin.flush()
            assert "happy" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert process.stderr is not None
        assert process.stderr.read().strip() == "fmengine: interrupted"
    assert process.returncode == 130
