"""Augmentation without the host: the same distributions as by parts, in a fixed number of operations."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fmengine_train import distortions
from fmengine_train.augment import augment, mix
from fmengine_train.augment_masked import augment_masked, fold_grid, make_downsampling, mix_masked

# What a host has to wait for on a GPU: a value, or a shape that depends on values.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero"}


class Recorder(TorchDispatchMode):
    """Records the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def waves(count: int, size: int = 32) -> Tensor:
    """Pictures whose levels, edges and mirror images differ, uint8 `[N, 1, size, size]`."""
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    made = [128 + 60 * torch.sin(x / (5 + i % 7) + i) + 40 * torch.cos(y / (4 + i % 5)) + x for i in range(count)]
    return torch.stack(made).unsqueeze(1).clamp(0, 255).to(torch.uint8)


def describe(levels: Tensor) -> Tensor:
    """Figures of every picture: mean, deviation, edges, share of black and of white, of corner and middle."""
    edges = (levels[..., 1:] - levels[..., :-1]).abs()
    black, white = (levels == 0).float(), (levels == 255).float()
    parts = (levels, edges, black, white, levels[..., :4, :4], levels[..., 12:20, 12:20])
    return torch.stack([part.mean((1, 2, 3)) for part in parts] + [levels.std((1, 2, 3))])


@pytest.mark.parametrize(("strength", "harsh"), [(1.0, 0.0), (0.5, 0.2)])
def test_the_distribution_is_that_of_augmentation_by_parts(strength: float, harsh: float) -> None:
    """Means and deviations over 4,000 pictures: within 5 standard errors, and those of the deviations alike.

    By parts, padding and blur are the same for a whole batch; small batches make up for it.
    """
    images = waves(8)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    by_parts = describe(torch.cat([augment(images, generator, strength, harsh) for _ in range(500)]))
    masked = describe(torch.cat([augment_masked(images, strength, harsh) for _ in range(500)]))
    error = (by_parts.var(1) + masked.var(1)).div(by_parts.shape[1] / 3).sqrt()  # a third: batches share draws
    off = (by_parts.mean(1) - masked.mean(1)).abs() / error
    assert float(off.max()) < 5, off
    torch.testing.assert_close(by_parts.std(1), masked.std(1), rtol=0.08, atol=0.01)


@pytest.fixture
def fresh_matrices() -> Iterator[None]:
    """Matrices of other sizes are not left to other tests."""
    make_downsampling.cache_clear()
    yield
    make_downsampling.cache_clear()


@pytest.mark.usefixtures("fresh_matrices")
def test_one_distortion_alone_is_exactly_that_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downsampling by one factor, as a product with matrices and as two resizings."""
    for name in ("TURN", "SCALE", "STRETCH", "SHEAR", "SHIFT", "CONTRAST", "BRIGHTNESS", "GAMMA"):
        monkeypatch.setattr(distortions, name, (0.0, 0.0))
    for name in ("STEP_BACK_SHARE", "OVAL_SHARE", "ERASE_SHARE", "NOISE_SHARE"):
        monkeypatch.setattr(distortions, name, 0.0)
    monkeypatch.setattr(distortions, "MIRRORED", 0.0)
    monkeypatch.setattr(distortions, "DOWNSAMPLE_SHARE", 1.0)
    monkeypatch.setattr(distortions, "DOWNSAMPLE", (0.5, 0.5))
    images = waves(4)
    result = augment_masked(images)
    torch.testing.assert_close(result, augment(images, torch.Generator().manual_seed(0)), rtol=0, atol=0.01)
    small = F.interpolate(images.float(), (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(result, F.interpolate(small, (32, 32), mode="bilinear"), rtol=0, atol=0.01)


def test_each_picture_has_its_own_padding_and_it_is_that_of_grid_sample() -> None:
    images = waves(3).float()[..., :20]
    grid = torch.rand(3, 32, 20, 2, generator=torch.Generator().manual_seed(0)) * 5 - 2.5
    folded = fold_grid(grid, torch.arange(3).view(-1, 1, 1, 1))
    result = F.grid_sample(images, folded, align_corners=False)
    for row, padding in enumerate(distortions.PADDINGS):
        expected = F.grid_sample(images[row:][:1], grid[row:][:1], padding_mode=padding, align_corners=False)
        torch.testing.assert_close(result[row:][:1], expected, rtol=0, atol=0.01)


def test_a_seed_repeats_and_another_differs() -> None:
    images = waves(8)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return augment_masked(images, 1.0, 0.2)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 3, 40, 33)])
def test_range_type_and_input_hold(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    before = images.clone()
    for strength, harsh in ((0.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        result = augment_masked(images, strength, harsh)
        assert result.shape == images.shape
        assert result.dtype == torch.float32
        assert float(result.min()) >= 0
        assert float(result.max()) <= 255
    assert torch.equal(images, before)
    assert torch.equal(augment_masked(images, 0.0), images.float())


def test_nothing_waits_for_the_host() -> None:
    """And by parts much does: the test sees it."""

    def record(function: Callable[[], object]) -> list[str]:
        with Recorder() as recorder:
            function()
        return recorder.names

    images = waves(8)
    augment_masked(images, 1.0, 0.2)  # the matrices are made
    masked = record(lambda: mix_masked((augment_masked(images, 1.0, 0.2), torch.eye(8)), 0.5))
    generator = torch.Generator().manual_seed(0)
    by_parts = record(lambda: mix((augment(images, generator, 1.0, 0.2), torch.eye(8)), generator, 0.5))
    assert not WAITS & set(masked)
    assert WAITS & set(by_parts)


def test_pairs_are_blended_with_their_answers_in_a_share_of_the_batches() -> None:
    torch.manual_seed(0)
    images, answers = torch.arange(4.0).view(4, 1, 1, 1), torch.eye(4)
    blended, partners = 0, set()
    for _ in range(200):
        mixed, mixed_answers = mix_masked((images, answers), 0.25)
        assert mixed_answers.sum(1).allclose(torch.ones(4))
        torch.testing.assert_close(mixed.flatten(), mixed_answers @ torch.arange(4.0))
        blended += not torch.equal(mixed_answers, answers)
        partners |= set(mixed_answers[0].nonzero().flatten().tolist())
    assert 30 < blended < 70
    assert partners == {0, 1, 2, 3}
    assert mix_masked((images, answers), 0.0)[0] is images
