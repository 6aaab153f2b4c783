"""Write the face detector YuNet as model files, from the weights in the library of the wheel `yuface`.

    python -m fmengine_export.detector yuface-2023.5.1-….whl engine/fmengine/detect/shipped

The library (libfacedetection, BSD-3-Clause) holds its weights as a table of C structs, `param_pConvInfo`. Layers
and their order are those of its `facedetectcnn.cpp`. The same wheel gives the same bytes.
"""

import ctypes
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmengine.model.detector import NAME, VALUES, DetectorSpec, load_detector_file
from fmengine.model.file import seal
from fmengine.model.spec import METADATA_KEY, Precision

WHEEL_SHA256 = "fd03270a672da75b89809a2c999d5728ef19c6e701408a4d0bc9c00480c864a0"
LIBRARY = "yuface/libfacedetection.so"
LICENSE = "yuface-2023.5.1.dist-info/LICENSE"
LAYERS = 53
FIRST = 32  # values that the first layer has for each filter: 3 × 3 × 3, and zeros
STRIDES = (8, 16, 32)
HEADS = {"cls": 29, "bbox": 35, "obj": 41, "kps": 47}  # the first layer of each
OPSET, IR_VERSION = 17, 8
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


class Layer(NamedTuple):
    """A convolution.

    Attributes:
        channels: of its input.
        filters: of its output.
        depthwise: whether it is 3 × 3, a channel each; else 1 × 1, but for the first layer.
        weights: float32, as the library keeps them.
        bias: float32 `[filters]`.
    """

    channels: int
    filters: int
    depthwise: bool
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


class _ConvInfo(ctypes.Structure):
    """`ConvInfoStruct` of facedetectcnn.h."""

    _fields_ = (
        ("channels", ctypes.c_int),
        ("filters", ctypes.c_int),
        ("depthwise", ctypes.c_bool),
        ("pointwise", ctypes.c_bool),
        ("relu", ctypes.c_bool),
        ("weights", ctypes.POINTER(ctypes.c_float)),
        ("bias", ctypes.POINTER(ctypes.c_float)),
    )


def read_layers(library: Path) -> list[Layer]:
    """Read the weights out of the library's memory."""
    table = (_ConvInfo * LAYERS).in_dll(ctypes.CDLL(str(library)), "param_pConvInfo")

    def copy(values: "ctypes._Pointer[ctypes.c_float]", count: int) -> npt.NDArray[np.float32]:
        return np.ctypeslib.as_array(values, (count,)).astype(np.float32)

    return [
        Layer(
            info.channels,
            info.filters,
            bool(info.depthwise),
            copy(info.weights, info.filters * (9 if info.depthwise else info.channels)),
            copy(info.bias, info.filters),
        )
        for info in table
    ]


class _Graph:
    """The nodes and constants of the network, as they are added; its weights are of one type."""

    def __init__(self, layers: list[Layer], dtype: npt.DTypeLike) -> None:
        self._layers, self._dtype = layers, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def convolve(self, x: str, number: int, *, relu: bool) -> str:
        """Add a convolution, and its ReLU."""
        layer = self._layers[number]
        attributes: dict[str, Any] = {"kernel_shape": [1, 1]}
        if number == 0:  # rows, columns, and channels in the order B, G, R, which becomes R, G, B here
            kernels = layer.weights.reshape(layer.filters, FIRST)
            assert not kernels[:, 27:].any()
            weights = kernels[:, :27].reshape(layer.filters, 3, 3, 3).transpose(0, 3, 1, 2)[:, ::-1]
            attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        elif layer.depthwise:
            weights = layer.weights.reshape(9, layer.filters).T.reshape(layer.filters, 1, 3, 3)
            attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": layer.filters}
        else:
            weights = layer.weights.reshape(layer.filters, layer.channels, 1, 1)
        parts = {"w": weights, "b": layer.bias}
        inputs = [x, *(self.constant(f"{name}{number}", part.astype(self._dtype)) for name, part in parts.items())]
        y = self.add("Conv", inputs, f"conv{number}", **attributes)
        return self.add("Relu", [y], f"relu{number}") if relu else y

    def unit(self, x: str, number: int, *, relu: bool = True) -> str:
        """Add a 1 × 1 convolution and a depthwise one."""
        return self.convolve(self.convolve(x, number, relu=False), number + 1, relu=relu)

    def pair(self, x: str, number: int) -> str:
        return self.unit(self.unit(x, number), number + 2)

    def pool(self, x: str) -> str:
        return self.add("MaxPool", [x], f"{x}_pooled", kernel_shape=[2, 2], strides=[2, 2])

    def add_upsampled(self, x: str, other: str) -> str:
        """Add what is twice as large to `x`, each value of which counts four times."""
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.add("Add", [self.add("Resize", [x, "", "twice"], f"{x}_twice", **how), other], f"{other}_sum")


