"""What `doctor` tells of GPUs, by a tool that does not always answer in the same way, and of worker processes."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engine.command_line import run

from fmengine.backend.diagnose import describe_environment
from fmengine.cli.doctor import _word_workers
from fmengine.model.file import load_model_file, resolve
from fmengine.pipeline import trial, workers
from fmengine.pipeline.trial import draw_picture, try_workers
from fmengine.system.memory import read_pss

SENTENCE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64, 580.159.04, Release Build (a@b, gcc 12.2)"


@pytest.mark.parametrize(("told", "version"), [("570.86.10", "570.86.10"), (SENTENCE, "580.159.04")])
def test_a_driver_is_told_by_its_version(
    told: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some machines answer with a sentence, with commas in it, where others have a number."""
    tool = tmp_path / "nvidia-smi"
    # It answers what it is asked for, in that order.
    tool.write_text(
        "#!/bin/sh\n"
        "for field in $(echo ${1#--query-gpu=} | tr , ' '); do\n"
        f"  case $field in driver_version) value='{told}';; name) value='Card';; *) value=\"<$field>\";; esac\n"
        '  printf "%s%s" "$comma" "$value"; comma=", "\n'
        "done\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    described = describe_environment()["gpu 0"]
    assert described.startswith("Card, memory <memory.total>, compute capability <compute_cap>, PCIe generation ")
    assert described.endswith(f", of at most <clocks.max.sm>, driver {version}")


@pytest.fixture(scope="module")
def model():
    return load_model_file(resolve(None, ("int8",)))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_worker_is_started_answers_and_is_ended(model, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU it decodes alone; nothing of the GPU is needed for that."""
    servers: list[Any] = []
    start = workers._start_server
    monkeypatch.setattr(workers, "_start_server", lambda setup: servers.append(start(setup)) or servers[0])
    found = try_workers("onnxruntime", model, on_gpu=on_gpu)
    assert (found.works, found.problem) == (True, "")
    assert found.first_seconds > 0
    assert found.next_seconds > 0
    assert found.memory_bytes is not None
    assert found.memory_bytes > 1024**2
    assert [server.process.poll() is None for server in servers] == [False]  # with which its workers end


def test_a_worker_that_does_not_start_says_why(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be set up" in try_workers("no such backend", model, on_gpu=False).problem
    (tmp_path / "python").symlink_to("/bin/false")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "the server of worker processes ended with 1" in try_workers("onnxruntime", model, on_gpu=True).problem
    monkeypatch.setattr(sys, "executable", "/opt/application")
    found = try_workers("onnxruntime", model, on_gpu=True)
    assert not found.works
    assert found.problem.startswith("Python is embedded")


def test_a_worker_that_cannot_read_a_picture_does_not_work(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "draw_picture", lambda: draw_picture()[:100])
    found = try_workers("onnxruntime", model, on_gpu=False)
    assert not found.works
    assert found.problem.startswith("it cannot read a picture that was drawn for it: ")


def test_doctor_tells_of_workers_and_why() -> None:
    out, _ = run("doctor")
    (line,) = [line for line in out.splitlines() if line.startswith("workers of a long job: ")]
    assert "; works: the first is ready in " in line


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "2, one a core; works: the first is ready in 320 ms, another in 40 ms, and takes 48 MB"),
        ({"memory_bytes": None}, "2, one a core; works: the first is ready in 320 ms, another in 40 ms"),
        ({"works": False, "problem": "no room"}, "2, one a core; does not work: no room"),
        ({"number": 0, "reason": "x", "works": False, "problem": "x"}, "none: x"),
    ],
)
def test_workers_are_told_in_words(told: dict[str, Any], words: str) -> None:
    found = {"number": 2, "reason": "one a core", "works": True, "problem": ""}
    found |= {"first_seconds": 0.32, "next_seconds": 0.04, "memory_bytes": 48 * 1024**2}
    assert _word_workers(found | told) == words


def test_nobody_says_what_a_process_takes_that_is_not_there() -> None:
    assert (read_pss(os.getpid()) or 0) > 1024**2
    assert read_pss(2**30) is None
