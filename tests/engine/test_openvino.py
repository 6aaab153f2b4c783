"""OpenVINO gives the answers that ONNX Runtime gives."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fmengine import Engine, FmengineError, ModelError, UnavailableError

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install '.[openvino]'")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(backend="openvino", max_batch=16) as engine:
        yield engine


def images(engine: Engine, count: int = 40) -> np.ndarray:
    """Smooth pictures: noise alone would drive every answer to one side."""
    rng = np.random.default_rng(8)
    _, channels, height, width = engine.spec.input_shape(count)
    coarse = rng.integers(0, 256, (count, channels, 6, 6)).repeat(-(-height // 6), 2).repeat(-(-width // 6), 3)
    return coarse[:, :, :height, :width].astype(np.uint8)


# Where a sum lies half-way between two levels, the libraries may round apart: a level is some thousandths.
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 5e-3), ("fp32", 1e-5)])
def test_the_answers_are_onnxruntimes(tiny_models: Path, precision: str, tolerance: float) -> None:
    path = tiny_models / f"tiny.{precision}.onnx"
    with Engine.load(path, "openvino") as theirs, Engine.load(path, "onnxruntime") as ours:
        pictures = images(ours)
        found, expected = theirs.backend.run(pictures), ours.backend.run(pictures)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=tolerance)
        assert expected.probabilities.std() > 0.01  # they are not all alike


def test_the_shipped_model_answers_alike(engine: Engine) -> None:
    with Engine.load(backend="onnxruntime") as ours:
        found, expected = (e.backend.run(images(engine)).probabilities for e in (engine, ours))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_a_picture_gets_the_same_bits_in_any_batch(engine: Engine) -> None:
    pictures = images(engine)
    alone = np.concatenate([engine.backend.run(picture[None]).logits for picture in pictures])
    for size in (2, 7, 40):
        parts = [engine.backend.run(pictures[start : start + size]).logits for start in range(0, 40, size)]
        np.testing.assert_array_equal(np.concatenate(parts), alone)


def test_sixteen_threads_get_their_own_answers(engine: Engine) -> None:
    pictures = images(engine)
    expected = engine.backend.run(pictures).logits
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda i: engine.backend.run(pictures[i : i + 1]).logits, [*range(40)] * 5))
    np.testing.assert_array_equal(np.concatenate(rows), np.tile(expected, (5, 1)))


def test_answers_stay_when_the_next_are_computed(engine: Engine) -> None:
    pictures = images(engine, 2)
    first = engine.backend.run(pictures[:1]).logits
    kept = first.copy()
    engine.backend.run(pictures[1:])
    np.testing.assert_array_equal(first, kept)


def test_it_says_what_it_runs_on_and_stops_when_closed() -> None:
    engine = Engine.load(backend="openvino", threads=1)
    described = engine.backend.describe()
    assert described["backend"] == "openvino"
    assert described["library"].startswith("openvino 20")
    assert described["threads"] == "1"
    pictures = images(engine, 1)
    engine.close()
    with pytest.raises(FmengineError, match="closed"):
        engine.backend.run(pictures)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match=r"pip install '\.\[openvino\]' in a checkout"):
        Engine.load(backend="openvino")


def test_a_graph_that_it_cannot_run_is_refused(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    def refuses(*arguments: object) -> None:
        raise RuntimeError("unsupported operation")

    monkeypatch.setattr(openvino.Core, "compile_model", refuses)
    with pytest.raises(ModelError, match=r"OpenVINO refuses .*tiny\.int8\.onnx: unsupported operation"):
        Engine.load(tiny_models / "tiny.int8.onnx", "openvino")
