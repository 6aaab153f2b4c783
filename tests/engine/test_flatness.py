"""A picture that shows nothing is called flat, however it comes, and by the measure that `prepare` has."""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tests.params import quick_first

from fmengine import Engine, Isolation, Reason
from fmengine.image.flatness import FLAT, is_flat, is_flat_input
from fmengine.image.preprocess import preprocess
from fmengine.model.spec import InputSpec
from fmengine.types import FITS
from fmengine_train.data import Item
from fmengine_train.prepare import sift

SIDES = st.integers(1, 40)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), SIDES, SIDES)))
def test_it_is_every_channels_standard_deviation(images: np.ndarray) -> None:
    # The same in whole numbers: the root of what is exactly `FLAT` squared may be less by the last bit.
    levels, pixels = images.astype(np.int64), images[0, 0].size
    squared = pixels * (levels**2).sum(axis=(2, 3)) - levels.sum(axis=(2, 3)) ** 2
    expected = (squared < FLAT**2 * pixels**2).all(axis=1)
    np.testing.assert_array_equal(is_flat(images), expected)


def test_the_largest_sums_are_exact() -> None:
    """Half black, half white, and one level all over, in more pixels than 32 bits could sum the squares of."""
    image = np.full((1, 1, 400, 1000), 255, np.uint8)
    assert is_flat(image).tolist() == [True]
    image[..., :500] = 250
    assert is_flat(image).tolist() == [False]  # 2.5 levels


@given(st.integers(0, 255), SIDES, SIDES, SIDES, SIDES, st.sampled_from(FITS))
def test_one_level_is_flat_in_any_size_and_fit(level: int, h: int, w: int, height: int, width: int, fit) -> None:
    spec = InputSpec(height, width, "gray", fit)
    image = preprocess(np.full((h, w), level, np.uint8), spec)
    assert is_flat_input(image[np.newaxis], [(w, h)], spec).tolist() == [True]


def test_a_face_between_the_borders_of_pad_is_not_flat(portrait_pixels: np.ndarray) -> None:
    for picture in (portrait_pixels, portrait_pixels[:40], portrait_pixels[:, :40]):
        spec = InputSpec(80, 80, "gray", "pad")
        image = preprocess(picture, spec)
        assert is_flat_input(image[np.newaxis], [picture.shape[1::-1]], spec).tolist() == [False]


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


FLAT_PICTURES = {
    "black": np.zeros((48, 48), np.uint8),
    "white, in colour": np.full((300, 200, 3), 255, np.uint8),
    "one pixel": np.array([[7]], np.uint8),
    "red": np.tile(np.uint8([220, 10, 10]), (60, 50, 1)),
    "a strip": np.full((3, 500), 90, np.uint8),
    "nearly one level": np.random.default_rng(0).integers(100, 103, (200, 200), np.uint8),
    "a blue JPEG": encoded(Image.new("RGB", (64, 64), (20, 30, 200)), "JPEG"),
    "transparent": encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG"),
}


@pytest.mark.parametrize("isolate", quick_first([None, Isolation()]), ids=["here", "isolated"])
def test_flat_pictures_are_called_so_among_others(
    portrait: Path, isolate: Isolation | None, tmp_path: Path
) -> None:
    sources = [portrait, *FLAT_PICTURES.values(), portrait]
    with Engine.load(isolate=isolate) as engine:
        many = list(engine.predict_many(sources))
        alone = [engine.predict(source) for source in sources]

        async def ask() -> list:
            return await asyncio.gather(*map(engine.apredict, sources))

        for answers in (many, alone, asyncio.run(ask())):
            assert [answer.reason for answer in answers] == [None, *["flat"] * len(FLAT_PICTURES), None]
            assert {answer.label for answer in answers} <= {"happy", "sad"}  # the network's, all the same


def test_with_a_threshold_the_label_is_unsure() -> None:
    black = FLAT_PICTURES["black"]
    for threshold in (0.01, "recommended", 1.0):
        with Engine.load(unsure_below=threshold) as engine:
            answer = engine.predict(black)
            assert (answer.label, answer.reason) == ("unsure", Reason.FLAT)
            assert answer.confidence == max(answer.probabilities.values())


def test_doubt_is_a_reason_too(portrait: Path) -> None:
    rng = np.random.default_rng(1)
    faces = [rng.integers(0, 256, (20, 20), np.uint8) for _ in range(100)]
    with Engine.load() as engine, Engine.load(unsure_below=0.9) as strict:
        for answer, other in zip(engine.predict_many(faces), strict.predict_many(faces), strict=True):
            assert answer.label in engine.spec.labels
            assert answer.reason == ("unsure" if answer.confidence < engine.spec.unsure_below else None)
            assert other.reason == ("unsure" if answer.confidence < 0.9 else None)
            assert other.label == ("unsure" if answer.confidence < 0.9 else answer.label)
        assert len({answer.reason for answer in engine.predict_many(faces)}) == 2, "both are among them"
        assert engine.predict(portrait).reason is strict.predict(portrait).reason is None


def test_prepare_drops_what_the_runtime_calls_flat(tmp_path: Path, portrait_pixels: np.ndarray) -> None:
    pictures = {name: p for name, p in FLAT_PICTURES.items() if isinstance(p, np.ndarray)}
    pictures["a face"] = portrait_pixels
    items = []
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        items.append(Item(tmp_path / f"{name}.png", "happy", "train", "drawn", name))
    kept, dropped = sift(items)
    assert [item.name for item in kept] == ["a face"]
    assert {drop.reason for drop in dropped} == {"flat: one level all over"}
