"""The cache of built code: one build a key, and nothing that others could have written."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fmengine.system.cache import Cache, CacheError, find_cache_folder
from fmengine.system.manifest import StaleError, pack, unpack

pytestmark = pytest.mark.timeout(60)
KEY = {"onnx": "a", "gpu": "b"}
DATA = bytes(range(256)) * 20


def never() -> bytes:
    raise AssertionError("built although it was there")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def kept(cache: Cache) -> Path:
    (path,) = (path for path in cache.folder.iterdir() if path.suffix == ".engine")
    return path


def test_built_once(cache: Cache) -> None:
    assert cache.get("engine", KEY, lambda: DATA) == DATA
    assert cache.get("engine", KEY, never) == DATA
    assert Cache(cache.folder).get("engine", dict(reversed(KEY.items())), never) == DATA


@pytest.mark.parametrize("other", [{"onnx": "a", "gpu": "c"}, {"onnx": "a"}, KEY | {"driver": "13.0"}])
def test_another_key_is_another_file(cache: Cache, other: dict[str, str]) -> None:
    cache.get("engine", KEY, lambda: DATA)
    assert cache.get("engine", other, lambda: b"other") == b"other"
    assert cache.get("engine", KEY, never) == DATA


def test_the_manifest_says_what_it_is(cache: Cache) -> None:
    cache.get("engine", KEY, lambda: DATA)
    manifest = json.loads(kept(cache).read_bytes().split(b"\n", 1)[0])
    assert manifest["key"] == KEY
    assert manifest["size"] == len(DATA)


def test_only_the_owner_may_read_or_write(cache: Cache) -> None:
    cache.get("engine", KEY, lambda: DATA)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.folder.iterdir()} == {0o600}


def test_any_altered_byte_is_noticed() -> None:
    content = pack(KEY, b"data")
    for position in range(len(content)):
        for bit in (1, 64):
            altered = bytearray(content)
            altered[position] ^= bit
            with suppress(StaleError):  # else it was in the size, on which nothing depends
                assert unpack(bytes(altered), KEY) == b"data", position


@pytest.mark.parametrize("position", [0, 30, -1])
def test_an_altered_byte_means_a_rebuild(cache: Cache, position: int, caplog: pytest.LogCaptureFixture) -> None:
    cache.get("engine", KEY, lambda: DATA)
    content = bytearray(kept(cache).read_bytes())
    content[position] ^= 1
    kept(cache).write_bytes(content)
    assert cache.get("engine", KEY, lambda: b"new") == b"new"
    assert cache.get("engine", KEY, never) == b"new"
    assert "building" in caplog.text


@pytest.mark.parametrize(
    "manifest", [b'{"key": [], "sha256": "", "version": 1}', b"[" * 60_000, b"null", b'{"key": 5}']
)
def test_a_manifest_of_another_form_means_a_rebuild(cache: Cache, manifest: bytes) -> None:
    cache.get("engine", KEY, lambda: DATA)
    kept(cache).write_bytes(manifest + b"\n" + DATA)
    assert cache.get("engine", KEY, lambda: b"new") == b"new"


@pytest.mark.parametrize("length", [0, 10, 200, len(DATA)])
def test_a_file_cut_short_means_a_rebuild(cache: Cache, length: int) -> None:
    cache.get("engine", KEY, lambda: DATA)
    kept(cache).write_bytes(kept(cache).read_bytes()[:length])
    assert cache.get("engine", KEY, lambda: b"new") == b"new"


def test_a_file_under_anothers_name_means_a_rebuild(cache: Cache) -> None:
    """An engine of another GPU, copied over this one's."""
    cache.get("engine", KEY, lambda: DATA)
    kept(cache).write_bytes(pack(KEY | {"gpu": "other"}, b"foreign"))
    assert cache.get("engine", KEY, lambda: b"ours") == b"ours"


def test_a_link_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    cache.get("engine", KEY, lambda: DATA)
    (tmp_path / "elsewhere").write_bytes(pack(KEY, b"foreign"))
    path = kept(cache)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="cannot trust"):
        cache.get("engine", KEY, never)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(CacheError, match="set FMENGINE_CACHE"):
        Cache(tmp_path / "link").get("engine", KEY, never)


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
def test_what_others_may_write_is_refused(cache: Cache, what: str, bit: int) -> None:
    cache.get("engine", KEY, lambda: DATA)
    path = cache.folder if what == "folder" else kept(cache)
    path.chmod(path.stat().st_mode | bit)
    with pytest.raises(CacheError, match=r"others may write it; run: chmod go-w"):
        cache.get("engine", KEY, never)


def test_what_belongs_to_another_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get("engine", KEY, lambda: DATA)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match="belongs to user"):
        cache.get("engine", KEY, never)


def test_a_full_disk_leaves_nothing_behind(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert cache.get("engine", KEY, lambda: DATA) == DATA  # it was built, so it is used
    assert "No space left on device; it will be built again. Make room, or set FMENGINE_CACHE" in caplog.text
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]
    monkeypatch.undo()
    assert cache.get("engine", KEY, lambda: DATA) == DATA
    assert cache.get("engine", KEY, never) == DATA


def test_a_folder_without_locks_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(CacheError, match="No locks available; set FMENGINE_CACHE to a folder on a local disk"):
        cache.get("engine", KEY, never)


def test_what_is_there_needs_no_lock(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get("engine", KEY, lambda: DATA)
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: pytest.fail("locked"))
    assert cache.get("engine", KEY, never) == DATA


def test_what_is_stored_is_loaded_and_replaced(cache: Cache) -> None:
    assert cache.load("timings", KEY) is None
    cache.store("timings", KEY, b"first")
    cache.store("timings", KEY, b"second")
    assert cache.load("timings", KEY) == b"second"
    assert cache.load("engine", KEY) is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot use the cache folder"):
        Cache(tmp_path / "file" / "cache").get("engine", KEY, never)


def test_a_build_that_fails_keeps_nothing(cache: Cache) -> None:
    def fails() -> bytes:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get("engine", KEY, fails)
    assert cache.get("engine", KEY, lambda: DATA) == DATA


BUILDER = """
import os, sys, time
from pathlib import Path
from fmengine.system.cache import Cache
def build():
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[3]))
    return b"engine" * 100_000
print(len(Cache(Path(sys.argv[1])).get("engine", {"onnx": "a"}, build)))
"""


def start(cache: Cache, log: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(cache.folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_at_once_build_once(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(cache, log, 0.3) for _ in range(4)]
    assert [process.communicate(timeout=30)[0].strip() for process in processes] == ["600000"] * 4
    assert log.read_text() == "built\n"


def test_a_builder_that_is_killed_blocks_nobody(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(cache, log, 60)
    while not log.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(cache, log, 0).communicate(timeout=30)[0].strip() == "600000"


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMENGINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert find_cache_folder() == Path("/somewhere/fmengine")
    monkeypatch.setenv("FMENGINE_CACHE", "/elsewhere")
    assert find_cache_folder() == Path("/elsewhere")
