"""The three ONNX files: what is in each, what ONNX Runtime makes of it, and what it answers."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from fmengine.engine import Engine
from fmengine.errors import ModelError
from fmengine.model.file import load_model_file
from fmengine.model.spec import ModelSpec
from fmengine.types import InputBatch
from fmengine_export.export import export
from fmengine_export.fold import fold
from fmengine_export.graph import build_float, build_int8
from fmengine_export.quantize import calibrate
from fmengine_train.checkpoint import load_model, weights_sha256
from fmengine_train.model import ARCHITECTURES, AlexNet

PRECISIONS = ("fp32", "fp16", "int8")
HEAD_AND_TAIL = {"images", "logits", "scaled_logits", "probabilities", "features"}


def graph_of(models: Path, precision: str) -> onnx.GraphProto:
    return onnx.load(models / f"tiny.{precision}.onnx").graph


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.fixture(scope="module")
def faces(tiny_models: Path, drawn_faces: Path) -> InputBatch:
    """The validation pictures as the network takes them."""
    with Engine.load(tiny_models / "tiny.fp32.onnx", "onnxruntime") as engine:
        return np.stack([engine.prepare(path) for path in sorted((drawn_faces / "val").rglob("*.png"))])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_are_valid_onnx(tiny_models: Path, precision: str) -> None:
    onnx.checker.check_model(onnx.load(tiny_models / f"tiny.{precision}.onnx"), full_check=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_signature_is_pictures_in_logits_probabilities_and_features_out(tiny_models: Path, precision: str) -> None:
    graph = graph_of(tiny_models, precision)
    found = {
        value.name: (
            value.type.tensor_type.elem_type,
            [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    assert found == {
        "images": (TensorProto.UINT8, ["N", 1, 40, 40]),
        "logits": (TensorProto.FLOAT, ["N", 2]),
        "probabilities": (TensorProto.FLOAT, ["N", 2]),
        "features": (TensorProto.FLOAT, ["N", 256]),
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_batch_gives_the_same_answers(tiny_models: Path, faces: InputBatch, precision: str) -> None:
    session = onnxruntime.InferenceSession(tiny_models / f"tiny.{precision}.onnx")
    (whole,) = session.run(["logits"], {"images": faces[:5]})
    single = np.concatenate([session.run(["logits"], {"images": faces[n : n + 1]})[0] for n in range(5)])
    assert whole.shape == (5, 2)
    assert whole == pytest.approx(single, abs=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_layer_is_there(tiny_models: Path, precision: str) -> None:
    operators = Counter(node.op_type for node in graph_of(tiny_models, precision).node)
    assert [operators[name] for name in ("Conv", "Gemm", "Relu", "MaxPool", "Softmax")] == [5, 3, 7, 3, 1]


def test_fp32_normalises_by_cast_sub_mul(tiny_models: Path) -> None:
    graph = graph_of(tiny_models, "fp32")
    assert [node.op_type for node in graph.node[:3]] == ["Cast", "Sub", "Mul"]
    assert all(array.dtype == np.float32 for array in constants(graph).values())


def test_fp16_is_half_from_the_head_to_the_logits(tiny_models: Path) -> None:
    model = onnx.load(tiny_models / "tiny.fp16.onnx")
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    computed = {name for node in graph.node for name in node.output}
    between = computed - HEAD_AND_TAIL
    assert {types[name] for name in between} == {TensorProto.FLOAT16}
    assert len(between) >= 3 + 5 + 3 + 7 + 3
    casts = [(node.input[0], node.output[0]) for node in graph.node if node.op_type == "Cast"]
    assert [casts[0][0], casts[1][1], *casts[2]] == ["images", "logits", "fc7.relu", "features"]
    assert len(casts) == 3


def test_fp16_weights_are_half_and_finite(tiny_models: Path) -> None:
    graph = graph_of(tiny_models, "fp16")
    arrays = constants(graph)
    used = [name for node in graph.node if node.op_type in ("Conv", "Gemm", "Sub", "Mul") for name in node.input]
    weights = [arrays[name] for name in used if name in arrays]
    assert len(weights) == 2 * 8 + 2
    assert {array.dtype for array in weights} == {np.dtype(np.float16)}
    assert all(np.isfinite(array).all() for array in weights)


def test_softmax_and_temperature_are_fp32_in_every_file(tiny_models: Path) -> None:
    for precision in PRECISIONS:
        graph = graph_of(tiny_models, precision)
        division = next(node for node in graph.node if node.op_type == "Div")
        temperature = constants(graph)[division.input[1]]
        assert division.input[0] == "logits"
        assert temperature.dtype == np.float32
        assert float(temperature) == pytest.approx(
            load_model_file(tiny_models / f"tiny.{precision}.onnx").spec.temperature
        )


# INT8


def test_int8_head_is_one_dequantize_linear(tiny_models: Path) -> None:
    graph = graph_of(tiny_models, "int8")
    arrays, spec = constants(graph), load_model_file(tiny_models / "tiny.int8.onnx").spec
    (head,) = [node for node in graph.node if "images" in node.input]
    assert head.op_type == "DequantizeLinear"
    scale, zero = (arrays[name] for name in head.input[1:])
    assert (zero.dtype, int(zero)) == (np.uint8, spec.mean[0])
    assert (scale.dtype, float(scale)) == (np.float32, 1 / spec.std[0])


def test_int8_activations_have_zero_point_zero(tiny_models: Path) -> None:
    graph = graph_of(tiny_models, "int8")
    arrays = constants(graph)
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) >= 7
    for node in quantizers:
        zero = arrays[node.input[2]]
        assert (zero.dtype, int(zero)) == (np.uint8, 0)


def test_int8_layers_take_quantized_tensors_only(tiny_models: Path) -> None:
    graph = graph_of(tiny_models, "int8")
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [made_by[name] for name in node.input] == ["DequantizeLinear"] * 3


def test_int8_products_cannot_saturate_without_vnni(tiny_models: Path) -> None:
    weights = [
        array
        for array in constants(graph_of(tiny_models, "int8")).values()
        if array.dtype == np.int8 and array.ndim > 1
    ]
    assert len(weights) == 8
    for weight in weights:
        levels = np.abs(weight.astype(int)).reshape(len(weight), -1)
        assert levels.max() == 63
        # Whichever two products a kernel adds in 16 bits.
        assert (255 * np.sort(levels, axis=1)[:, -2:].sum(axis=1)).max() <= 32_767


def test_onnx_runtime_computes_int8_in_integers(tiny_models: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tiny_models / "tiny.int8.onnx", options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (operators["QLinearConv"], operators["QGemm"]) == (5, 3)
    assert operators["DequantizeLinear"] == 1, "that of the features"
    assert not operators.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "QuantizeLinear", "Relu"}


# Metadata


def test_metadata_are_of_one_family(tiny_models: Path, tiny_run: Path) -> None:
    model, document = load_model(tiny_run)
    specs = {p: load_model_file(tiny_models / f"tiny.{p}.onnx").spec for p in PRECISIONS}
    for precision, spec in specs.items():
        assert spec.precision == precision
        assert (spec.name, spec.labels, spec.color, spec.fit) == ("tiny", ("happy", "sad"), "gray", "crop")
        assert (spec.height, spec.width, spec.mean, spec.std) == (40, 40, (128,), (64.0,))
        assert (spec.temperature, spec.unsure_below) == (document["temperature"], document["unsure_below"])
        assert spec.training_data == document["training_data"]
        stated = {source: scores["count"] for source, scores in document["validation"].items()}
        assert {source: scores["count"] for source, scores in spec.accuracy.items()} == stated
    assert {spec.weights_sha256 for spec in specs.values()} == {weights_sha256(model)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_changed_byte_is_damage(tiny_models: Path, tmp_path: Path, precision: str) -> None:
    data = bytearray((tiny_models / f"tiny.{precision}.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError):
        load_model_file(tmp_path / "model.onnx")


# Answers


# Shares of the largest logit. FP16: eleven bits, about 1e-3 a layer at worst; INT8: seven bits of weight.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)])
def test_answers_are_those_of_pytorch(
    tiny_models: Path, tiny_run: Path, faces: InputBatch, precision: str, tolerance: float
) -> None:
    model, document = load_model(tiny_run)
    with torch.inference_mode():
        expected, embedded = model(torch.from_numpy(faces)).numpy(), model.embed(torch.from_numpy(faces)).numpy()
    session = onnxruntime.InferenceSession(tiny_models / f"tiny.{precision}.onnx")
    logits, probabilities, features = session.run(["logits", "probabilities", "features"], {"images": faces})
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(features - embedded).max() <= tolerance * embedded.max()
    scaled = torch.from_numpy(logits).double() / document["temperature"]
    assert probabilities == pytest.approx(scaled.softmax(1).numpy(), abs=1e-5)


def test_export_twice_gives_the_same_bytes(
    tiny_models: Path, tiny_run: Path, faces: InputBatch, tmp_path: Path
) -> None:
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        model, document = load_model(tiny_run)
        files.append(list(export(model, document, "tiny", tmp_path / name, PRECISIONS, faces)))
    assert [path.name for path in files[0]] == [f"tiny.{precision}.onnx" for precision in PRECISIONS]
    assert [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_colour_and_uneven_sizes_export_too(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    shape = {"height": 63, "width": 80, "widths": (4, 6, 8, 6, 5), "hidden": (7, 6), "outputs": 3}
    model = AlexNet(dataclasses.replace(ARCHITECTURES["alexnet"], **shape)).eval()
    torch.nn.init.normal_(model.classifier[-1].weight)
    spec = ModelSpec(
        "odd", ("a", "b", "c"), 63, 80, "rgb", "pad", precision, (128,) * 3, (64.0,) * 3, temperature=2.0
    )
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 63, 80), dtype=np.uint8)
    network = fold(model)
    if precision == "int8":
        data = build_int8(network, spec, calibrate(network, images, 128, 64.0))
    else:
        data = build_float(network, spec)
    (tmp_path / "odd.onnx").write_bytes(data)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    with Engine.load(tmp_path / "odd.onnx", "onnxruntime") as engine:
        logits = engine.backend.run(images).logits
    assert np.abs(logits - expected).max() <= 0.1 * np.abs(expected).max()
