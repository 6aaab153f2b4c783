"""Systems that `fmengine bench --against` measures: each a small script in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fmengine.errors import UnavailableError

HERE = Path(__file__).parent
ENDING = 10  # seconds that a script has to end by itself


@dataclass(frozen=True)
class Peer:
    """One system.

    Attributes:
        name: for `--against`.
        script: that runs it, in this folder.
        environment: its folder's name; peers may share one.
        packages: for pip, or for npm where the script is JavaScript.
        options: that the script is opened with.
    """

    name: str
    script: str
    environment: str
    packages: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> bool:
        return self.script.endswith(".mjs")


TORCH = ("torch>=2.6", "torchvision>=0.21")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "torch_alexnet.py", "torch", TORCH),
        Peer("torch-compile", "torch_alexnet.py", "torch", TORCH, {"compile": True}),
        Peer(
            "onnxruntime", "onnx_alexnet.py", "onnxruntime", ("onnxruntime", "pillow"), {"library": "onnxruntime"}
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


def folder_of(peer: Peer) -> Path:
    """Where its environment is."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fmengine" / "peers" / peer.environment


def installed(peer: Peer) -> bool:
    folder = folder_of(peer)
    return (
        (folder / "node_modules" / peer.packages[0].rsplit("@", 1)[0]).exists()
        if peer.node
        else python_of(peer).exists()
    )


def install(peer: Peer) -> None:
    """Make its environment anew.

    Raises:
        UnavailableError: if pip or npm fails, with what it said.
    """
    folder = folder_of(peer)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if peer.node:
        commands = [["npm", "install", "--no-audit", "--no-fund", *peer.packages]]
    else:
        pip = [
            str(python_of(peer)),
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


def python_of(peer: Peer) -> Path:
    return folder_of(peer) / "bin" / "python"


def command_of(peer: Peer) -> list[str]:
    """What starts its script."""
    return ["node" if peer.node else str(python_of(peer)), str(HERE / peer.script)]


class Worker:
    """A peer's process, which answers on request. A context manager.

    Args:
        peer: that is to be run.
        command: instead of the peer's own.
    """

    def __init__(self, peer: Peer, command: Sequence[str] | None = None) -> None:
        self._peer = peer
        command = command or command_of(peer)
        folder = folder_of(peer)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=folder if folder.is_dir() else None,
            )
        except FileNotFoundError as error:
            raise UnavailableError(f"{peer.name} needs {command[0]}, which is not there: {error}") from error

    def open(self, threads: int, model: Path | None) -> dict[str, Any]:
        """Make it ready: how it is run, whether its weights are trained, and its versions."""
        return self._ask({"do": "open", "threads": threads, "model": model and str(model), **self._peer.options})

    def answer(self, paths: Sequence[str]) -> dict[str, Any]:
        """The labels of picture files, and the seconds that it took."""
        return self._ask({"do": "answer", "paths": [os.path.abspath(path) for path in paths]})

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise UnavailableError(
                f"{self._peer.name} ended with {code} without an answer; run it by hand to see why"
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise UnavailableError(f"{self._peer.name} failed: {reply['error']}")
        return reply

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
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # not `communicate`: processes that a script forked may hold the pipe open
