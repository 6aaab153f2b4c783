"""Writes a run's checkpoints in the background, so that no epoch waits for a disk."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SECONDS = 20.0  # between two checkpoints: what a killed run loses at most, beside the epoch that it was in


@dataclass(frozen=True)
class Best:
    """The epoch that ships so far.

    Attributes:
        epoch: its number, from 1.
        tensors: its averaged weights.
        logits: of the validation pictures, by those weights.
    """

    epoch: int
    tensors: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Snapshot:
    """A run after an epoch, in copies that later epochs leave alone.

    Attributes:
        epoch: how many are finished.
        tensors: all that `--resume` needs.
        document: what is written beside them.
        best: the epoch that ships so far; None before the first.
    """

    epoch: int
    tensors: dict[str, Tensor]
    document: dict[str, Any]
    best: Best | None


class Saver:
    """Writes snapshots: the first one at once, then one every so many seconds, and at the end the last one.

    Args:
        write: writes a snapshot's files; called in a thread.
    """

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._began = -SECONDS
        self._latest: Snapshot | None = None
        self._written: Snapshot | None = None

    @property
    def latest(self) -> Snapshot:
        """The latest snapshot, to go back to."""
        assert self._latest is not None
        return self._latest

    def keep(self, snapshot: Snapshot) -> None:
        """Keep the snapshot that a run begins with, which needs no writing."""
        self._latest = self._written = snapshot

    def offer(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, and begin to write it if it is time to and none is being written.

        Raises:
            OutputError: if one that was offered before could not be written.
        """
        self._latest = snapshot
        if self._writing is not None and self._writing.done():
            self._wait()
        if self._writing is None and time.monotonic() - self._began >= SECONDS:
            self._began = time.monotonic()
            self._written, self._writing = snapshot, self._pool.submit(self._write, snapshot)

    def flush(self) -> None:
        """Write the latest snapshot, if it is not written, and wait for it; raises as `offer` does."""
        self._wait()
        if self._latest is not None and self._written is not self._latest:
            self._write(self._latest)
            self._written = self._latest

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
