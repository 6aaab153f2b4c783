"""Distorts batches of pictures as cameras and crops do, on the device that trains.

Every picture draws its own parameters from the generator given, so that a seed repeats a run.
Levels stay in 0 to 255; normalisation belongs to the network.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


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
    levels = _step_back(levels, generator, share=0.25 * strength)
    levels = warp(levels, generator, strength)
    levels = _downsample(levels, generator, share=0.4 * strength)
    levels = _relight(levels, generator, strength)
    levels = _overexpose(levels, generator, share=harsh)
    levels = _mask_oval(levels, generator, share=0.15 * strength)
    levels = _erase(levels, generator, share=0.25 * strength)
    levels = _add_noise(levels, generator, 0.25 * strength, 0, 20)
    levels = _add_noise(levels, generator, harsh, 10, 45)
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


def _make_axes(levels: Tensor, low: float) -> tuple[Tensor, Tensor]:
    """Make coordinates from `low` to 1 of a batch's rows and columns, to be broadcast."""
    height, width = levels.shape[2:]
    y = torch.linspace(low, 1, height, device=levels.device).view(1, 1, -1, 1)
    return y, torch.linspace(low, 1, width, device=levels.device).view(1, 1, 1, -1)


def _step_back(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Shrink a part of the batch to between 45 and 85 % onto a background: portraits with what is around them."""
    part = _choose(len(levels), share, generator, levels)
    count = len(part)
    if not count:
        return levels
    scale = _draw_uniform(count, 0.45, 0.85, generator, levels)
    shift = torch.stack([_draw_uniform(count, -1, 1, generator, levels) for _ in range(2)], dim=1)
    shift *= (1 / scale - 1)[:, None]  # in the shrunk picture's own size: never over the edge
    zero = torch.zeros_like(scale)
    matrix = torch.stack([1 / scale, zero, shift[:, 0], zero, 1 / scale, shift[:, 1]], dim=1).view(-1, 2, 3)
    near = levels[part]
    grid = F.affine_grid(matrix, list(near.shape), align_corners=False)
    far = F.grid_sample(torch.cat([near, torch.ones_like(near[:, :1])], dim=1), grid, align_corners=False)
    covered = far[:, -1:]
    # Another picture out of focus, so that nothing in it can be read, or one level all over.
    blurred = F.interpolate(F.adaptive_avg_pool2d(levels, 5), levels.shape[2:], mode="bilinear")
    background = blurred[torch.randint(len(levels), (count,), generator=generator).to(levels.device)]
    flat = _draw_uniform(count, 0, 255, generator, levels).view(-1, 1, 1, 1)
    plain = (_draw_uniform(count, 0, 1, generator, levels) < 0.4).view(-1, 1, 1, 1)
    background = torch.where(plain, flat, background)
    levels = levels.clone()
    levels[part] = far[:, :-1] + (1 - covered) * background
    return levels


def warp(levels: Tensor, generator: Generator, strength: float) -> Tensor:
    """Flip, turn by ±25°, scale by 0.75 to 1.3, stretch by ±12 %, shear and shift."""
    count = len(levels)

    def draw(low: float, high: float) -> Tensor:
        return _draw_uniform(count, low * strength, high * strength, generator, levels)

    angle = draw(-25, 25) * (math.pi / 180)
    scale, stretch = torch.exp(draw(-0.29, 0.26)), torch.exp(draw(-0.12, 0.12))
    shear, shift_x, shift_y = draw(-0.15, 0.15), draw(-0.14, 0.14), draw(-0.14, 0.14)
    flip = 1 - 2 * (_draw_uniform(count, 0, 1, generator, levels) < 0.5).float()
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Output coordinates to input coordinates: turn and shear, then scale, then shift.
    matrix = torch.stack(
        [
            torch.stack([flip * cos / (scale * stretch), flip * (shear - sin) / scale, shift_x], dim=1),
            torch.stack([sin / (scale * stretch), cos / scale, shift_y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(levels.shape), align_corners=False)
    padding = ("zeros", "border", "reflection")[int(torch.randint(3, (1,), generator=generator))]
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _downsample(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Scale a part of the batch down and up again: small sources, and blur."""
    height, width = levels.shape[2:]
    for part in _choose(len(levels), share, generator, levels).tensor_split(4):
        factor = float(_draw_uniform(1, 0.2, 0.8, generator, levels))
        small = (max(8, round(height * factor)), max(8, round(width * factor)))
        shrunk = F.interpolate(levels[part], small, mode="bilinear", antialias=True) if len(part) else None
        if shrunk is not None:
            levels[part] = F.interpolate(shrunk, (height, width), mode="bilinear")
    return levels


def _relight(levels: Tensor, generator: Generator, strength: float) -> Tensor:
    """Change contrast around the picture's mean by 0.6 to 1.5, brightness by ±50 levels, gamma by 0.65 to 1.5."""
    count = len(levels)

    def draw(low: float, high: float) -> Tensor:
        return _draw_uniform(count, low * strength, high * strength, generator, levels).view(-1, 1, 1, 1)

    mean = levels.mean(dim=(1, 2, 3), keepdim=True)
    levels = (levels - mean) * torch.exp(draw(-0.5, 0.4)) + mean + draw(-50, 50)
    return 255 * (levels.clamp_(0, 255) / 255).pow_(torch.exp(draw(-0.43, 0.4)))


def _overexpose(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Make a part of the batch up to three times as bright, cut off at white."""
    part = _choose(len(levels), share, generator, levels)
    exposure = _draw_uniform(len(part), 1, 3, generator, levels).view(-1, 1, 1, 1)
    levels[part] = (levels[part] * exposure).clamp_(max=255)
    return levels


def _mask_oval(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Paint a part of the batch one level outside an oval, as segmented portraits come."""
    part = _choose(len(levels), share, generator, levels)
    if not len(part):
        return levels
    y, x = _make_axes(levels, -1)

    def draw(low: float, high: float) -> Tensor:
        return _draw_uniform(len(part), low, high, generator, levels).view(-1, 1, 1, 1)

    radius = ((x - draw(-0.1, 0.1)) / draw(0.6, 1.0)) ** 2 + ((y - draw(-0.1, 0.1)) / draw(0.8, 1.15)) ** 2
    background = draw(-128, 255).clamp_(min=0)  # black in one of three
    levels[part] = torch.where(radius > 1, background, levels[part])
    return levels


def _erase(levels: Tensor, generator: Generator, share: float) -> Tensor:
    """Cover a rectangle of up to 45 % of each side: hands, microphones, sunglasses."""
    part = _choose(len(levels), share, generator, levels)
    if not len(part):
        return levels
    y, x = _make_axes(levels, 0)

    def draw(low: float, high: float) -> Tensor:
        return _draw_uniform(len(part), low, high, generator, levels).view(-1, 1, 1, 1)

    inside = ((x - draw(0, 1)).abs() < draw(0.05, 0.225)) & ((y - draw(0, 1)).abs() < draw(0.05, 0.225))
    levels[part] = torch.where(inside, draw(0, 255), levels[part])
    return levels


def _add_noise(levels: Tensor, generator: Generator, share: float, low: float, high: float) -> Tensor:
    """Add Gaussian noise to a part of the batch, with a standard deviation of `low` to `high` levels."""
    part = _choose(len(levels), share, generator, levels)
    deviation = _draw_uniform(len(part), low, high, generator, levels).view(-1, 1, 1, 1)
    noise = torch.randn((len(part), *levels.shape[1:]), generator=generator).to(levels.device)
    levels[part] += deviation * noise
    return levels
