"""The detector of faces over the test double, on every GPU backend, beside the CPU's."""

import logging

import numpy as np
import pytest
from PIL import Image

from fmengine import Engine, Scene
from fmengine.detect.gate import check_detector, draw_scenes
from fmengine.model.detector import load_detector_file
from fmengine.options import BackendOptions

from . import driver, shuffles

if driver.FOUND:
    from fmengine.gpu import detector as detectors
    from fmengine.gpu.detector import TensorRtDetector

    from . import onnxruntime_double, tensorrt_double

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]
PICTURES = [pixels[0].transpose(1, 2, 0) for pixels in draw_scenes(load_detector_file().spec)]


def load(name: str = "tensorrt") -> Engine:
    return Engine.load(shuffles.FP16, name, max_batch=16)


def assert_same(found: Scene, expected: Scene) -> None:
    assert len(found.faces) == len(expected.faces) > 0
    for ours, theirs in zip(found.faces, expected.faces, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=0.01)
        np.testing.assert_allclose(ours.box, theirs.box, atol=2)
        np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=2)
        assert ours.prediction.label == theirs.prediction.label


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_a_gpu_finds_what_the_cpu_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with load("onnxruntime") as engine:
        expected = [engine.find_faces(picture) for picture in PICTURES]
    if name == "onnxruntime-cuda":
        onnxruntime_double.install(monkeypatch)
    for seed in range(2):
        driver.shuffle(seed)
        with load(name) as engine:
            alone = [engine.find_faces(picture) for picture in PICTURES]
            for found, scene in zip(alone, expected, strict=True):
                assert_same(found, scene)
            for found, scene in zip(engine.predict_scenes(PICTURES * 3), alone * 3, strict=True):
                assert found.faces == scene.faces
            assert engine._finder is not None
            assert {opened.name for opened in engine._finder._detectors.values()} == {name}


def test_what_is_larger_than_the_engine_takes_is_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "MAX_SIDE", 320)
    with load() as engine, load("onnxruntime") as cpu:
        assert engine.find_faces(PICTURES[3]).faces[0].box == cpu.find_faces(PICTURES[3]).faces[0].box


def test_a_detector_that_errs_is_refused_and_the_cpu_finds_the_faces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, own_cache
) -> None:
    with load() as engine, load("onnxruntime") as cpu:
        monkeypatch.setitem(tensorrt_double.faults, "skew", np.float32(0.03))
        with caplog.at_level(logging.WARNING):
            found = engine.find_faces(PICTURES[2])
        monkeypatch.delitem(tensorrt_double.faults, "skew")
        assert [face.box for face in found.faces] == [face.box for face in cpu.find_faces(PICTURES[2]).faces]
    assert "faces are found on the CPU, by onnxruntime: the detector is refused" in caplog.text


def test_an_engine_is_built_once_and_passes_the_gate_once(monkeypatch: pytest.MonkeyPatch, own_cache) -> None:
    checks = []
    monkeypatch.setattr(detectors, "check_detector", lambda *parts: checks.append(1) or check_detector(*parts))
    builds = tensorrt_double.Builder.builds
    for _ in range(2):
        opened = TensorRtDetector.open(load_detector_file(precisions=("fp16",)), BackendOptions())
        assert opened.describe()["gate"].startswith(f"{opened.agreement.faces} faces, scores within ")
        opened.close()
    assert (tensorrt_double.Builder.builds - builds, len(checks)) == (1, 1)


def test_an_engine_without_room_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with load() as engine:
        monkeypatch.setitem(tensorrt_double.faults, "context", True)
        assert_same(engine.find_faces(PICTURES[1]), engine.find_faces(Image.fromarray(PICTURES[1])))
