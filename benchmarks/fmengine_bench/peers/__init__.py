"""Runs the systems that `fmengine bench --against` measures: each a small script in an environment of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fmengine.errors import FmengineError, UnavailableError
from fmengine.system.cache import find_cache_folder

HERE = Path(__file__).parent
# Seconds: to end by itself; to load and compile, or to answer before it counts as hanging.
ENDING, PATIENCE = 10, 1200
MAX_STDERR = 2000  # bytes of what a script printed last, for its error


@dataclass(frozen=True)
class Peer:
    """One system.

    Attributes:
        name: for `--against`.
        script: that runs it, in this folder.
        environment: its folder's name; peers may share one.
        packages: for pip, or for npm where the script is JavaScript.
        options: that the script is opened with.
        devices: that it can run on, `cpu` and `cuda`.
    """

    name: str
    script: str
    environment: str
    packages: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)

    @property
    def node(self) -> bool:
        return self.script.endswith(".mjs")


TORCH = ("torch>=2.6", "torchvision>=0.21")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "torch_alexnet.py", "torch", TORCH, {}, ("cpu", "cuda")),
        Peer("torch-compile", "torch_alexnet.py", "torch", TORCH, {"compile": True}, ("cpu", "cuda")),
        Peer("torch-fp16", "torch_alexnet.py", "torch", TORCH, {"half": True}, ("cpu", "cuda")),
        Peer(
            "onnxruntime", "onnx_alexnet.py", "onnxruntime", ("onnxruntime", "pillow"), {"library": "onnxruntime"}
        ),
        Peer(
            "onnxruntime-cuda",
            "onnx_alexnet.py",
            "onnxruntime-cuda",
            ("onnxruntime-gpu[cuda,cudnn]>=1.21", "pillow"),
            {"library": "onnxruntime"},
            ("cuda",),
        ),
        Peer("openvino", "onnx_alexnet.py", "openvino", ("openvino", "pillow"), {"library": "openvino"}),
        Peer("fer", "fer_package.py", "fer", ("fer==25.10.3", "tensorflow", "setuptools<81")),
        Peer(
            "face-api",
            "face_api.mjs",
            "face-api",
            ("@vladmandic/face-api@1", "@tensorflow/tfjs@4", "@tensorflow/tfjs-backend-wasm@4", "jpeg-js"),
        ),
    )
}


# Those that bring a detector of their own, on photographs.
SCENE_PEERS = {name: replace(PEERS[name], options={"scenes": True}) for name in ("face-api", "fer")}


def parse_names(text: str) -> list[str]:
    """Split a text into the names between commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def check_peers(names: Sequence[str], device: str | None = None) -> None:
    """Check before the first measurement that every peer can take part.

    Args:
        names: of the peers.
        device: that ours runs on, `cpu` or `cuda:N`; None while that is not known.

    Raises:
        FmengineError: for one that is unknown.
        UnavailableError: for one that is not installed, or needs a GPU that ours is not on.
    """
    for name in names:
        if name not in PEERS:
            raise FmengineError(f"unknown peer {name!r}; available are {', '.join(PEERS)}")
    for name in names:
        if device is not None:
            select_device(PEERS[name], device)
        if not is_installed(PEERS[name]):
            raise UnavailableError(f"{name} is not installed; run: fmengine bench install {name}")


def find_folder(peer: Peer) -> Path:
    """Find the folder of a peer's environment."""
    return find_cache_folder() / "peers" / peer.environment


def select_device(peer: Peer, device: str) -> str:
    """Select the device that a peer runs on beside something on a device, `cpu` or `cuda:N`.

    Raises:
        UnavailableError: if it needs a GPU and that is none.
    """
    if device.partition(":")[0] in peer.devices:
        return device
    if "cpu" in peer.devices:
        return "cpu"
    raise UnavailableError(f"{peer.name} runs on a GPU alone, and {device} was requested; leave it out")


