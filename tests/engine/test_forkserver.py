"""Fork servers: one has nothing of the process that forked or started it, and ends with it."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.engine.processes import children, is_running, start_workers, wait_until

from fmengine import Engine
from fmengine.cli.run import LONG_JOB
from fmengine.pipeline import forkserver

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, portrait) -> Path:
    """A job that is just long enough."""
    folder = tmp_path_factory.mktemp("long")
    for number in range(LONG_JOB):
        os.link(portrait, folder / f"{number}.png") if number else (folder / "0.png").write_bytes(
            portrait.read_bytes()
        )
        if not number:
            portrait = folder / "0.png"
    return folder


@pytest.fixture
def job(folder, tmp_path):
    """`infer` at work, and its output."""
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "fmengine", "infer", "--batch", folder, "--output", output, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.002)
    yield process, output
    process.kill()
    process.wait()


def get_server(process: subprocess.Popen) -> int:
    """Return the one child that a job has, which is the server."""
    (server,) = children(process.pid)
    return server


def test_it_is_forked_and_has_no_file_of_its_process(job):
    process, _ = job
    server = get_server(process)
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert Path(f"/proc/{server}/cmdline").read_bytes() == command, "forked, and not started anew"
    files = {os.readlink(link) for link in Path(f"/proc/{server}/fd").iterdir()}
    assert not [
        name for name in files if name.startswith("/") and name not in ("/dev/null", "/memfd:fmengine (deleted)")
    ]
    assert os.getsid(server) != os.getsid(process.pid), "Ctrl-C is for the engine"


def test_it_ends_with_its_process_which_can_be_resumed_at_once(job, folder):
    """It would hold the lock of the output file otherwise."""
    process, output = job
    started = {server := get_server(process), *children(server)}
    process.kill()
    process.wait()
    command = [sys.executable, "-m", "fmengine", "infer", "--batch", folder, "--output", output, "--resume"]
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 0
    assert sum(1 for _ in map(json.loads, output.open())) == LONG_JOB
    wait_until(lambda: not any(map(is_running, started)), "end of the server and its workers")


def test_one_that_is_started_has_no_file_of_its_process_either(tmp_path):
    """Libraries in C leave theirs inheritable, such as the socket of a web server."""
    with open(tmp_path / "file", "w") as file, Engine.load(workers=1) as engine:
        os.set_inheritable(file.fileno(), True)
        start_workers(engine, 1)
        for process in engine.list_processes():
            files = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}
            files = {name for name in files if name.startswith("/") and not name.startswith("/memfd:")}
            assert files == {"/dev/null"}
            assert os.getsid(process) != os.getsid(0), "Ctrl-C is for the engine"


def test_beside_other_threads_nothing_is_forked(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked beside another thread"))
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        forkserver.fork_ahead()
    finally:
        release.set()
        thread.join()
    assert forkserver._ahead == []


def test_without_room_for_a_process_it_is_started_later(monkeypatch):
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    forkserver.fork_ahead()
    assert forkserver._ahead == []
