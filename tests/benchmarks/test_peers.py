"""Peers: their protocol, with scripts that stand in for them, and each real script as far as it runs here."""

import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from fmengine.errors import UnavailableError
from fmengine.system.cache import Cache
from fmengine_bench import peers
from fmengine_bench.peers import HERE, PEERS, Peer, Worker, install, is_installed
from tests.params import quick_first

pytestmark = pytest.mark.timeout(120)

SCRIPT = """
import os, sys, time
sys.path.insert(0, {here!r})
from serve import Answer, Opened, main

def open_peer(options):
    print("a library's greeting")
    def answer(paths):
        if any("broken" in path for path in paths):
            raise ValueError("cannot read it")
        if paths[0].endswith("orphan"):
            child = os.fork() or os.closerange(0, 64) or time.sleep(1000)
            open(os.path.join(os.path.dirname(paths[0]), str(child)), "w").close()
            os._exit(7)
        if any("endless" in path for path in paths):
            os.fork() or time.sleep(1000)
            time.sleep(1000)
        if any("deadly" in path for path in paths):
            os._exit(7)
        return [Answer("happy", 0.75) for path in paths]
    return Opened(answer, f"with {{options['threads']}} threads", True, {{"it": "1.0"}})

main(open_peer)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stand_in.py"
    path.write_text(SCRIPT.format(here=str(HERE)))
    return path


def test_answers_come_past_what_libraries_print(script: Path) -> None:
    with Worker(PEERS["fer"], [sys.executable, str(script)]) as worker:
        description = worker.open(3, None)
        assert (description["what"], description["trained"], description["versions"]) == (
            "with 3 threads",
            True,
            {"it": "1.0"},
        )
        reply = worker.answer(["a.jpg", "b.jpg"])
        assert reply["labels"] == ["happy", "happy"]
        assert reply["seconds"] >= 0


def test_a_failure_is_reported_and_is_not_the_end(script: Path) -> None:
    with Worker(PEERS["fer"], [sys.executable, str(script)]) as worker:
        worker.open(1, None)
        with pytest.raises(UnavailableError, match="fer failed: ValueError: cannot read it"):
            worker.answer(["broken.jpg"])
        assert worker.answer(["a.jpg"])["labels"] == ["happy"]


def test_a_process_that_dies_is_an_error(script: Path) -> None:
    with Worker(PEERS["fer"], [sys.executable, str(script)]) as worker:
        worker.open(1, None)
        with pytest.raises(
            UnavailableError, match=r"fer ended with 7 without an answer; .*\na library's greeting"
        ):
            worker.answer(["deadly.jpg"])


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_with_all_that_it_forked(script: Path) -> None:
    with Worker(PEERS["fer"], [sys.executable, str(script)], patience=3) as worker:
        worker.open(1, None)
        with pytest.raises(UnavailableError, match="fer gave no answer within 3 s; it printed last:"):
            worker.answer(["endless.jpg"])
    assert worker._process.returncode == -signal.SIGKILL  # what it forked holds its pipe, and would be waited for


def test_a_script_with_processes_of_its_own_ends(tmp_path: Path) -> None:
    path = tmp_path / "forks.py"
    forking = SCRIPT.replace("    return Opened(", "    pool.submit(os.getpid).result()\n    return Opened(")
    forking = forking.replace("def open_peer", "from concurrent.futures import ProcessPoolExecutor\ndef open_peer")
    forking = forking.replace("    def answer", "    pool = ProcessPoolExecutor(2)\n    def answer")
    path.write_text(forking.format(here=str(HERE)))
    worker = Worker(PEERS["fer"], [sys.executable, str(path)])
    with worker:
        worker.open(1, None)
    assert worker._process.returncode == 0  # by itself, and so its pool is gone too


def test_a_whole_job_from_the_shell(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b.jpg", "a.jpg"):
        (folder / name).write_bytes(b"")
    output = tmp_path / "rows.jsonl"
    subprocess.run([sys.executable, script, folder, output, "--threads", "1"], check=True, timeout=60)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [os.path.basename(row["path"]) for row in rows] == ["a.jpg", "b.jpg"]
    assert rows[0]["label"] == "happy"


def network(path: Path) -> Path:
    """A network that answers with the means of the first two channels, as probabilities."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float", "axes"], ["means"], keepdims=0),
            helper.make_node("Gather", ["means", "two"], ["logits"], axis=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "means",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("logits", "probabilities")],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("two", TensorProto.INT64, [2], [0, 1]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("library", quick_first(["onnxruntime", "openvino"]))
def test_the_full_alexnets_script_runs_a_network(library: str, tmp_path: Path) -> None:
    paths = []
    for name, color in (("red", (100, 50, 0)), ("green", (0, 200, 0))):
        Image.fromarray(np.full((50, 40, 3), color, dtype=np.uint8)).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    (tmp_path / "broken.png").write_bytes(b"broken")
    with Worker(PEERS[library], [sys.executable, str(HERE / PEERS[library].script)]) as worker:
        description = worker.open(1, network(tmp_path / "means.onnx"))
        assert library in description["versions"]
        assert not description["trained"]
        assert worker.answer(paths * 40)["labels"] == ["happy", "sad"] * 40
        assert worker.answer([paths[0], str(tmp_path / "broken.png"), paths[1]])["labels"] == [
            "happy",
            None,
            "sad",
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "torch-fp16"])
def test_pytorchs_script_answers_and_one_broken_picture_costs_itself(name: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((50, 40, 3), 90, dtype=np.uint8)).save(tmp_path / "gray.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with Worker(PEERS[name], [sys.executable, str(HERE / PEERS[name].script)]) as worker:
        description = worker.open(1, None)
        assert f"{'FP16' if name == 'torch-fp16' else 'FP32'}, eager, CPU" in description["what"]
        known, unread = worker.answer([str(tmp_path / "gray.png"), str(tmp_path / "broken.jpg")])["labels"]
    assert known in ("happy", "sad")
    assert unread is None


@pytest.mark.parametrize("name", PEERS)
def test_every_script_is_there_and_can_be_read(name: str, tmp_path: Path) -> None:
    script = HERE / PEERS[name].script
    if not PEERS[name].node:
        py_compile.compile(str(script), str(tmp_path / "compiled"), doraise=True)
    elif shutil.which("node") is None:
        pytest.skip("no node")
    else:
        subprocess.run(["node", "--check", script], check=True, timeout=60)


@pytest.mark.slow
def test_what_cannot_be_installed_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FMENGINE_CACHE", str(tmp_path / "cache"))
    peer = Peer("none", "torch_alexnet.py", "none", ("./no-such-folder-of-a-package",))
    before = os.umask(0o002)  # as some systems have it, where a user's group is theirs alone
    try:
        with pytest.raises(UnavailableError, match="cannot install none"):
            install(peer)
    finally:
        os.umask(before)
    assert not is_installed(peer)
    assert not peers.find_folder(peer).exists()
    Cache().store("test", {}, b"")  # the folder is one that the engine trusts


def test_peers_are_in_the_engines_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FMENGINE_CACHE", str(tmp_path / "of-its-own"))
    assert peers.find_folder(PEERS["fer"]) == tmp_path / "of-its-own" / "peers" / "fer"
    monkeypatch.delenv("FMENGINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert peers.find_folder(PEERS["fer"]) == tmp_path / "fmengine" / "peers" / "fer"


def test_names_of_peers_are_taken_once_each() -> None:
    assert peers.parse_names(" torch,fer,, torch ,") == ["torch", "fer"]
    assert peers.parse_names("") == []


def test_a_peer_runs_where_ours_does_if_it_can() -> None:
    select_device = peers.select_device
    assert [select_device(PEERS["torch"], device) for device in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]
    assert select_device(PEERS["openvino"], "cuda:1") == "cpu"
    assert select_device(PEERS["onnxruntime-cuda"], "cuda:0") == "cuda:0"
    with pytest.raises(UnavailableError, match="onnxruntime-cuda runs on a GPU alone, and cpu was requested"):
        select_device(PEERS["onnxruntime-cuda"], "cpu")


def test_what_a_script_forked_does_not_outlive_it(script: Path, tmp_path: Path) -> None:
    with Worker(PEERS["fer"], [sys.executable, str(script)]) as worker:
        worker.open(1, None)
        with pytest.raises(UnavailableError, match="ended with 7"):
            worker.answer([f"{tmp_path}/orphan"])
        (child,) = (int(name) for name in os.listdir(tmp_path) if name.isdigit())
        assert not gone(child)
    while not gone(child):  # the kernel takes its time, and the test's own limit ends a wait in vain
        time.sleep(0.02)


def gone(process: int) -> bool:
    """Ended, though its exit status may not have been read yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
