"""The preprocessing definition in NumPy: bit for bit what Pillow and the runtime compute."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fmengine.image.decode import decode
from fmengine.image.preprocess import preprocess as runtime
from fmengine.model.spec import InputSpec
from fmengine.options import Limits
from fmengine.types import COLORS, FITS, Color, Fit
from fmengine_bench.definition import convert_to_luma, precompute_coeffs, preprocess, resize

# Of Pillow's own: 5×7 levels to 3×4, two calls, horizontally and then vertically.
GOLDEN_SOURCE = (np.arange(35).reshape(5, 7) * 37 % 256).astype(np.uint8)
GOLDEN = [[20, 78, 146, 204], [25, 83, 151, 209], [30, 88, 156, 214]]

sizes = st.integers(1, 300)
targets = st.integers(1, 64)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def two_calls(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(plane).resize((width, len(plane)), Image.Resampling.BILINEAR)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


@settings(deadline=None, max_examples=150)
@given(rows=sizes, columns=sizes, height=targets, width=targets, seed=st.integers(0, 2**32 - 1))
@example(rows=1, columns=1, height=64, width=64, seed=0)
@example(rows=1, columns=3000, height=40, width=40, seed=1)
@example(rows=3000, columns=1, height=40, width=40, seed=2)
@example(rows=2, columns=2999, height=1, width=1, seed=3)
@example(rows=112, columns=112, height=112, width=112, seed=4)
def test_resize_is_two_calls_of_pillow(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    plane = noise(rows, columns, seed=seed)
    assert np.array_equal(resize(plane, height, width), two_calls(plane, height, width))


@settings(deadline=None, max_examples=100)
@given(
    rows=sizes,
    columns=sizes,
    height=targets,
    width=targets,
    color=st.sampled_from(COLORS),
    fit=st.sampled_from(FITS),
    channels=st.sampled_from([1, 3]),
)
@example(rows=2000, columns=3, height=40, width=40, color="gray", fit="pad", channels=3)
@example(rows=3, columns=2000, height=64, width=1, color="rgb", fit="crop", channels=1)
def test_definition_and_runtime_agree(
    rows: int, columns: int, height: int, width: int, color: Color, fit: Fit, channels: int
) -> None:
    pixels = noise(rows, columns, 3) if channels == 3 else noise(rows, columns)
    spec = InputSpec(height, width, color, fit)
    defined = preprocess(pixels, spec)
    assert defined.shape == (1 if color == "gray" else 3, height, width)
    assert defined.dtype == np.uint8
    assert np.array_equal(defined, runtime(pixels, spec))


def test_definition_and_runtime_agree_on_real_faces(drawn_faces: Path) -> None:
    spec = InputSpec(112, 112, "gray", "crop")
    for path in sorted((drawn_faces / "val").rglob("*.png"))[:8]:
        pixels = decode(path, "gray", Limits())
        assert np.array_equal(preprocess(pixels, spec), runtime(pixels, spec))


def test_resize_is_golden() -> None:
    assert resize(GOLDEN_SOURCE, 3, 4).tolist() == GOLDEN


def test_the_order_of_the_passes_counts() -> None:
    plane = noise(97, 61)
    assert not np.array_equal(resize(plane, 40, 40), resize(plane.T.copy(), 40, 40).T)


@settings(deadline=None)
@given(size=st.integers(1, 2000), target=st.integers(1, 256))
def test_coefficients_of_a_row_are_a_mean(size: int, target: int) -> None:
    matrix = precompute_coeffs(size, target)
    assert matrix.shape == (target, size)
    assert (matrix >= 0).all()
    # Each is rounded to 22 bits, by half a unit at most.
    assert (np.abs(matrix.sum(axis=1) - 2**22) <= np.count_nonzero(matrix, axis=1) / 2 + 1).all()


def test_flat_pictures_stay_flat() -> None:
    for level in (0, 1, 127, 254, 255):
        assert (resize(np.full((217, 133), level, np.uint8), 40, 40) == level).all()


def test_luma_is_golden() -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [10, 20, 30]]], np.uint8)
    assert convert_to_luma(rgb).tolist() == [[76, 150, 29, 255, 0, 18]]


def test_luma_is_that_of_pillow() -> None:
    rgb = noise(64, 64, 3)
    assert np.array_equal(convert_to_luma(rgb), np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize("fit", FITS)
def test_the_definition_leaves_its_input_as_it_is(fit: Fit) -> None:
    pixels = noise(30, 50, 3)
    before = pixels.copy()
    preprocess(pixels, InputSpec(20, 20, "rgb", fit))
    assert np.array_equal(pixels, before)
