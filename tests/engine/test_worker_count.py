"""How many workers a job takes on a machine, and the reason that is given."""

import os
import sys
from pathlib import Path

import pytest

from fmengine.errors import UnavailableError
from fmengine.pipeline import worker_count
from fmengine.pipeline.worker_count import WORKER_BYTES, choose_worker_count, find_obstacle

GIGABYTE = 1024**3


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB that are free, and no container."""
    monkeypatch.setattr(worker_count, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(worker_count, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3.12")
    (tmp_path / "cgroup").mkdir()
    say_free(tmp_path, 8 * GIGABYTE)
    return tmp_path


def say_free(machine: Path, size: int) -> None:
    (machine / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {size // 1024} kB\n")


def say_container(machine: Path, limit: object, used: int = 0, cached: int = 0) -> None:
    (machine / "cgroup" / "memory.max").write_text(f"{limit}\n")
    (machine / "cgroup" / "memory.current").write_text(f"{used}\n")
    text = (
        f"anon {used - cached}\nfile {cached}\nactive_file {cached // 2}\ninactive_file {cached - cached // 2}\n"
    )
    (machine / "cgroup" / "memory.stat").write_text(text)


def test_one_a_core() -> None:
    assert choose_worker_count("auto", 16) == (16, "one a core")


def test_a_number_is_taken_as_it_is(machine: Path) -> None:
    say_free(machine, 0)
    assert choose_worker_count(5, 2) == (5, "as many as were asked for")
    assert choose_worker_count(1, 1) == (1, "as many as were asked for")


def test_threads_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert choose_worker_count("threads", 8) == (0, "threads were asked for")


def test_one_core_is_left_to_the_engines_process() -> None:
    assert choose_worker_count("auto", 1) == (0, "it has one core, which its process takes")
    assert choose_worker_count("auto", 1, isolated=True) == (1, "one a core")


@pytest.mark.parametrize(("room", "number"), [(0, 0), (1, 0), (2, 2), (7, 7), (8, 8), (100, 8)])
def test_memory(machine: Path, room: int, number: int) -> None:
    say_free(machine, room * WORKER_BYTES + 4096)
    found = choose_worker_count("auto", 8)
    assert found.number == number
    assert found.reason == ("one a core" if room >= 8 else f"memory is free for {room}, of 128 MB each")
    assert choose_worker_count("auto", 8, isolated=True).number == 8, (
        "threads must not decode, however little there is"
    )


@pytest.mark.parametrize(
    ("limit", "used", "cached", "number"),
    [
        ("max", 10 * GIGABYTE, 0, 8),
        (4 * WORKER_BYTES, 0, 0, 4),
        (4 * WORKER_BYTES, 2 * WORKER_BYTES, 0, 2),
        (4 * WORKER_BYTES, 4 * WORKER_BYTES, 0, 0),
        (4 * WORKER_BYTES, 5 * WORKER_BYTES, 0, 0),
        (4 * WORKER_BYTES, 4 * WORKER_BYTES, 3 * WORKER_BYTES, 3),
        (100 * GIGABYTE, GIGABYTE, 0, 8),
    ],
)
def test_memory_of_a_container(machine: Path, limit: object, used: int, cached: int, number: int) -> None:
    """What it only caches of files, as after it read all pictures once, is free."""
    say_container(machine, limit, used, cached)
    assert choose_worker_count("auto", 8).number == number


def test_a_system_that_does_not_say_how_much_is_free(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert choose_worker_count("auto", 8) == (8, "one a core")
    (machine / "meminfo").write_text("no such text\n")
    assert choose_worker_count("auto", 8) == (8, "one a core")
    say_container(machine, "unheard of")
    assert choose_worker_count("auto", 8) == (8, "one a core")


@pytest.mark.parametrize(
    "program", ["/usr/bin/python3", "python", "/opt/venv/bin/python3.14t", "C/Python.exe", "/usr/bin/pypy3"]
)
def test_interpreters(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(sys, "executable", program)
    assert find_obstacle() == ""


@pytest.mark.parametrize("program", ["", None, "/usr/bin/blender", "/usr/sbin/uwsgi", "/opt/python/bin/app"])
def test_programs_that_are_none(monkeypatch: pytest.MonkeyPatch, program: str | None) -> None:
    monkeypatch.setattr(sys, "executable", program)
    assert find_obstacle().startswith(f"Python is embedded: sys.executable is {program!r}")


def test_a_frozen_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert find_obstacle().startswith("this program is frozen")


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_obstacle() == "they need Linux's memfd, and this is darwin"
    assert choose_worker_count("auto", 8) == (0, "they need Linux's memfd, and this is darwin")
    for requested, isolated in ((3, False), ("auto", True)):
        with pytest.raises(UnavailableError, match="cannot run here: they need Linux's memfd, and this is darwin"):
            choose_worker_count(requested, 8, isolated=isolated)
