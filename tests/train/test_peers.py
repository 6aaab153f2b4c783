"""What PyTorch raises where another process is gone becomes words; all else stays what it is."""

from pathlib import Path

import pytest
import torch.distributed as dist

from fmengine.errors import DataError
from fmengine_train.peers import PEER_TIMEOUT, PeerError, convert_peer_errors, read_timeout

RESET = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error [10.0.0.2]:4242: Connection reset by "
    "peer. This is typically caused by a remote worker hanging."
)
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:4242"
LATE = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv "
    "operation to complete"
)
NCCL = "NCCL error in: /pytorch/ProcessGroupNCCL.cpp:94, remote process exited\nncclRemoteError: A call failed."
STORE = "wait timeout after 5000ms, keys: /default_pg/0"


def convert(error: Exception, folder: Path) -> str:
    with pytest.raises(PeerError) as caught, convert_peer_errors(5, folder):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(RESET), "is gone (Read error [10.0.0.2]:4242: Connection reset by peer): what its node"),
        (RuntimeError(CLOSED), "is gone (Connection closed by peer [10.0.0.2]:4242): what its node printed"),
        (RuntimeError(LATE), "did not answer for 5 s: it is gone, cut off from the network, or slower than "),
        (dist.DistBackendError(NCCL), "ProcessGroupNCCL.cpp:94, remote process exited): what its node printed"),
        (dist.DistStoreError(STORE), "did not answer for 5 s: "),
    ],
    ids=["reset", "closed", "late", "NCCL", "store"],
)
def test_a_loss_is_described(error: Exception, words: str, tmp_path: Path) -> None:
    message = convert(error, tmp_path)
    assert message.startswith("another process of this run ")
    assert words in message
    assert "\n" not in message


def test_the_way_on_is_to_resume_where_an_epoch_was_finished(tmp_path: Path) -> None:
    assert convert(RuntimeError(CLOSED), tmp_path).endswith("; no epoch was finished: start the run again")
    (tmp_path / "checkpoint.safetensors").touch()
    assert f"`fmengine train --resume --run {tmp_path}`" in convert(RuntimeError(CLOSED), tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("/gloo/"), DataError("differ")])
def test_other_errors_stay(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, convert_peer_errors(5, tmp_path):
        raise error
    assert caught.value is error


def test_the_environment_sets_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_timeout() == PEER_TIMEOUT
    monkeypatch.setenv("FMENGINE_PEER_TIMEOUT", "7.5")
    assert read_timeout() == 7.5


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "nan", "inf"])
def test_a_time_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMENGINE_PEER_TIMEOUT", text)
    with pytest.raises(DataError, match=r"FMENGINE_PEER_TIMEOUT is .*; expected seconds, 1 to 1,000,000"):
        read_timeout()
