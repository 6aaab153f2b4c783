"""The output `features`, added to files of an older fmengine: nothing else changes, and what cannot is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.backend.openvino import OpenVinoBackend
from fmengine.errors import ModelError
from fmengine.model.file import ModelFile, check_model_file, load_model_file
from fmengine.options import BackendOptions
from fmengine.types import Outputs
from fmengine_export.features import add_features, main
from fmengine_export.graph import describe

PRECISIONS = ("fp32", "fp16", "int8")


def without_features(file: ModelFile) -> ModelFile:
    """The same model as an older fmengine wrote it."""
    model = onnx.load_from_string(file.data)
    nodes = [node for node in model.graph.node if "features" not in node.output]
    outputs = [value for value in model.graph.output if value.name != "features"]
    for field, kept in ((model.graph.node, nodes), (model.graph.output, outputs)):
        del field[:]
        field.extend(kept)
    return check_model_file(file.path, describe(model, replace(file.spec, features=0)))


def run(file: ModelFile, kind: type = OnnxRuntimeBackend) -> Outputs:
    backend = kind.open(file, BackendOptions(threads=1))
    images = np.random.default_rng(4).integers(0, 256, file.spec.input_shape(9), np.uint8)
    outputs = backend.run(images)
    backend.close()
    return outputs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_is_what_export_writes(tiny_models: Path, precision: str) -> None:
    exported = load_model_file(tiny_models / f"tiny.{precision}.onnx")
    old = without_features(exported)
    assert b"features: float32" not in old.data
    assert add_features(old) == exported.data


@pytest.mark.parametrize("kind", [OnnxRuntimeBackend, OpenVinoBackend])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_stay_bit_for_bit(tiny_models: Path, precision: str, kind: type) -> None:
    if kind is OpenVinoBackend:
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")
    old = without_features(load_model_file(tiny_models / f"tiny.{precision}.onnx"))
    new = check_model_file(old.path, add_features(old))
    before, after = run(old, kind), run(new, kind)
    assert before.features is None
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    assert after.features is not None
    assert (after.features.dtype, after.features.shape) == (np.float32, (9, new.spec.features))
    assert after.features.std() > 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_shipped_answers_stay_bit_for_bit(precision: str) -> None:
    shipped = load_model_file(
        Path(load_model_file.__code__.co_filename).parent / f"shipped/alexnet-slim.{precision}.onnx"
    )
    old = without_features(shipped)
    before, after = run(old), run(shipped)
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    assert shipped.spec.features == 256


def test_metadata_stay_but_for_the_width_and_the_digest(tiny_models: Path) -> None:
    old = without_features(load_model_file(tiny_models / "tiny.int8.onnx"))
    spec = check_model_file(old.path, add_features(old)).spec
    assert replace(spec, features=0, file_sha256=old.spec.file_sha256) == old.spec
    assert spec.weights_sha256
    assert spec.file_sha256 != old.spec.file_sha256


def test_a_file_that_has_them_is_refused(tiny_models: Path) -> None:
    with pytest.raises(ModelError, match=r"tiny\.int8\.onnx gives features already, 256 of each picture"):
        add_features(load_model_file(tiny_models / "tiny.int8.onnx"))


def test_a_network_without_fully_connected_layers_is_refused(tiny_models: Path) -> None:
    old = without_features(load_model_file(tiny_models / "tiny.fp32.onnx"))
    model = onnx.load_from_string(old.data)
    for node in model.graph.node:
        node.op_type = "MatMul" if node.op_type == "Gemm" else node.op_type
    with pytest.raises(ModelError, match="does not end in a fully connected layer"):
        add_features(check_model_file(old.path, describe(model, old.spec)))


def test_the_command_writes_the_file_and_says_what_is_wrong(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = without_features(load_model_file(tiny_models / "tiny.int8.onnx"))
    (tmp_path / "old.onnx").write_bytes(old.data)
    arguments = [str(tmp_path / "old.onnx"), str(tmp_path / "new.onnx")]
    assert main(arguments) == 0
    assert (tmp_path / "new.onnx").read_bytes() == (tiny_models / "tiny.int8.onnx").read_bytes()
    for wrong, message in (
        ([], "usage: python -m fmengine_export.features IN.onnx OUT.onnx"),
        ([arguments[1], arguments[0]], "gives features already"),
        ([str(tmp_path / "none.onnx"), arguments[1]], "cannot read the model"),
        ([arguments[0], str(tmp_path / "none" / "new.onnx")], "cannot write"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "old.onnx").read_bytes() == old.data
