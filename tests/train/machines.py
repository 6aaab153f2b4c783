"""Two machines with a cable between them, as network namespaces of this one. The disk is shared."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

INTERFACE = "cable"
numbers = itertools.count()


def ip(*words: str) -> str:
    """Run `ip`, and return what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Node:
    """One machine, its processes, and what they printed.

    Attributes:
        name: of the namespace.
        rank: among the machines; the first one is where the processes meet.
        folder: for its output.
    """

    name: str
    rank: int
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What was written to stdout and stderr so far."""
        return (self.folder / "output").read_text(encoding="utf-8")

    def torchrun(self, *arguments: str | Path, **environment: str) -> None:
        """Start one process that trains, with a launcher beside it."""
        module = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={self.rank}"]
        meeting = ["--nproc-per-node=1", f"--master-addr={make_address(0)}", "-m", "--", "fmengine", "train"]
        with (self.folder / "output").open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.name, *module, *meeting, *map(str, arguments)],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"GLOO_SOCKET_IFNAME": INTERFACE} | environment,
                )
            )

    def wait_for(self, text: str) -> None:
        """Wait until this is printed; fail if the process ends before that."""
        while text not in self.output:
            assert self.processes[-1].poll() is None, self.output
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait until the launcher ended, and return its exit code."""
        return self.processes[-1].wait(timeout=120)

    def kill(self) -> None:
        """End every process of this machine, without a chance to say a word."""
        while processes := ip("netns", "pids", self.name).split():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
        for launcher in self.processes:
            launcher.wait()

    def pull_cable(self) -> None:
        """Take the network away: packets are lost, and no connection is closed."""
        ip("-n", self.name, "link", "set", INTERFACE, "down")


def make_address(rank: int) -> str:
    """Return the address of a machine."""
    return f"10.213.0.{rank + 1}"


@contextmanager
def join_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Make two machines; they and their processes are gone afterwards.

    The test is skipped where that is not permitted.
    """
    group = f"fmengine-{os.getpid()}-{next(numbers)}"
    nodes = tuple(Node(f"{group}-{rank}", rank, folder / f"node-{rank}") for rank in range(2))
    with ExitStack() as stack:
        try:
            for node in nodes:
                node.folder.mkdir()
                ip("netns", "add", node.name)
                stack.callback(ip, "netns", "delete", node.name)
                stack.callback(node.kill)
            ends = [["netns", node.name] for node in nodes]
            ip("link", "add", INTERFACE, *ends[0], "type", "veth", "peer", "name", INTERFACE, *ends[1])
            for node in nodes:
                ip("-n", node.name, "address", "add", f"{make_address(node.rank)}/24", "dev", INTERFACE)
                ip("-n", node.name, "link", "set", INTERFACE, "up")
                ip("-n", node.name, "link", "set", "lo", "up")
                ip("netns", "exec", node.name, "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield nodes
