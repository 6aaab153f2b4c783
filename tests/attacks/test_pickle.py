"""Weights, model files and cache entries that are pickles: none is ever unpickled."""

import pickle
import zipfile
from pathlib import Path

import pytest

from fmengine import Engine, ModelError
from fmengine.system.cache import Cache


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def proof(tmp_path) -> Path:
    """The file that is there once code of the attacker ran."""
    path = tmp_path / "proof"
    pickle.loads(pickle.dumps(Attack(path)))
    assert path.exists(), "the attack itself works"
    path.unlink()
    return path


def forms(proof: Path, folder: Path) -> list[bytes]:
    """The pickle alone, and in a zip as `torch.save` writes it."""
    bare = pickle.dumps(Attack(proof))
    archive = folder / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", bare)
        file.writestr("archive/version", "3\n")
    return [bare, archive.read_bytes()]


def test_model_file(proof, tmp_path):
    for data in forms(proof, tmp_path):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(ModelError, match="not an ONNX model"):
            Engine.load(tmp_path / "model.onnx")
    assert not proof.exists()


def test_checkpoint(proof, tmp_path):
    pytest.importorskip("torch", reason="checkpoints need the train extra")
    from fmengine_train.checkpoint import load_model

    for data in forms(proof, tmp_path):
        for name in ("model.safetensors", "checkpoint.safetensors", "model.pt", "model.pth", "model.pkl"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(ModelError, match="cannot read the checkpoint"):
                load_model(tmp_path / name)
    assert not proof.exists()


def test_cache_entry(proof, tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.get("engine", {"onnx": "a"}, lambda: b"ours")
    (entry,) = (path for path in cache.folder.iterdir() if path.suffix == ".engine")
    for data in forms(proof, tmp_path):
        entry.write_bytes(data)
        assert cache.get("engine", {"onnx": "a"}, lambda: b"ours") == b"ours"
    assert not proof.exists()
