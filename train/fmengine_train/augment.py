"""Distorts batches of pictures as cameras and crops do, each distortion only the part of a batch that it is for.

Every picture draws its own parameters from the generator given, so that a seed repeats a run.
Levels stay in 0 to 255; normalisation belongs to the network.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from . import distortions as d


def augment(images: Tensor, generator: Generator, strength: float = 1.0, harsh: float = 0.0) -> Tensor:
    """Distort a batch.

    Args:
        images: uint8 `[N, C, H, W]` on any device.
        generator: on the CPU; the same seed gives the same distortions on every device.
        strength: 1.0 is the default range of every distortion, 0 turns all off, but mirrors for `harsh`.
        harsh: share of the pictures that are overexposed, and of those in strong noise, whatever the strength.

    Returns:
        float32 `[N, C, H, W]`, levels from 0 to 255.
    """
    levels = images.float()
    if strength == harsh == 0:
        return levels
    levels = _step_back(levels, generator, share=d.STEP_BACK_SHARE * strength)
    levels = warp(levels, generator, strength)
    levels = _downsample(levels, generator, share=d.DOWNSAMPLE_SHARE * strength)
    levels = _relight(levels, generator, strength)
    levels = _overexpose(levels, generator, share=harsh)
    levels = _mask_oval(levels, generator, share=d.OVAL_SHARE * strength)
    levels = _erase(levels, generator, share=d.ERASE_SHARE * strength)
    levels = _add_noise(levels, generator, d.NOISE_SHARE * strength, d.NOISE)
    levels = _add_noise(levels, generator, harsh, d.HARSH_NOISE)
    return levels.clamp_(0, 255)


def mix(batch: tuple[Tensor, ...], generator: Generator, share: float) -> tuple[Tensor, ...]:
    """Blend, with probability `share`, each picture of a batch with another, and all that belongs to it alike.

    Zhang et al.: "mixup: Beyond Empirical Risk Minimization", 2017, with blends from 0 to a half, evenly.

    Args:
        batch: float32 `[N, …]` each: pictures `[N, C, H, W]`, probabilities `[N, K]`, hints `[N, D]`.
    """
    if float(torch.rand(1, generator=generator)) >= share:
        return batch
    other = torch.randperm(len(batch[0]), generator=generator).to(batch[0].device)
    blend = float(torch.rand(1, generator=generator)) / 2
    return tuple(torch.lerp(tensor, tensor[other], blend) for tensor in batch)


def _draw_uniform(count: int, low: float, high: float, generator: Generator, like: Tensor) -> Tensor:
    return (torch.rand(count, generator=generator) * (high - low) + low).to(like.device)


def _choose(count: int, share: float, generator: Generator, like: Tensor) -> Tensor:
    """Choose indices of a random `share` of the batch; a share of 0 draws nothing from the generator."""
    if share == 0:
        return torch.empty(0, dtype=torch.int64, device=like.device)
    return (torch.rand(count, generator=generator) < share).nonzero().flatten().to(like.device)


def _step_back(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Shrink a part of the batch to between 45 and 85 % onto a background: portraits with what is around them."""
    part = _choose(len(levels), share, generator, levels)
    count = len(part)
    if not count:
        return levels
    scale = _draw_uniform(count, *d.STEP_BACK, generator, levels)
    x, y = (_draw_uniform(count, -1, 1, generator, levels) for _ in range(2))
    # Another picture out of focus, or one level all over.
    background = d.blur(levels)[torch.randint(len(levels), (count,), generator=generator).to(levels.device)]
    flat = _draw_uniform(count, 0, 255, generator, levels).view(-1, 1, 1, 1)
    plain = (_draw_uniform(count, 0, 1, generator, levels) < d.PLAIN_SHARE).view(-1, 1, 1, 1)
    levels = levels.clone()
    levels[part] = d.step_back(levels[part], scale, x, y, torch.where(plain, flat, background))
    return levels


