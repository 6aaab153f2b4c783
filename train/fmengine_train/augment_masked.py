"""Distorts batches in a fixed number of operations on whole batches, without a word to or from the host.

The same distributions as `augment.py`'s, for a GPU: there it is faster to compute all pictures and keep a part
than to choose the part first, and a step whose shapes never change can be captured in a CUDA graph. All parameters
of a batch come from one call of the device's own generator: a seed repeats a run on the same kind of device.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from . import distortions as d

PARAMETERS = 40  # drawn a picture, of which some stay unused


class _Draws:
    """Hands out uniform numbers from 0 to 1 of one draw for a batch, `[N]` at a time."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        self._columns = iter(torch.rand(PARAMETERS, count, device=device, generator=generator).unbind())

    def uniform(self, bounds: d.Range = (0, 1), strength: float = 1.0) -> Tensor:
        low, high = bounds[0] * strength, bounds[1] * strength
        return next(self._columns) * (high - low) + low

    def level(self, bounds: d.Range, strength: float = 1.0) -> Tensor:
        """Draw as `uniform` does, in a shape that is broadcast over pictures."""
        return self.uniform(bounds, strength).view(-1, 1, 1, 1)

    def chance(self, share: float) -> Tensor:
        """Choose a share of the pictures, bool `[N, 1, 1, 1]`."""
        return (next(self._columns) < share).view(-1, 1, 1, 1)


def augment_masked(images: Tensor, strength: float = 1.0, harsh: float = 0.0) -> Tensor:
    """Distort a batch; as `augment.augment`, with the parameters drawn from the device's own generator."""
    levels = images.float()
    if strength == harsh == 0:
        return levels
    draws = _Draws(len(levels), levels.device)
    if strength:
        levels = _step_back(levels, draws, strength)
    levels = _warp(levels, draws, strength)
    if strength:
        levels = _downsample(levels, draws, strength)
        light = (draws.level(bounds, strength) for bounds in (d.CONTRAST, d.BRIGHTNESS, d.GAMMA))
        levels = d.relight(levels, *light)
    exposure = torch.where(draws.chance(harsh), draws.level(d.EXPOSURE), 1.0)
    levels = (levels * exposure).clamp_(max=255)
    if strength:
        levels = _cover(levels, draws, strength)
    return _add_noise(levels, draws, strength, harsh).clamp_(0, 255)


def mix_masked(batch: tuple[Tensor, ...], share: float) -> tuple[Tensor, ...]:
    """Blend a batch's pictures in pairs with probability `share`, as `augment.mix` does."""
    if not share:
        return batch
    images = batch[0]
    drawn, blend = torch.rand(2, device=images.device).unbind()
    blend = torch.where(drawn < share, blend / 2, 0.0)
    other = torch.rand(len(images), device=images.device).argsort()
    return tuple(torch.lerp(tensor, tensor.index_select(0, other), blend) for tensor in batch)


def _step_back(levels: Tensor, draws: _Draws, strength: float) -> Tensor:
    count = len(levels)
    chosen = draws.chance(d.STEP_BACK_SHARE * strength)
    scale, x, y = draws.uniform(d.STEP_BACK), draws.uniform((-1, 1)), draws.uniform((-1, 1))
    other = (draws.uniform() * count).long().clamp_(max=count - 1)
    background = torch.where(
        draws.chance(d.PLAIN_SHARE), draws.level((0, 255)), d.blur(levels).index_select(0, other)
    )
    return torch.where(chosen, d.step_back(levels, scale, x, y, background), levels)


