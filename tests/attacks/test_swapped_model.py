"""A model file in place of the shipped one: sealed like ours, so that its own digest is right."""

import dataclasses
import shutil

import pytest

from fmengine import ModelError
from fmengine.model import file as model_file
from fmengine.model.file import get_shipped_folder, load_model_file, resolve, seal


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A copy of the installed models that the attacker may write."""
    shutil.copytree(get_shipped_folder(), tmp_path / "models")
    monkeypatch.setattr(model_file, "get_shipped_folder", lambda: tmp_path / "models")
    return tmp_path / "models"


def swapped(data: bytes) -> bytes:
    """The same network with its labels exchanged, and a right digest."""
    assert data.count(b'["happy", "sad"]') == 1
    return seal(data.replace(b'["happy", "sad"]', b'["sad", "happy"]'))


def test_shipped_models_are_those_of_the_list(installed):
    for precision in ("int8", "fp16"):
        assert load_model_file(resolve(None, (precision,))).path.parent == installed


def test_a_sealed_file_in_its_place_is_refused(installed):
    path = resolve(None, ("int8",))
    path.write_bytes(swapped(path.read_bytes()))
    with pytest.raises(ModelError, match="is not the file that fmengine ships"):
        load_model_file(path)


def test_a_file_that_is_not_on_the_list_is_refused(installed):
    shutil.copy(resolve(None, ("int8",)), installed / "better.int8.onnx")
    with pytest.raises(ModelError, match="is not the file that fmengine ships"):
        load_model_file(resolve("better", ("int8",)))


def test_the_same_file_elsewhere_is_somebodys_own_model(installed, tmp_path):
    path = tmp_path / "mine.onnx"
    path.write_bytes(swapped(resolve(None, ("int8",)).read_bytes()))
    assert dataclasses.asdict(load_model_file(path).spec)["labels"] == ("sad", "happy")
