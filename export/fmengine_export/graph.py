"""ONNX graphs of an AlexNet: uint8 pictures in, logits, probabilities and features out.

    images: uint8[N, C, H, W] → normalise → seven layers → last layer → logits: float32[N, K]
                                               │                        → / temperature → softmax → probabilities
                                               └→ features: float32[N, F]

The graphs are written node by node and not traced: the family is eight layers, and where FP16 begins and
ends, and which tensors are quantised, is what these files are about. `fmengine parity` holds them against
PyTorch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fmengine
from fmengine.model.file import seal
from fmengine.model.spec import METADATA_KEY, ModelSpec

from .fold import Convolution, Linear, Network
from .quantize import quantize_weights

OPSET = 17  # TensorRT 10.12 and ONNX Runtime 1.20 read it
IR_VERSION = 8


@dataclass
class Graph:
    """Nodes and initializers in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        """Append a node; its output's name is its name too."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: "np.ndarray[Any, Any] | np.generic") -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name


def build_float(network: Network, spec: ModelSpec) -> bytes:
    """Build the FP32 file or the FP16 one, by `spec.precision`.

    FP16 is strongly typed: every tensor between the first Cast and the one on the logits is half.
    """
    half = spec.precision == "fp16"
    dtype = np.float16 if half else np.float32
    graph = Graph()
    x = graph.node("Cast", "images", output="pixels", to=TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    shape = (1, -1, 1, 1)
    x = graph.node("Sub", x, graph.constant("mean", np.reshape(spec.mean, shape).astype(dtype)), output="centred")
    inverse = (1 / np.reshape(spec.std, shape)).astype(dtype)
    x = graph.node("Mul", x, graph.constant("inverse_std", inverse), output="normalised")

    def parameters(name: str, layer: Convolution | Linear) -> tuple[str, str]:
        weight = graph.constant(f"{name}.weight", layer.weight.astype(dtype))
        return weight, graph.constant(f"{name}.bias", layer.bias.astype(dtype))

    _append_layers(graph, network, x, parameters, logits="half_logits" if half else "logits")
    if half:
        graph.node("Cast", "half_logits", output="logits", to=TensorProto.FLOAT)
    return _finish(graph, spec)


def build_int8(network: Network, spec: ModelSpec, scales: list[float]) -> bytes:
    """Build the Q/DQ file. Pixels are quantised already: the head is one DequantizeLinear.

    Args:
        network: the folded layers.
        spec: with `precision` int8, and one mean and one std for all channels.
        scales: of the activations, from `quantize.calibrate`.
    """
    graph = Graph()
    names = ["images", *(name for name, _ in _named(network))]
    scale_after = dict(zip(names, [1 / spec.std[0], *scales], strict=False))  # the logits stay float
    scale_before = dict(zip(names[1:], scale_after.values(), strict=True))
    for name, scale in scale_after.items():
        graph.constant(f"{name}.scale", np.float32(scale))
    graph.constant("zero", np.uint8(0))
    zero_level = graph.constant("mean", np.uint8(spec.mean[0]))
    x = graph.node("DequantizeLinear", "images", "images.scale", zero_level, output="normalised")

    def parameters(name: str, layer: Convolution | Linear) -> tuple[str, str]:
        integers = quantize_weights(layer, scale_before[name])
        # ONNX Runtime makes an integer product of a Gemm only where the weights' zero point is spelt out.
        weight = graph.node(
            "DequantizeLinear",
            graph.constant(f"{name}.weight.int8", integers.weight),
            graph.constant(f"{name}.weight.scale", integers.weight_scale),
            graph.constant(f"{name}.weight.zero", np.zeros(len(integers.weight), np.int8)),
            output=f"{name}.weight",
            axis=0,
        )
        bias = graph.node(
            "DequantizeLinear",
            graph.constant(f"{name}.bias.int32", integers.bias),
            graph.constant(f"{name}.bias.scale", np.float32(scale_before[name]) * integers.weight_scale),
            output=f"{name}.bias",
            axis=0,
        )
        return weight, bias

    def requantize(x: str, name: str) -> str:
        quantized = graph.node("QuantizeLinear", x, f"{name}.scale", "zero", output=f"{x}.quantized")
        return graph.node("DequantizeLinear", quantized, f"{name}.scale", "zero", output=f"{x}.dequantized")

    _append_layers(graph, network, x, parameters, requantize)
    return _finish(graph, spec)


def append_features(graph: Graph) -> None:
    """Append the output `features`: what the last layer takes, in FP32.

    Of quantised levels it is a DequantizeLinear of its own, beside the last layer's: ONNX Runtime computes a layer
    in integers only where nothing else reads what its input's is.
    """
    last = next(node for node in reversed(graph.nodes) if node.op_type == "Gemm")
    makes = next(node for node in graph.nodes if last.input[0] in node.output)
    if makes.op_type == "DequantizeLinear":
        graph.node("DequantizeLinear", *makes.input, output="features")
    else:
        graph.node("Cast", last.input[0], output="features", to=TensorProto.FLOAT)  # of FP32 it is no work


def describe(model: onnx.ModelProto, spec: ModelSpec) -> bytes:
    """Serialise a model with a spec in its metadata, sealed with the digest of the whole file."""
    others = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    return seal(model.SerializeToString())


def _named(network: Network) -> Iterator[tuple[str, Convolution | Linear]]:
    """Layers with their names: `conv1` … `conv5`, `fc6` … `fc8`."""
    for number, layer in enumerate(network.layers, start=1):
        yield f"{'conv' if isinstance(layer, Convolution) else 'fc'}{number}", layer


def _append_layers(
    graph: Graph,
    network: Network,
    x: str,
    parameters: Callable[[str, Convolution | Linear], tuple[str, str]],
    requantize: Callable[[str, str], str] = lambda x, name: x,
    logits: str = "logits",
) -> None:
    """Append the eight layers.

    Args:
        graph: to append to.
        network: the folded layers.
        x: the normalised pictures.
        parameters: gives the tensors of a layer's weight and bias, by its name.
        requantize: follows every tensor that a CPU keeps as uint8; is given the layer whose scale holds.
        logits: name of the last tensor.
    """
    previous = "images"
    for name, layer in _named(network):
        if isinstance(layer, Linear) and previous.startswith("conv"):
            x = requantize(graph.node("Flatten", x, output="flat"), previous)
        weight, bias = parameters(name, layer)
        if isinstance(layer, Linear):
            if layer is network.linears[-1]:
                graph.node("Gemm", x, weight, bias, output=logits, transB=1)
                return
            x = graph.node("Gemm", x, weight, bias, output=f"{name}.sum", transB=1)
        else:
            window = {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
            x = graph.node("Conv", x, weight, bias, output=f"{name}.sum", **window)
        x = requantize(graph.node("Relu", x, output=f"{name}.relu"), name)
        if isinstance(layer, Convolution) and layer.pool:
            pooled = graph.node("MaxPool", x, output=f"{name}.pool", kernel_shape=[3, 3], strides=[2, 2])
            x = requantize(pooled, name)
        previous = name


def _finish(graph: Graph, spec: ModelSpec) -> bytes:
    """Add the temperature-scaled softmax, in FP32 always, and the metadata; check and seal."""
    temperature = graph.constant("temperature", np.float32(spec.temperature))
    scaled = graph.node("Div", "logits", temperature, output="scaled_logits")
    graph.node("Softmax", scaled, output="probabilities", axis=1)
    if spec.features:
        append_features(graph)
    widths = dict(zip(spec.output_names, (len(spec.labels), len(spec.labels), spec.features), strict=False))
    proto = helper.make_graph(
        graph.nodes,
        spec.name,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *spec.input_shape(1)[1:]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name, width in widths.items()],
        graph.initializers,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fmengine",
        producer_version=fmengine.__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return describe(model, spec)
