"""Checkpoints: whole or not there, never pickle, refused with a reason where they are not ours."""

import ast
import dataclasses
import errno
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmengine.errors import ModelError, OutputError
from fmengine_train.checkpoint import (
    KEY,
    flatten_optimizer,
    load_model,
    read_tensors,
    restore_optimizer,
    save_model,
    weights_sha256,
    write_tensors,
)
from fmengine_train.model import ARCHITECTURES, AlexNet


@pytest.fixture
def model() -> AlexNet:
    torch.manual_seed(0)
    changes = {"height": 31, "width": 31, "widths": (2, 3, 4, 3, 2), "hidden": (5, 4)}
    return AlexNet(dataclasses.replace(ARCHITECTURES["alexnet-slim"], **changes)).eval()


# Atomic


def write(path: Path, level: float) -> bytes:
    write_tensors(path, {"level": torch.tensor(level)}, {})
    return path.read_bytes()


def test_writing_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert write(path, 1) != write(path, 2)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def crash(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x.safetensors"
    before = write(path, 1)
    monkeypatch.setattr(os, where, crash)
    with pytest.raises(OutputError, match=r"cannot write .*x\.safetensors: No space left on device"):
        write(path, 2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "x.safetensors", []
    before = write(path, 1)
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, path.read_bytes()))
    )
    write_tensors(path, {"level": torch.zeros(100)}, {})
    assert seen == [(path.stat().st_size, before)]


# Never pickle


@pytest.mark.parametrize("package", ["fmengine", "fmengine_train", "fmengine_export", "fmengine_bench"])
def test_nothing_imports_pickle_or_calls_torch_load(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    files = sorted(Path(spec.origin).parent.rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                assert not name.startswith(
                    ("pickle", "marshal", "shelve", "torch.load", "torch.save", "joblib", "dill")
                ), file


# Tensors and their document


def test_tensors_and_document_come_back(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).view(2, 3).t(),  # not contiguous
        "b": torch.tensor(7),
        "c": torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last),
    }
    write_tensors(tmp_path / "x.safetensors", tensors, {"note": "é", "n": [1, 2]})
    read, document = read_tensors(tmp_path / "x.safetensors")
    assert document == {"note": "é", "n": [1, 2]}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the checkpoint .*none\.safetensors"):
        read_tensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, model: AlexNet, keep: float) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        load_model(path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        load_model(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {KEY: "[1, 2]"}])
def test_foreign_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match="not a checkpoint of `fmengine train`"):
        load_model(tmp_path / "foreign.safetensors")


def test_a_document_that_is_no_json_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata={KEY: "{"})
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        load_model(tmp_path / "foreign.safetensors")


# The model


def test_a_model_comes_back_with_its_answers(tmp_path: Path, model: AlexNet) -> None:
    save_model(tmp_path / "model.safetensors", model, {"labels": ["happy", "sad"]})
    loaded, document = load_model(tmp_path / "model.safetensors")
    images = torch.randint(0, 256, (3, 1, 31, 31), dtype=torch.uint8)
    assert loaded.config == model.config
    assert not loaded.training
    assert document["labels"] == ["happy", "sad"]
    assert weights_sha256(loaded) == weights_sha256(model)
    with torch.inference_mode():
        # Not bit by bit: where weights lie in memory decides how some CPUs add up.
        torch.testing.assert_close(loaded(images), model(images))


def test_a_run_folder_stands_for_its_model(tmp_path: Path, model: AlexNet) -> None:
    save_model(tmp_path / "model.safetensors", model, {})
    assert weights_sha256(load_model(tmp_path)[0]) == weights_sha256(model)


def test_a_run_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": (5, 3)},  # other shapes
        {"batch_norm": False},  # tensors too many
        {"height": 2},  # no network at all
        {"depth": 9},  # of another version
    ],
    ids=str,
)
def test_another_architecture_is_refused(tmp_path: Path, model: AlexNet, changes: dict[str, object]) -> None:
    path = tmp_path / "model.safetensors"
    config = dataclasses.asdict(model.config) | changes
    write_tensors(path, model.state_dict(), {"network": "AlexNet", "config": config})
    with pytest.raises(ModelError, match="does not hold a network of this version"):
        load_model(path)


def test_a_checkpoint_to_resume_from_is_no_model(tmp_path: Path, model: AlexNet) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    write_tensors(tmp_path / "checkpoint.safetensors", tensors, {"recipe": {}})
    with pytest.raises(ModelError, match=r"expected the model\.safetensors"):
        load_model(tmp_path / "checkpoint.safetensors")


def test_the_digest_changes_with_one_weight(model: AlexNet) -> None:
    before = weights_sha256(model)
    weight = model.classifier[-1].weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert weights_sha256(model) != before


def test_the_digest_covers_running_statistics(model: AlexNet) -> None:
    before = weights_sha256(model)
    model.features[1].running_var[0] += 1
    assert weights_sha256(model) != before


def test_the_digest_is_blind_to_the_layout_in_memory(model: AlexNet) -> None:
    before = weights_sha256(model)
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == before


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_comes_back(model: AlexNet, kind: str) -> None:
    def make() -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(model.parameters(), lr=0.1)

    first, second = make(), make()
    model(torch.zeros(2, 1, 31, 31)).sum().backward()
    first.step()
    restore_optimizer(second, flatten_optimizer(first))
    states = [optimizer.state_dict()["state"] for optimizer in (first, second)]
    assert states[0].keys() == states[1].keys()
    for index, entry in states[0].items():
        assert entry.keys() == states[1][index].keys()
        assert all(torch.equal(torch.as_tensor(v), states[1][index][k]) for k, v in entry.items())
