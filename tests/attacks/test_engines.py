"""An engine is code that runs. One that others could have written, or altered, is never loaded unasked."""

import os
from pathlib import Path

import pytest

from fmengine import ModelError
from fmengine.model.engine_file import UntrustedEngineError, pack_engine
from fmengine.model.file import load_model_file, resolve
from fmengine.system.cache import Cache, CacheError
from fmengine.system.manifest import pack, read_manifest

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


# Given by path


@pytest.fixture
def given(tmp_path) -> Path:
    """An engine file that is whole and, so far, ours."""
    path = tmp_path / "x.engine"
    key = {"library": "tensorrt 11.4.0.106", "gpu": "a GPU", "system": "Linux x86_64"}
    model = load_model_file(resolve(None, ("fp16",))).data
    path.write_bytes(pack_engine("tensorrt", key, ["8.6"], 64, b"an engine", model))
    path.chmod(0o600)
    return path


def test_ours_may_run(given):
    file = load_model_file(given)
    assert file.engine.data == b"an engine"
    file.engine.require_trust(allow_untrusted=False)


def test_an_engine_of_nobody_here(tmp_path):
    path = tmp_path / "theirs.engine"
    path.write_bytes(b"ftrt" + bytes(1000))
    path.chmod(0o600)
    with pytest.raises(ModelError, match=r"is refused: it has no manifest; .*expected what `fmengine export"):
        load_model_file(path)


@pytest.mark.parametrize("expose", ["file", "folder", "link", "linked folder", "owner"])
def test_one_that_others_could_have_written(expose, given, tmp_path, monkeypatch):
    """It may be read, for nothing of it is run then."""
    if expose in ("file", "folder"):
        (given if expose == "file" else tmp_path).chmod(0o777)
    elif expose == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        link = tmp_path / "link.engine"
        link.symlink_to(given if expose == "link" else tmp_path)
        given = link if expose == "link" else link / given.name
    engine = load_model_file(given).engine
    with pytest.raises(UntrustedEngineError, match=r"cannot trust .* executable code and runs with"):
        engine.require_trust(allow_untrusted=False)
    engine.require_trust(allow_untrusted=True)


def test_a_shared_folder_is_not_to_be_closed_to_others(given, tmp_path):
    """As /tmp is, of which `chmod go-w` would take the use."""
    tmp_path.chmod(0o1777)
    assert load_model_file(given).engine.distrust.endswith("others may write it; use a folder of your own")


def test_where_files_have_no_owner_it_cannot_be_known(given, monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    assert "this system has no owners of files as POSIX has" in load_model_file(given).engine.distrust


def test_a_pipe_by_its_name(tmp_path):
    os.mkfifo(tmp_path / "x.engine", 0o600)
    with pytest.raises(ModelError, match="a pipe, a device or a socket"):
        load_model_file(tmp_path / "x.engine")


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "onnxruntime"},
        {"backend": "\x1b[2Jtensorrt"},
        {"max_batch": "0"},
        {"model_size": "-5"},
        {"model_size": "many"},
        {"model_size": None},
    ],
)
def test_a_manifest_that_we_would_not_write(change, given):
    """Whole, with a right digest."""
    manifest, data = read_manifest(given.read_bytes())
    wrong = {name: value for name, value in (manifest | change).items() if value is not None}
    given.write_bytes(pack(wrong, data))
    with pytest.raises(ModelError, match="its manifest is of another form") as caught:
        load_model_file(given)
    assert str(caught.value).isprintable()


def test_a_model_file_inside_that_is_altered(given):
    manifest, data = read_manifest(given.read_bytes())
    altered = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    given.write_bytes(pack(manifest, altered))
    with pytest.raises(ModelError, match="is damaged: its bytes do not give the digest it carries"):
        load_model_file(given)
