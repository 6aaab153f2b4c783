"""Reads the weights of a model file back into an AlexNet, so that what ships can be trained further."""

import numpy as np
import torch
from torch import nn

from fmengine.errors import ModelError, UnavailableError, format_install_command
from fmengine.model.file import ModelFile

from .model import AlexNet, AlexNetConfig

CONVOLUTIONS = tuple(f"conv{number}" for number in range(1, 6))  # as `fmengine export` names them
LINEARS = ("fc6", "fc7", "fc8")


def build_from_onnx(file: ModelFile) -> AlexNet:
    """Build the AlexNet that a model file of `fmengine export` holds, in FP32 and evaluation mode.

    BatchNorm was folded into the convolutions, so the network has none. FP16 weights are exact in FP32.

    Raises:
        ModelError: for 8-bit weights, and for a graph that `fmengine export` does not write.
        UnavailableError: where `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        command = format_install_command("train")
        raise UnavailableError(f"weights of a model file need the package onnx: {command}") from error
    if file.spec.precision == "int8":
        raise ModelError(
            f"{file.path} has 8-bit weights, which cannot be trained further; give the .fp32.onnx or .fp16.onnx "
            "of the same model, or the run folder that it was exported from"
        )
    graph = onnx.load_from_string(file.data).graph
    try:
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        stem = next(node for node in graph.node if f"{CONVOLUTIONS[0]}.weight" in node.input)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in stem.attribute}
        shapes = {name: weights[f"{name}.weight"].shape for name in (*CONVOLUTIONS, *LINEARS)}
        config = AlexNetConfig(
            outputs=len(file.spec.labels),
            channels=shapes["conv1"][1],
            height=file.spec.height,
            width=file.spec.width,
            stem=(shapes["conv1"][2], attributes["strides"][0], attributes["pads"][0]),
            widths=tuple(shapes[name][0] for name in CONVOLUTIONS),
            hidden=(shapes["fc6"][0], shapes["fc7"][0]),
            batch_norm=False,
            mean=file.spec.mean[0],
            std=file.spec.std[0],
        )
        return _fill(AlexNet(config), weights)
    except (KeyError, IndexError, StopIteration, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{file.path} holds another network than `fmengine export` writes, so it cannot be trained further "
            f"({error}); give a run folder, or a model file of ours"
        ) from error


def _fill(network: AlexNet, weights: "dict[str, np.ndarray]") -> AlexNet:
    layers = [m for m in (*network.features, *network.classifier) if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for name, layer in zip((*CONVOLUTIONS, *LINEARS), layers, strict=True):
            for part in ("weight", "bias"):
                array = weights[f"{name}.{part}"].astype(np.float32)
                layer.get_parameter(part).copy_(torch.from_numpy(array))
    return network.eval()
