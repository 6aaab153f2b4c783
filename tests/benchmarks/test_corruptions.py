"""Corruptions: more severe is further off, the same seed is the same picture, and sizes stay what they were."""

from pathlib import Path

import numpy as np
import pytest

from fmengine.engine import Engine
from fmengine_bench.corruptions import CORRUPTIONS, SEVERITIES
from fmengine_bench.labelled import list_labelled_files
from fmengine_bench.robustness import as_text, measure_robustness

NAMES = list(CORRUPTIONS)


def corrupted(pixels: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    return CORRUPTIONS[name](pixels, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (48, 48), (60, 50, 3)])
def test_any_picture_is_corrupted_into_a_picture(name: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    before = pixels.copy()
    for severity in range(1, SEVERITIES + 1):
        found = corrupted(pixels, name, severity)
        assert found.dtype == np.uint8
        assert found.ndim == pixels.ndim
        assert name == "small" or found.shape == shape
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("name", NAMES)
def test_more_severe_is_further_off(name: str, portrait_pixels: np.ndarray) -> None:
    gray = portrait_pixels[:120, :120].mean(axis=2).astype(np.uint8)
    if name == "small":
        sizes = [corrupted(gray, name, severity).shape[0] for severity in range(1, SEVERITIES + 1)]
        assert sizes == [40, 36, 32, 28, 24]
        return
    distances = []
    for severity in range(1, SEVERITIES + 1):
        runs = [np.abs(corrupted(gray, name, severity, seed).astype(float) - gray).mean() for seed in range(8)]
        distances.append(np.mean(runs))
    assert distances == sorted(distances)
    assert distances[0] > 0.5


def test_nothing_in_the_picture_is_swapped_or_mirrored(portrait_pixels: np.ndarray) -> None:
    for name in NAMES:
        found = corrupted(portrait_pixels, name, 1)
        if found.shape == portrait_pixels.shape:
            correlation = np.corrcoef(found.ravel().astype(float), portrait_pixels.ravel().astype(float))[0, 1]
            assert correlation > 0.7, name


@pytest.mark.parametrize("name", ["noise", "rotation", "occlusion"])
def test_the_seed_decides(name: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (48, 48), np.uint8)
    np.testing.assert_array_equal(corrupted(pixels, name, 3, 7), corrupted(pixels, name, 3, 7))
    assert any((corrupted(pixels, name, 3, 7) != corrupted(pixels, name, 3, seed)).any() for seed in range(8))


@pytest.mark.slow
def test_robustness_through_the_runtime(drawn_faces: Path) -> None:
    with Engine.load(backend="onnxruntime") as engine:
        files = list_labelled_files(drawn_faces / "val", engine.spec.labels)
        found = measure_robustness(engine, [*files, (str(drawn_faces / "none.png"), 0)])
        assert found == measure_robustness(engine, files)
        right = [engine.predict(path).label == engine.spec.labels[target] for path, target in files]
    assert found.clean == np.mean(right)
    assert found.accuracy.keys() == CORRUPTIONS.keys()
    assert found.mean == pytest.approx(np.mean(list(found.accuracy.values())))
    assert "points below" in as_text(found)


def test_a_picture_that_the_model_has_no_answer_for_is_not_answered_right(blind: Path) -> None:
    with Engine.load(blind / "blind.onnx", "onnxruntime") as engine:
        found = measure_robustness(engine, list_labelled_files(blind / "faces", engine.spec.labels))
    assert found.clean == 0.5  # gray is happy, and of black it has no opinion
    assert found.accuracy["dark"] == [0.5, 0.5, 0.5, 0.5, 0.0]  # in the end gray is black too
    assert 0 < found.mean < 1


# Halves to choose on and to report on


def test_the_parts_halve_a_folder(drawn_faces: Path) -> None:
    labels = ("happy", "sad")
    everything = list_labelled_files(drawn_faces / "train", labels)
    parts = [list_labelled_files(drawn_faces / "train", labels, part=part) for part in ("select", "report")]
    assert sorted(parts[0] + parts[1]) == sorted(everything)
    assert 0.3 < len(parts[0]) / len(everything) < 0.7
