"""Model files and folders that name files elsewhere."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from fmengine import ModelError
from fmengine.jobs.sources import walk
from fmengine.model.file import load_model_file, resolve, seal
from fmengine.model.spec import METADATA_KEY, ModelSpec

onnx = pytest.importorskip("onnx", reason="makes the attacker's model files")

SECRET = b"secret weights: " * 4


def model(location: str, where: str) -> bytes:
    """A sealed model file, one of whose tensors is in another file."""
    helper, kinds = onnx.helper, onnx.TensorProto
    tensor = kinds(name="w", data_type=kinds.FLOAT, dims=[2], data_location=kinds.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Identity", ["w"], [name]) for name in ("logits", "probabilities")]
    if where == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    if where == "branch":
        inner = helper.make_graph(
            [helper.make_node("Identity", ["w"], ["out"])], "inner", [], [out("out")], initializer=[tensor]
        )
        nodes = [helper.make_node("If", ["c"], [name], then_branch=inner, else_branch=inner) for name in LOGITS]
    sparse = onnx.SparseTensorProto(values=tensor, indices=kinds(data_type=kinds.INT64, dims=[2]), dims=[2])
    if where == "sparse":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    images = helper.make_tensor_value_info("images", kinds.UINT8, ["N", 1, 8, 8])
    weights = [tensor] if where == "initializer" else []
    graph = helper.make_graph(nodes, "g", [images], [out(name) for name in LOGITS], initializer=weights)
    if where == "sparse initializer":
        graph.sparse_initializer.append(sparse)
    made = helper.make_model(graph)
    spec = ModelSpec("m", ("a", "b"), 8, 8, "gray", "crop", "fp32", (0,), (255.0,))
    made.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    return seal(made.SerializeToString())


LOGITS = ("logits", "probabilities")


def out(name: str):
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "sparse", "sparse initializer"])
@pytest.mark.parametrize("place", ["outside", "absolute", "beside", "current"])
def test_weights_in_another_file(tmp_path, monkeypatch, where, place):
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (tmp_path / "secret", folder / "secret"):
        path.write_bytes(SECRET)
    monkeypatch.chdir(folder if place == "current" else tmp_path)
    location = {"outside": "../secret", "absolute": str(tmp_path / "secret")}.get(place, "secret")
    (folder / "m.onnx").write_bytes(model(location, where))
    with pytest.raises(ModelError, match="keeps weights in other files"):
        load_model_file(folder / "m.onnx")


@pytest.mark.parametrize("name", ["../m", "/etc/m", "a/b", ".hidden", "a\\b", "nul\0", "..", "."])
def test_exported_files_are_called_by_a_models_name(name):
    spec = load_model_file(resolve(None, ("int8",))).spec
    document = json.dumps(dataclasses.asdict(spec) | {"version": 1, "name": name})
    with pytest.raises(ModelError, match="expected text that can be a file's name"):
        ModelSpec.from_json(document)


def test_links_out_of_a_folder_of_pictures(tmp_path):
    """A link to a folder is not followed, be it to the root; one to a file is that file, read and nothing else."""
    (tmp_path / "faces" / "below").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(SECRET)
    for name, target in (("root", "/"), ("up", ".."), ("secret", "../secret"), ("loop", "."), ("self", "self")):
        os.symlink(target, tmp_path / "faces" / name)
    found = {Path(path).name for path in walk(str(tmp_path / "faces"))}
    assert found == {"self"}, "a link that leads nowhere becomes a row that says so"
