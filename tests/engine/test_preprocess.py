"""The preprocessing of the runtime is the definition, bit for bit."""

import hashlib
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fmengine.errors import Kind, SourceError
from fmengine.image.geometry import check_resize, compute_crop_box, compute_fit_box, compute_pad_box
from fmengine.image.preprocess import MAX_GROUP_BYTES, MAX_STRIP_BYTES, preprocess, preprocess_batch
from fmengine.model.spec import InputSpec
from fmengine.types import COLORS, FITS
from fmengine_bench.definition import preprocess as define

# A few lines that are far longer than wide, since Pillow 13 treats tall pictures in another order.
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([1, 2, 3, 111, 112, 113, 1000, 2800]))


# Of the demo's portrait at 112×112, gray, cropped.
GOLDEN_ROW = [203, 203, 205, 204, 205, 205, 205, 206]
GOLDEN_SHA256 = "d6cb6d5f39af13f74e11bda0d93b308f6c2fa4c4c8e3f37c58fc25e478c4237a"


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    height=SIZES,
    width=SIZES,
    color=st.sampled_from(COLORS),
    fit=st.sampled_from(FITS),
    target=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    channels=st.sampled_from([1, 3]),
    strip=st.sampled_from([1, 1000, MAX_STRIP_BYTES]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(height, width, color, fit, target, channels, strip, seed):
    left, top, right, bottom = compute_pad_box((width, height), (target[1], target[0]))
    assume(fit != "pad" or (right - left) * (bottom - top) < 10_000_000)  # a long strip, padded, is huge
    shape = (height, width) if channels == 1 else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    spec = InputSpec(*target, color, fit)
    with patch("fmengine.image.preprocess.MAX_STRIP_BYTES", strip):
        made = preprocess(pixels, spec)
    assert np.array_equal(made, define(pixels, spec))
    assert made.flags.c_contiguous


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.sampled_from([(1, 1), (48, 48), (200, 200), (37, 90), (90, 37), (30, 40)]), max_size=40),
    color=st.sampled_from(COLORS),
    fit=st.sampled_from(FITS),
    target=st.sampled_from([(30, 40), (48, 48), (80, 80), (48, 60)]),
    channels=st.sampled_from([1, 3]),
    group=st.sampled_from([1, 10_000, MAX_GROUP_BYTES]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_batch_is_its_pictures_one_by_one(sizes, color, fit, target, channels, group, seed):
    rng = np.random.default_rng(seed)
    shapes = [size if channels == 1 else (*size, 3) for size in sizes]
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    spec = InputSpec(*target, color, fit)
    out = np.full((len(sizes), *spec.shape), 7, np.uint8)
    with patch("fmengine.image.preprocess.MAX_GROUP_BYTES", group):
        batch = preprocess_batch(pictures, spec)
        assert preprocess_batch(pictures, spec, out) is out
    assert np.array_equal(batch, out)
    assert batch.shape == (len(sizes), 1 if color == "gray" else 3, *target)
    assert batch.flags.c_contiguous
    for pixels, made in zip(pictures, batch, strict=True):
        assert np.array_equal(made, define(pixels, spec))


def test_one_call_of_pillow_would_not_do():
    # Were this to pass with one call, the definition's fixed order would have become needless.
    pixels = np.random.default_rng(7).integers(0, 256, (431, 42), dtype=np.uint8)
    two = preprocess(pixels, InputSpec(112, 112, "gray", "stretch"))[0]
    swapped = np.asarray(
        Image.fromarray(pixels)
        .resize((42, 112), Image.Resampling.BILINEAR)
        .resize((112, 112), Image.Resampling.BILINEAR)
    )
    assert not np.array_equal(two, swapped)
    assert np.abs(two.astype(int) - swapped).max() == 1


def test_golden_values_of_the_portrait(portrait_pixels):
    gray = preprocess(portrait_pixels, InputSpec(112, 112, "gray", "crop"))
    assert gray.shape == (1, 112, 112)
    assert gray[0, 56, :8].tolist() == GOLDEN_ROW
    assert hashlib.sha256(gray.tobytes()).hexdigest() == GOLDEN_SHA256


@given(
    source=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    target=st.tuples(st.integers(1, 500), st.integers(1, 500)),
)
def test_boxes_are_centred_and_of_the_right_shape(source, target):
    (w, h), (tw, th) = source, target
    left, top, right, bottom = compute_crop_box(source, target)
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    assert 0 <= (w - right) - left <= 1
    assert 0 <= (h - bottom) - top <= 1
    assert (right - left, bottom - top) == (w, h) or right - left == w or bottom - top == h
    left, top, right, bottom = compute_pad_box(source, target)
    assert left <= 0 < w <= right
    assert top <= 0 < h <= bottom
    # One side is the picture's own; the other is the nearest whole pixel to the input's aspect ratio.
    assert right - left == w or bottom - top == h
    off = abs((right - left) * th - (bottom - top) * tw)
    assert off <= max(tw, th)


@pytest.mark.parametrize(
    ("size", "target", "fit", "says"),
    [
        ((16, 8_388_608), (80, 80), "stretch", "makes 8,388,608 rows, resized to 80 pixels each"),
        ((16, 419_431), (80, 80), "stretch", "the limit is 33,554,432 pixels"),
        ((1, 11_586), (80, 80), "pad", "makes 11586×11586 with its borders; the limit is 134,217,728 pixels"),
        ((11_586, 1), (80, 80), "pad", "a strip of 11586×1 pixels"),
        ((1_000_000, 2), (80, 80), "pad", "1000000×1000000"),
        ((2, 1_000_000), (1, 1000), "crop", ""),
        ((16, 419_430), (80, 80), "stretch", ""),
        ((1, 11_585), (80, 80), "pad", ""),
        ((16, 8_388_608), (80, 80), "crop", ""),
        ((11_585, 11_585), (512, 512), "stretch", ""),
    ],
)
def test_strips_that_take_far_more_than_their_pixels_are_refused(size, target, fit, says):
    """83 seconds and 3.6 GB for 16 columns of 11 million rows, stretched."""
    if not says:
        spec = InputSpec(target[1], target[0], "gray", fit)
        assert check_resize(size, spec) == compute_fit_box(size, spec)
        return
    pixels = np.broadcast_to(np.zeros(1, np.uint8), size[::-1])  # as large, and no memory
    for color in COLORS:
        with pytest.raises(SourceError, match=says) as caught:
            preprocess(pixels, InputSpec(target[1], target[0], color, fit))
        assert caught.value.kind is Kind.TOO_LARGE


@pytest.mark.parametrize(
    ("color", "fit", "says"), [("grey", "crop", "gray, rgb"), ("gray", "Crop", "crop, pad, stretch")]
)
def test_colours_and_fits_that_do_not_exist_are_refused(color, fit, says):
    """They were taken for `rgb` and `pad`."""
    with pytest.raises(ValueError, match=f"expected one of {says}"):
        InputSpec(8, 8, color, fit)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_are_written_in_place(count):
    """A batch's memory may be shared with another process, or a GPU: its neighbours are not touched."""
    rng = np.random.default_rng(count)
    spec = InputSpec(8, 9, "rgb", "crop")
    images = [rng.integers(0, 256, (20 + 5 * (index % 2), 30, 3), dtype=np.uint8) for index in range(count)]
    memory = np.full((count + 2, *spec.shape), 7, np.uint8)
    out = memory[1:-1]
    assert preprocess_batch(images, spec, out) is out
    assert np.array_equal(out, np.stack([define(image, spec) for image in images]))
    assert (memory[0] == 7).all()
    assert (memory[-1] == 7).all()


@pytest.mark.parametrize(
    "out", [np.empty((2, 1, 8, 8), np.uint8), np.empty((1, 3, 8, 8), np.uint8), np.empty((1, 1, 8, 8), np.float32)]
)
def test_out_of_another_form_is_refused(out):
    with pytest.raises(ValueError, match=r"expected uint8 \(1, 1, 8, 8\)"):
        preprocess_batch([np.zeros((9, 9), np.uint8)], InputSpec(8, 8), out)


def test_nothing_is_written_where_one_is_too_large():
    out = np.full((2, 1, 80, 80), 7, np.uint8)
    strip = np.broadcast_to(np.zeros(1, np.uint8), (8_388_608, 16))
    with pytest.raises(SourceError):
        preprocess_batch([np.zeros((9, 9), np.uint8), strip], InputSpec(80, 80, "gray", "stretch"), out)
    assert (out == 7).all()


def test_padding_is_black_and_cropping_keeps_the_centre():
    pixels = np.full((10, 20), 200, dtype=np.uint8)
    pixels[:, :5] = pixels[:, 15:] = 50
    assert (preprocess(pixels, InputSpec(10, 10, "gray", "crop")) == 200).all()
    padded = preprocess(pixels, InputSpec(20, 20, "gray", "pad"))[0]
    assert (padded[:5] == 0).all()
    assert (padded[15:] == 0).all()
    assert np.array_equal(padded[5:15], pixels)


@pytest.mark.parametrize("color", COLORS)
def test_a_picture_of_the_right_size_is_left_alone(color):
    shape = (112, 112) if color == "gray" else (112, 112, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    result = preprocess(pixels, InputSpec(112, 112, color, "crop"))
    assert np.array_equal(result, pixels[np.newaxis] if color == "gray" else pixels.transpose(2, 0, 1))