def build_detector(layers: list[Layer], spec: DetectorSpec) -> bytes:
    """Build the network: `images` uint8 `[N, 3, H, W]`, H and W multiples of 32, to `VALUES` of each anchor.

    FP16 is strongly typed: every tensor is half, from the levels to a Cast on what each output is made of.
    """
    half = spec.precision == "fp16"
    graph = _Graph(layers, np.float16 if half else np.float32)
    graph.constant("twice", np.array([1, 1, 2, 2], np.float32))
    levels = graph.add("Cast", ["images"], "levels", to=TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    x = graph.convolve(levels, 0, relu=True)
    x = graph.pool(graph.unit(x, 1))
    fine = graph.pair(graph.pool(graph.pair(graph.pair(x, 3), 7)), 11)
    middle = graph.pair(graph.pool(fine), 15)
    coarse = graph.unit(graph.pair(graph.pool(middle), 19), 27)
    middle = graph.unit(graph.add_upsampled(coarse, middle), 25)
    fine = graph.unit(graph.add_upsampled(middle, fine), 23)
    for name, size in VALUES.items():
        shape = graph.constant(f"{name}_shape", np.array([0, -1, size], np.int64))
        rows = []
        for level, features in enumerate((fine, middle, coarse)):
            values = graph.unit(features, HEADS[name] + 2 * level, relu=False)
            values = graph.add("Transpose", [values], f"{name}_{STRIDES[level]}_last", perm=[0, 2, 3, 1])
            rows.append(graph.add("Reshape", [values, shape], f"{name}_{STRIDES[level]}"))
        last = name if size > 1 else f"{name}_logits"
        joined = graph.add("Concat", rows, f"{last}_half" if half else last, axis=1)
        if half:
            graph.add("Cast", [joined], last, to=TensorProto.FLOAT)
        if size == 1:
            graph.add("Sigmoid", [last], name)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, "H", "W"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "A", size]) for name, size in VALUES.items()
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, spec.name, [images], outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fmengine",
    )
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return seal(model.SerializeToString(deterministic=True))


def make_detector(wheel: Path, folder: Path) -> list[Path]:
    """Write the model files, their digests and the notice of the weights' licence into a folder.

    Raises:
        ValueError: for another wheel than the one that was proven.
    """
    data = wheel.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != WHEEL_SHA256:
        raise ValueError(f"{wheel} has sha256 {found}; expected yuface 2023.5.1 for CPython 3.11: {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as temporary:
        archive.extractall(temporary)  # with the library that it is linked to
        layers, notice = read_layers(Path(temporary, LIBRARY)), archive.read(LICENSE)
    values = np.concatenate([part for layer in layers for part in (layer.weights, layer.bias)])
    paths = []
    for precision in PRECISIONS:
        spec = DetectorSpec(
            name=NAME,
            precision=precision,
            strides=STRIDES,
            training_data="WIDER FACE, by the authors of libfacedetection (Shiqi Yu and others, BSD-3-Clause)",
            weights_sha256=hashlib.sha256(values.tobytes()).hexdigest(),
        )
        paths.append(folder / f"{NAME}.{precision}.onnx")
        paths[-1].write_bytes(build_detector(layers, spec))
    digests = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    (folder / "SHA256SUMS").write_text(digests, encoding="ascii")
    (folder / "LICENSE.yunet").write_bytes(notice)
    return paths


def make_opencv_model(height: int, width: int) -> bytes:
    """Make of the shipped file one that `cv2.FaceDetectorYN` takes: BGR floats of one size, an output a stride."""
    graph = onnx.load_from_string(load_detector_file().data).graph
    nodes = [node for node in graph.node if node.op_type not in ("Cast", "Concat", "Sigmoid")]
    probabilities = [name for name, size in VALUES.items() if size == 1]
    for node in nodes:
        node.input[:] = ["input" if name == "levels" else name for name in node.input]
        if node.op_type == "Reshape" and node.output[0].startswith(tuple(probabilities)):
            node.output[0] += "_logits"
    for name in probabilities:
        nodes += [helper.make_node("Sigmoid", [f"{name}_{s}_logits"], [f"{name}_{s}"]) for s in STRIDES]
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    constants["w0"] = np.ascontiguousarray(constants["w0"][:, ::-1])
    outputs = [
        helper.make_tensor_value_info(f"{name}_{s}", TensorProto.FLOAT, [1, (height // s) * (width // s), size])
        for name, size in VALUES.items()
        for s in STRIDES
    ]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, height, width])
    kept = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    made = helper.make_graph(nodes, "yunet", [image], outputs, kept)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fmengine"
    )
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    print(*make_detector(*map(Path, sys.argv[1:3])), sep="\n")
