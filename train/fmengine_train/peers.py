"""Says in words that another process of a run, or the network to it, is gone, and how to go on.

A process that is killed closes its connections, which the others notice at the next step. A machine or a network
that is cut off closes nothing: they wait for `PEER_TIMEOUT`.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from fmengine.errors import DataError, FmengineError

from .checkpoint import CHECKPOINT, format_resume_command

VARIABLE = "FMENGINE_PEER_TIMEOUT"  # of the environment: other seconds than these
PEER_TIMEOUT = 600.0  # seconds that a process waits for the others; they may be slower in reading the pictures


class PeerError(FmengineError):
    """Another process of the run is gone, or cannot be reached. The last finished epoch stays."""

    exit_code = 4


def read_timeout() -> float:
    """Read how many seconds to wait for the other processes.

    Raises:
        DataError: if the environment's number is none.
    """
    text = os.environ.get(VARIABLE, str(PEER_TIMEOUT))
    with suppress(ValueError):
        if 1 <= (seconds := float(text)) <= 1e6:
            return seconds
    raise DataError(f"{VARIABLE} is {text!r}; expected seconds, 1 to 1,000,000")


@contextmanager
def convert_peer_errors(seconds: float, folder: Path) -> Iterator[None]:
    """Turn what PyTorch raises where another process does not answer into a PeerError.

    Args:
        seconds: that were waited for the other.
        folder: of the run, which the error says how to go on with.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo's have no class of their own, but begin with the path of its source file.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise PeerError(f"{_describe_loss(str(error), seconds)}; {_describe_way_on(folder)}") from error


def _describe_loss(message: str, seconds: float) -> str:
    if re.search("timed out|timeout", message, re.IGNORECASE):
        return (
            f"another process of this run did not answer for {seconds:g} s: it is gone, cut off from the network, "
            f"or slower than {VARIABLE} allows"
        )
    # Its first sentence, behind the source file, has the other's address.
    reason = re.sub(r"^\[[^]]*] *", "", message.partition("\n")[0].partition(". ")[0])
    return f"another process of this run is gone ({reason}): what its node printed may say why"


def _describe_way_on(folder: Path) -> str:
    if not os.path.exists(folder / CHECKPOINT):
        return "no epoch was finished: start the run again"
    return (
        f"go on from the last finished epoch with {format_resume_command(folder)}, under torchrun or not, with "
        "any number of processes that the batch size is a multiple of"
    )


@contextmanager
def tell_torchrun() -> Iterator[None]:
    """Leave an error's words where torchrun takes them for its report, which ends what a node prints."""
    try:
        yield
    except FmengineError as error:
        report = {"message": {"message": f"fmengine: {error}", "extraInfo": {"timestamp": int(time.time())}}}
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            with suppress(OSError):
                Path(path).write_text(json.dumps(report), encoding="utf-8")
        raise
