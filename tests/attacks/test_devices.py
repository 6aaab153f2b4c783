"""Pipes and devices by the name of a picture or a model: never opened, so that nothing waits or fills up."""

import os
import socket

import pytest

from fmengine import Engine, Kind, ModelError, SourceError
from fmengine.image.decode import decode
from fmengine.options import Limits

pytestmark = pytest.mark.timeout(20)  # opened, each would be waited for without end


@pytest.fixture
def special(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    os.symlink("/dev/zero", "link")
    return ["pipe", "socket", "link", "/dev/zero", "/dev/random", "/dev/tty", "/proc/self/mem"]


def test_pictures(special):
    for path in special[:-1]:
        with pytest.raises(SourceError, match="expected a regular file") as caught:
            decode(path, "gray", Limits())
        assert caught.value.kind is Kind.NOT_A_FILE


def test_models(special):
    for path in special:
        with pytest.raises(ModelError):
            Engine.load(path)


def test_files_of_the_kernel_that_say_they_are_empty(special):
    """They are regular to `stat`; what they hold is read up to the limit, and is no picture."""
    for path in ("/proc/self/mem", "/proc/self/environ", "/proc/kallsyms"):
        with pytest.raises(SourceError):
            decode(path, "gray", Limits(max_bytes=1 << 20))
