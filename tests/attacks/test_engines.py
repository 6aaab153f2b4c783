"""An engine is code that runs. One in the cache that others could have written, or altered, is never loaded."""

import os
from pathlib import Path

import pytest

from fmengine.system.cache import Cache, CacheError, read_file
from fmengine.system.manifest import StaleError, pack

KEY = {"onnx": "a", "gpu": "b"}


@pytest.fixture
def cache(tmp_path) -> Cache:
    made = Cache(tmp_path / "cache")
    made.get("engine", KEY, lambda: b"ours")
    return made


def entry(cache: Cache) -> Path:
    (path,) = (path for path in cache.folder.iterdir() if path.suffix == ".engine")
    return path


def never() -> bytes:
    raise AssertionError("there was no need to build")


def test_altered(cache):
    content = bytearray(entry(cache).read_bytes())
    content[-1] ^= 1
    entry(cache).write_bytes(content)
    assert cache.get("engine", KEY, lambda: b"built again") == b"built again"


def test_from_elsewhere(cache):
    """Whole, with a right digest, and made for another GPU."""
    entry(cache).write_bytes(pack(KEY | {"gpu": "other"}, b"theirs"))
    assert cache.get("engine", KEY, lambda: b"built again") == b"built again"


def test_behind_a_link(cache, tmp_path):
    (tmp_path / "theirs").write_bytes(pack(KEY, b"theirs"))
    path = entry(cache)
    path.unlink()
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(CacheError, match="cannot trust"):
        cache.get("engine", KEY, never)


@pytest.mark.parametrize("who", ["file", "folder"])
def test_where_others_may_write(cache, who):
    path = entry(cache) if who == "file" else cache.folder
    path.chmod(0o666 if who == "file" else 0o777)
    with pytest.raises(CacheError, match="others may write it"):
        cache.get("engine", KEY, never)


def test_of_another_user(cache, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match="belongs to user"):
        cache.get("engine", KEY, never)


def test_given_by_path_and_not_ours(tmp_path):
    path = tmp_path / "theirs.engine"
    path.write_bytes(b"ftrt" + bytes(1000))
    path.chmod(0o600)
    with pytest.raises(StaleError, match="is refused"):
        read_file(path)