def is_installed(peer: Peer) -> bool:
    folder = find_folder(peer)
    return (
        (folder / "node_modules" / peer.packages[0].rsplit("@", 1)[0]).exists()
        if peer.node
        else find_python(peer).exists()
    )


def install(peer: Peer) -> None:
    """Make a peer's environment anew.

    Raises:
        UnavailableError: if pip or npm fails, with what it printed.
    """
    folder = find_folder(peer)
    shutil.rmtree(folder, ignore_errors=True)
    find_cache_folder().mkdir(
        mode=0o700, parents=True, exist_ok=True
    )  # the engine trusts no folder of another user's
    folder.mkdir(parents=True)
    if peer.node:
        commands = [["npm", "install", "--no-audit", "--no-fund", *peer.packages]]
    else:
        pip = [
            str(find_python(peer)),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            *peer.packages,
        ]
        commands = [[sys.executable, "-m", "venv", str(folder)], pip]
    for command in commands:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UnavailableError(f"{peer.name} needs {command[0]}, which is not installed: {error}") from error
        if done.returncode:
            shutil.rmtree(folder)
            raise UnavailableError(f"cannot install {peer.name}: {' '.join(command)}\n{done.stderr.strip()}")


def find_python(peer: Peer) -> Path:
    return find_folder(peer) / "bin" / "python"


def build_command(peer: Peer) -> list[str]:
    """Build the command that starts a peer's script."""
    return ["node" if peer.node else str(find_python(peer)), str(HERE / peer.script)]


class Worker:
    """Runs a peer's process, which answers on request. A context manager.

    Args:
        peer: that is to be run.
        command: instead of the peer's own.
        patience: seconds to wait for an answer.
    """

    def __init__(self, peer: Peer, command: Sequence[str] | None = None, patience: float = PATIENCE) -> None:
        self._peer, self._patience, self._late = peer, patience, False
        command = command or build_command(peer)
        folder = find_folder(peer)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the exit
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                start_new_session=True,
                cwd=folder if folder.is_dir() else None,
            )
        except FileNotFoundError as error:
            self._stderr.close()
            raise UnavailableError(f"{peer.name} needs {command[0]}, which is not there: {error}") from error

    def open(self, threads: int, model: Path | None, device: str = "cpu") -> dict[str, Any]:
        """Make it ready; return how it is run, whether its weights are trained, and its versions.

        Args:
            threads: to compute and to decode with.
            model: ONNX file, for those that run one.
            device: `cpu`, or `cuda:N` for those that run on a GPU.
        """
        request = {"do": "open", "threads": threads, "model": model and str(model), "device": device}
        return self._request(request | self._peer.options)

    def answer(self, paths: Sequence[str]) -> dict[str, Any]:
        """Return the labels of picture files, None where it cannot read one, and the seconds that it took."""
        return self._request({"do": "answer", "paths": [os.path.abspath(path) for path in paths]})

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            UnavailableError: if the process ends, fails or gives no reply in time.
        """
        assert self._process.stdin
        assert self._process.stdout
        over = threading.Timer(self._patience, self._give_up)
        over.daemon = True
        over.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            over.cancel()
        if not line:
            code = self._process.wait()
            what = f"ended with {code} without an answer"
            if self._late:
                what = f"gave no answer within {self._patience:g} s"
            raise UnavailableError(f"{self._peer.name} {what}; it printed last:\n{self._read_stderr()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise UnavailableError(f"{self._peer.name} failed: {reply['error']}")
        return reply

    def _give_up(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with what it forked, which may hold its pipes

    def _read_stderr(self) -> str:
        """Read the end of what the script printed."""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(-min(MAX_STDERR, self._stderr.tell()), os.SEEK_END)
        return self._stderr.read().decode(errors="replace").strip() or "nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.close()  # the script ends at the end of its input, and its pool with it
            self._process.wait(timeout=ENDING)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        finally:
            self._kill()  # what it forked, too, where it ended without them
            self._process.wait()
        self._stderr.close()
        self._process.stdout.close()  # not `communicate`: processes that a script forked may hold the pipe open
