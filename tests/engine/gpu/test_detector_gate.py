"""The gate of detectors: what it lets pass, and what it sees. Half precision is computed by PyTorch on the CPU."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.check.gate import GateError
from fmengine.detect.gate import check_detector
from fmengine.model.detector import DetectorOutputs, load_detector_file
from fmengine.options import BackendOptions

FILE = load_detector_file()


@pytest.fixture(scope="module")
def cpu() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend.open(FILE, BackendOptions(threads=1))


def run_half(images: np.ndarray) -> DetectorOutputs:
    """Run the FP16 file with every layer's results rounded to half, as a GPU does."""
    graph = onnx.load_from_string(load_detector_file(precisions=("fp16",)).data).graph
    tensors = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    tensors["images"] = torch.from_numpy(images)
    for node in graph.node:
        values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        inputs = [tensors[name] for name in node.input if name]
        tensors[node.output[0]] = run_node(node.op_type, inputs, values)
        assert torch.isfinite(tensors[node.output[0]]).all(), node.name
    return DetectorOutputs(*(tensors[name].numpy() for name in DetectorOutputs._fields))


def run_node(kind: str, inputs: list[Tensor], values: dict) -> Tensor:
    first = inputs[0]
    match kind:
        case "Conv":  # the sums are FP32 on tensor cores; what is kept is half
            stride, pads = values.get("strides", [1])[0], values.get("pads", [0])[0]
            groups = values.get("group", 1)
            return F.conv2d(*(each.float() for each in inputs), stride, pads, 1, groups).to(first.dtype)
        case "Cast":
            return first.to(
                {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.half}[values["to"]]
            )
        case "MaxPool":
            return F.max_pool2d(first, 2)
        case "Resize":
            return first.repeat_interleave(2, 2).repeat_interleave(2, 3)
        case "Add":
            return first + inputs[1]
        case "Reshape":
            return first.reshape(len(first), -1, int(inputs[1][2]))
        case "Transpose":
            return first.permute(values["perm"])
        case "Concat":
            return torch.cat(inputs, 1)
        case "Relu" | "Sigmoid":
            return getattr(torch, kind.lower())(first)
    raise NotImplementedError(kind)


def test_half_precision_passes(cpu: OnnxRuntimeBackend) -> None:
    found = check_detector(run_half, cpu.run, FILE.spec)
    assert found.faces == 10
    assert 0 < found.largest < 0.01
    assert 0.99 < found.iou < 1


def test_the_same_answers_pass(cpu: OnnxRuntimeBackend) -> None:
    assert check_detector(cpu.run, cpu.run, FILE.spec) == (10, 0.0, 1.0)


@pytest.mark.parametrize("fault", ["scores", "boxes", "missed", "no number"])
def test_the_gate_sees(fault: str, cpu: OnnxRuntimeBackend) -> None:
    """Scores and boxes that are off, and a face that is missed, in one picture of five."""

    def err(images: np.ndarray) -> DetectorOutputs:
        outputs = cpu.run(images)
        if images.shape[2] == 640:
            if fault == "boxes":
                outputs.bbox[..., 0] += 1
            else:
                outputs.cls[...] = {"scores": outputs.cls * 0.95, "missed": 0, "no number": np.nan}[fault]
        return outputs

    with pytest.raises(GateError, match=r"the detector is refused\. 640 rows of 352 pixels: "):
        check_detector(err, cpu.run, FILE.spec)
