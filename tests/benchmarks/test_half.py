"""The shipped FP16 file's own weights in half precision, on every validation picture.

Every layer's activations are rounded, as a GPU's FP16 does; the reference is the same weights in FP32.
`fmengine parity` says the same against the checkpoint.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fmengine.engine import Engine
from fmengine.model.file import load_model_file, resolve
from fmengine.types import InputBatch
from fmengine_bench.parity import HALF_MAX
from fmengine_export.fold import Convolution, Linear, Network
from fmengine_export.quantize import activations

FILE = load_model_file(resolve(None, ("fp16",)))


def network() -> Network:
    """The layers of the FP16 file, as `fold` gives them."""
    graph = onnx.load_model_from_string(FILE.data).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor).astype(np.float32) for tensor in graph.initializer}
    pooled = {node.input[0].split(".")[0] for node in graph.node if node.op_type == "MaxPool"}
    convolutions, linears = [], []
    for node in graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Conv":
            weight, bias = (arrays[name] for name in node.input[1:])
            name = node.output[0].split(".")[0]
            stride, padding = attributes["strides"][0], attributes["pads"][0]
            convolutions.append(Convolution(weight, bias, stride, padding, name in pooled))
        elif node.op_type == "Gemm":
            linears.append(Linear(*(arrays[name] for name in node.input[1:])))
    return Network(convolutions, linears)


def layers(images: InputBatch, dtype: torch.dtype) -> list[torch.Tensor]:
    levels = (torch.from_numpy(images).float() - FILE.spec.mean[0]) / FILE.spec.std[0]
    with torch.inference_mode():
        return activations(levels.to(dtype), network())


def test_the_layers_are_the_files() -> None:
    """In FP32 they answer as ONNX Runtime does, which computes the FP16 graph in FP32 on a CPU."""
    images = np.random.default_rng(0).integers(0, 256, FILE.spec.input_shape(8), np.uint8)
    with Engine.load(str(FILE.path)) as engine:
        expected = engine.backend.run(images).logits
    np.testing.assert_allclose(layers(images, torch.float32)[-1].numpy(), expected, atol=0.02)


@pytest.mark.slow
def test_rounding_is_that_of_pytorchs_half() -> None:
    """Its own half arithmetic, which is slow on a CPU, gives the same but for the order of sums."""
    images = np.random.default_rng(1).integers(0, 256, FILE.spec.input_shape(32), np.uint8)
    x = ((torch.from_numpy(images).float() - FILE.spec.mean[0]) / FILE.spec.std[0]).half()
    for layer in network().convolutions:
        weight, bias = torch.from_numpy(layer.weight).half(), torch.from_numpy(layer.bias).half()
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding))
        x = torch.nn.functional.max_pool2d(x, 3, 2) if layer.pool else x
    ours, never_rounded = layers(images, torch.float16)[4], layers(images, torch.float32)[4].half()
    assert ours.dtype == torch.float16
    assert float((ours.float() - x.float()).abs().max()) <= 1e-3 * float(x.abs().max())
    equal, by_chance = (float((y == x)[x != 0].float().mean()) for y in (ours, never_rounded))
    assert equal > 0.6
    assert by_chance < 0.3


def test_overflow_shows() -> None:
    """So that the next test can fail: half precision here is half precision."""
    loud = [Linear(np.full((1, 1), 60_000, np.float32), np.zeros(1, np.float32))] * 2
    assert activations(torch.full((1, 1), 2.0).half(), Network([], loud))[-1].isinf().all()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_half_precision_turns_at_most_one_label_in_a_thousand(shared_faces: Path) -> None:
    with Engine.load() as engine:
        paths = sorted((shared_faces / "fer2013" / "val").rglob("*.jpg"))
        images = np.stack([engine.prepare(path) for path in paths])
    turned, largest = 0, 0.0
    for start in range(0, len(images), 64):
        exact, half = (layers(images[start : start + 64], dtype) for dtype in (torch.float32, torch.float16))
        turned += int((exact[-1].argmax(1) != half[-1].argmax(1)).sum())
        largest = max(largest, *(float(layer.abs().max()) for layer in exact))
    assert len(images) > 1500
    assert turned <= len(images) / 1000
    assert largest < HALF_MAX / 100