def warp(levels: Tensor, generator: Generator, strength: float) -> Tensor:
    """Flip, turn by ±25°, scale by 0.75 to 1.3, stretch by ±12 %, shear and shift."""
    count = len(levels)

    def draw(bounds: d.Range) -> Tensor:
        return _draw_uniform(count, bounds[0] * strength, bounds[1] * strength, generator, levels)

    parameters = [draw(bounds) for bounds in (d.TURN, d.SCALE, d.STRETCH, d.SHEAR, d.SHIFT, d.SHIFT)]
    flip = 1 - 2 * (_draw_uniform(count, 0, 1, generator, levels) < d.MIRRORED).float()
    grid = d.make_warp_grid(levels, parameters, flip)
    padding = d.PADDINGS[int(torch.randint(3, (1,), generator=generator))]
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _downsample(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Scale a part of the batch down and up again: small sources, and blur."""
    height, width = levels.shape[2:]
    for part in _choose(len(levels), share, generator, levels).tensor_split(4):
        factor = float(_draw_uniform(1, *d.DOWNSAMPLE, generator, levels))
        small = (max(d.SMALLEST, round(height * factor)), max(d.SMALLEST, round(width * factor)))
        shrunk = F.interpolate(levels[part], small, mode="bilinear", antialias=True) if len(part) else None
        if shrunk is not None:
            levels[part] = F.interpolate(shrunk, (height, width), mode="bilinear")
    return levels


def _relight(levels: Tensor, generator: Generator, strength: float) -> Tensor:
    """Change contrast around the picture's mean by 0.6 to 1.5, brightness by ±50 levels, gamma by 0.65 to 1.5."""
    count = len(levels)

    def draw(bounds: d.Range) -> Tensor:
        low, high = bounds
        return _draw_uniform(count, low * strength, high * strength, generator, levels).view(-1, 1, 1, 1)

    return d.relight(levels, draw(d.CONTRAST), draw(d.BRIGHTNESS), draw(d.GAMMA))


def _overexpose(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Make a part of the batch up to three times as bright, cut off at white."""
    part = _choose(len(levels), share, generator, levels)
    exposure = _draw_uniform(len(part), *d.EXPOSURE, generator, levels).view(-1, 1, 1, 1)
    levels[part] = (levels[part] * exposure).clamp_(max=255)
    return levels


def _mask_oval(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Paint a part of the batch one level outside an oval, as segmented portraits come."""
    part = _choose(len(levels), share, generator, levels)
    if not len(part):
        return levels

    def draw(bounds: d.Range) -> Tensor:
        return _draw_uniform(len(part), *bounds, generator, levels).view(-1, 1, 1, 1)

    ranges = (d.OVAL_CENTRE, d.OVAL_WIDTH, d.OVAL_CENTRE, d.OVAL_HEIGHT)
    outside = d.is_outside_oval(levels, *map(draw, ranges))
    levels[part] = torch.where(outside, draw(d.OVAL_LEVEL).clamp_(min=0), levels[part])
    return levels


def _erase(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Cover a rectangle of up to 45 % of each side: hands, microphones, sunglasses."""
    part = _choose(len(levels), share, generator, levels)
    if not len(part):
        return levels

    def draw(bounds: d.Range) -> Tensor:
        return _draw_uniform(len(part), *bounds, generator, levels).view(-1, 1, 1, 1)

    inside = d.is_inside_rectangle(levels, *map(draw, ((0, 1), d.ERASE_HALF, (0, 1), d.ERASE_HALF)))
    levels[part] = torch.where(inside, draw((0, 255)), levels[part])
    return levels


def _add_noise(levels: Tensor, generator: Generator, share: float, bounds: d.Range) -> Tensor:
    """Add Gaussian noise to a part of the batch, with a standard deviation of so many levels."""
    part = _choose(len(levels), share, generator, levels)
    deviation = _draw_uniform(len(part), *bounds, generator, levels).view(-1, 1, 1, 1)
    noise = torch.randn((len(part), *levels.shape[1:]), generator=generator).to(levels.device)
    levels[part] += deviation * noise
    return levels
