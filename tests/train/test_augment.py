"""Augmentation: within range, repeatable, another one for each picture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmengine_train.augment import augment, mix


def pictures(count: int = 16, channels: int = 1, size: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def run(images: Tensor, seed: int = 0, strength: float = 1.0, harsh: float = 0.0) -> Tensor:
    return augment(images, torch.Generator().manual_seed(seed), strength, harsh)


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    size=st.integers(8, 50),
    seed=st.integers(0, 2**31),
    strength=st.floats(0, 2),
    harsh=st.floats(0, 1),
)
def test_shape_type_and_range_hold(
    count: int, channels: int, size: int, seed: int, strength: float, harsh: float
) -> None:
    images = pictures(count, channels, size)
    result = run(images, seed, strength, harsh)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert float(result.min()) >= 0
    assert float(result.max()) <= 255


def test_strength_zero_changes_nothing() -> None:
    images = pictures()
    assert torch.equal(run(images, strength=0), images.float())


def test_a_seed_repeats() -> None:
    assert torch.equal(run(pictures(), seed=3), run(pictures(), seed=3))


def test_another_seed_differs() -> None:
    assert not torch.equal(run(pictures(), seed=3), run(pictures(), seed=4))


def test_each_picture_is_distorted_in_its_own_way() -> None:
    results = run(pictures(1).expand(12, -1, -1, -1)).flatten(1)
    assert len({tuple(row.tolist()) for row in results}) == 12


def test_about_half_of_the_pictures_are_mirrored() -> None:
    ramp = torch.linspace(0, 255, 40).to(torch.uint8).expand(400, 1, 40, 40)
    result = run(ramp, strength=0.05)
    mirrored = (result[:, 0, :, :8].mean((1, 2)) > result[:, 0, :, -8:].mean((1, 2))).float().mean()
    assert 0.4 < float(mirrored) < 0.6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("harsh", [0.0, 1.0])
def test_the_input_stays_as_it_is(dtype: torch.dtype, strength: float, harsh: float) -> None:
    images = pictures().to(dtype)
    before = images.clone()
    run(images, strength=strength, harsh=harsh)
    assert torch.equal(images, before)


def test_more_strength_distorts_more() -> None:
    images = pictures(64).float()
    smooth = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    off = [float((run(smooth, strength=s) - smooth).abs().mean()) for s in (0.02, 1.0)]
    assert off[0] < off[1]


# Harsh light and noise


def test_a_share_of_the_pictures_becomes_noisy() -> None:
    dark = torch.full((400, 1, 24, 24), 60, dtype=torch.uint8)  # three times as bright is not yet white
    deviation = run(dark, strength=0, harsh=0.5).std((1, 2, 3))
    noisy = deviation > 1  # without noise it is the rounding of the mean, which another CPU's order of sums brings
    assert 0.4 < float(noisy.float().mean()) < 0.6
    assert 8 < float(deviation[noisy].min()) < 12
    assert 35 < float(deviation[noisy].max()) < 50


def test_a_share_of_the_pictures_becomes_up_to_three_times_as_bright() -> None:
    gray = torch.full((400, 1, 24, 24), 80, dtype=torch.uint8)
    levels = run(gray, strength=0, harsh=0.5).flatten(1).median(1).values
    brighter = levels > 90
    assert 0.35 < float(brighter.float().mean()) < 0.6
    assert 230 < float(levels.max()) <= 255


def test_recipes_without_harshness_repeat_the_runs_of_before_it() -> None:
    """The figures are those of the version that had no such parameter."""
    result = run(pictures(), seed=3).double()
    assert float(result.mean()) == pytest.approx(114.78109, rel=1e-4)
    assert float(result.std()) == pytest.approx(66.70040, rel=1e-4)


# Blending


def test_no_share_blends_nothing() -> None:
    images, answers = torch.rand(4, 1, 8, 8), torch.eye(4)
    same, kept = mix((images, answers), torch.Generator().manual_seed(0), 0.0)
    assert same is images
    assert kept is answers


def test_answers_are_blended_as_pictures_are() -> None:
    """Each picture here is its own answer drawn out, so that both must stay equal."""
    answers = torch.eye(4)
    images = answers.view(4, 1, 2, 2).clone()
    for seed in range(20):
        mixed, blended = mix((images, answers), torch.Generator().manual_seed(seed), 1.0)
        torch.testing.assert_close(mixed.flatten(1), blended)
        torch.testing.assert_close(blended.sum(1), torch.ones(4))
        assert (blended.diagonal() >= 0.5).all()  # a picture stays more itself than another