def warp_masked(levels: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Turn, scale, stretch, shear, shift and mirror a batch, as `augment.warp` does."""
    return _warp(levels, _Draws(len(levels), levels.device, generator), strength)


def _warp(levels: Tensor, draws: _Draws, strength: float) -> Tensor:
    ranges = (d.TURN, d.SCALE, d.STRETCH, d.SHEAR, d.SHIFT, d.SHIFT)
    parameters = [draws.uniform(bounds, strength) for bounds in ranges]
    flip = 1 - 2 * (draws.uniform() < d.MIRRORED).float()
    grid = d.make_warp_grid(levels, parameters, flip)
    grid = fold_grid(grid, draws.uniform((0, len(d.PADDINGS))).view(-1, 1, 1, 1).floor())
    return F.grid_sample(levels, grid, mode="bilinear", align_corners=False)


def fold_grid(grid: Tensor, padding: Tensor) -> Tensor:
    """Bring what lies outside a picture inside, so that each picture of a batch has its own padding.

    Args:
        grid: `[N, H, W, 2]`, x and y, the picture reaching from -1 to 1.
        padding: `[N, 1, 1, 1]`, indices into `PADDINGS`; outside stays outside, and so zero, for the first.
    """
    height, width = grid.shape[1:3]
    reflected = ((grid - 1) % 4 - 2).abs() - 1
    inside = torch.where(padding == 1, grid, reflected)
    edges = (1 - 1 / width, 1 - 1 / height)  # the outermost pixels' centres
    inside = torch.stack([inside[..., axis].clamp(-edge, edge) for axis, edge in enumerate(edges)], dim=-1)
    return torch.where(padding == 0, grid, inside)


def _downsample(levels: Tensor, draws: _Draws, strength: float) -> Tensor:
    chosen = draws.chance(d.DOWNSAMPLE_SHARE * strength).view(-1)
    factor = draws.uniform(d.DOWNSAMPLE)
    for axis in (2, 3):
        side = levels.shape[axis]
        matrices = _take_downsampling(side, levels.device)
        row = (factor * side).round().long().clamp_(min=d.SMALLEST) - _smallest(side)
        matrix = matrices.index_select(0, torch.where(chosen, row, len(matrices) - 1)).unsqueeze(1)
        levels = matrix @ levels if axis == 2 else levels @ matrix.transpose(2, 3)
    return levels


def _smallest(side: int) -> int:
    return max(d.SMALLEST, round(side * d.DOWNSAMPLE[0]))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # it would compile how they are made
def _take_downsampling(side: int, device: torch.device) -> Tensor:
    return make_downsampling(side, device)


@cache
def make_downsampling(side: int, device: torch.device) -> Tensor:
    """Make matrices that scale a side down and up again, one for each smaller size; the last changes nothing.

    Both resizings are linear, so that one product with a matrix does them, whatever size each picture takes.
    """
    whole = torch.eye(side)
    matrices = []
    for size in range(_smallest(side), max(d.SMALLEST, round(side * d.DOWNSAMPLE[1])) + 1):
        shrunk = F.interpolate(whole[None, None], (size, side), mode="bilinear", antialias=True)
        matrices.append(F.interpolate(shrunk, (side, side), mode="bilinear")[0, 0])
    return torch.stack([*matrices, whole]).to(device)


def _cover(levels: Tensor, draws: _Draws, strength: float) -> Tensor:
    """Paint what lies outside an oval, and a rectangle."""
    ranges = (d.OVAL_CENTRE, d.OVAL_WIDTH, d.OVAL_CENTRE, d.OVAL_HEIGHT)
    outside = d.is_outside_oval(levels, *map(draws.level, ranges)) & draws.chance(d.OVAL_SHARE * strength)
    levels = torch.where(outside, draws.level(d.OVAL_LEVEL).clamp_(min=0), levels)
    inside = d.is_inside_rectangle(levels, *map(draws.level, ((0, 1), d.ERASE_HALF, (0, 1), d.ERASE_HALF)))
    inside = inside & draws.chance(d.ERASE_SHARE * strength)
    return torch.where(inside, draws.level((0, 255)), levels)


def _add_noise(levels: Tensor, draws: _Draws, strength: float, harsh: float) -> Tensor:
    """Add both kinds of noise as one: the sum of two Gaussians is one, and their variances add up."""
    variance = torch.zeros(len(levels), 1, 1, 1, device=levels.device)
    for share, bounds in ((d.NOISE_SHARE * strength, d.NOISE), (harsh, d.HARSH_NOISE)):
        variance = variance + torch.where(draws.chance(share), draws.level(bounds).square(), 0.0)
    return torch.addcmul(levels, variance.sqrt(), torch.randn_like(levels))
