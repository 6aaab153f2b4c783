"""What the tests of the benchmarks share."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fmengine.model.spec import ModelSpec
from fmengine_export.graph import describe

SIZE = 8


class Clock:
    """Time that passes only while the thread that made it sleeps, and then at once.

    What an earlier test left running sleeps as ever.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._sleep, self._thread = time.sleep, threading.get_ident()

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() == self._thread:
            self.now += seconds
        else:
            self._sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for the machine's clock, so that a timing is what the test says it is."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def blind(tmp_path: Path) -> Path:
    """A folder with `blind.onnx`, which calls everything happy, and has no number for black: its logits are 0 / 0.

    And with `faces/happy/black.png` and `gray.png`, which is nearly black.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["levels"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["brightest", "brightest"], ["one"]),
        helper.make_node("Unsqueeze", ["one", "axis"], ["column"]),
        helper.make_node("MatMul", ["column", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "blind",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("logits", "probabilities")],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array([[3, -3]], np.float32), "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = ModelSpec("blind", ("happy", "sad"), SIZE, SIZE, "gray", "crop", "fp32", (0,), (1.0,))
    (tmp_path / "blind.onnx").write_bytes(describe(model, spec))
    (tmp_path / "faces" / "happy").mkdir(parents=True)
    for name, level in (("black", 0), ("gray", 2)):
        Image.new("L", (SIZE, SIZE), level).save(tmp_path / "faces" / "happy" / f"{name}.png")
    return tmp_path
