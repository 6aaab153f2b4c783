"""Where Linux's modules and calls are missing, threads work: nothing that every start needs imports them."""

import subprocess
import sys
import textwrap

import pytest
from PIL import Image

# What CPython and the libraries import for themselves is imported before: there they have their ways.
SCRIPT = """
    import os, sys
    import concurrent.futures.thread, logging, random, subprocess, threading
    import click, numpy, PIL.Image

    missing = sys.argv[1].split()
    for name in missing:
        sys.modules.pop(name, None)
        sys.modules[name] = None  # raises ImportError
    for name in ("memfd_create", "register_at_fork", "sched_getaffinity", "fork", "forkpty"):
        delattr(os, name)

    import fmengine, fmengine.cli, fmengine.cli.infer, fmengine.cli.info, fmengine.engine
    from fmengine import Engine, Isolation, UnavailableError

    picture, backend = sys.argv[2], sys.argv[3]
    with Engine.load(backend=backend) as engine:
        assert {answer.label for answer in engine.predict_many([picture] * 2100)} == {"happy"}
        assert {answer.label for answer in engine.predict_many(iter([picture] * 2100))} == {"happy"}
        assert engine.predict(picture).label == "happy"
    for options in ({"workers": 2}, {"isolate": Isolation()}):
        try:
            Engine.load(backend="onnxruntime", **options)
        except UnavailableError as error:
            assert "they need Linux's memfd" in str(error)
        else:
            raise AssertionError("there are workers")
    assert "fmengine.pipeline.workers" not in sys.modules
    assert "fmengine.pipeline.worker" not in sys.modules
    sys.argv = ["fmengine", "infer", picture, "--backend", backend]
    fmengine.cli.main()
"""
WINDOWS = "fcntl resource grp pwd termios"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "backend"),
    [
        pytest.param("", "auto", id="macOS"),
        pytest.param(WINDOWS, "onnxruntime", id="Windows"),
        pytest.param(
            WINDOWS,
            "auto",
            id="Windows, backend auto",
        ),
    ],
)
def test_a_long_list_is_answered_by_threads(portrait, missing, backend, tmp_path):
    with Image.open(portrait) as image:  # small, for it is decoded thousands of times
        image.resize((39, 48)).save(tmp_path / "face.png")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), missing, tmp_path / "face.png", backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "happy" in done.stdout
