"""Defines the distortions of augmentation: their ranges, and what each does to a batch with given parameters.

`augment.py` draws parameters on the host, for a part of a batch at a time; `augment_masked.py` on the device, for
all of it. Levels are float32 `[N, C, H, W]` from 0 to 255, parameters `[N]`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Range = tuple[float, float]

# Of all pictures, at strength 1; scales, contrast and gamma as logarithms.
TURN: Range = (-25, 25)  # degrees
SCALE: Range = (-0.29, 0.26)
STRETCH: Range = (-0.12, 0.12)
SHEAR: Range = (-0.15, 0.15)
SHIFT: Range = (-0.14, 0.14)  # of half a side
CONTRAST: Range = (-0.5, 0.4)
BRIGHTNESS: Range = (-50, 50)
GAMMA: Range = (-0.43, 0.4)
MIRRORED = 0.5
PADDINGS = ("zeros", "border", "reflection")

# Of a share of the pictures, which strength makes larger.
STEP_BACK_SHARE, STEP_BACK, PLAIN_SHARE = 0.25, (0.45, 0.85), 0.4
DOWNSAMPLE_SHARE, DOWNSAMPLE, SMALLEST = 0.4, (0.2, 0.8), 8
OVAL_SHARE, OVAL_CENTRE, OVAL_WIDTH, OVAL_HEIGHT = 0.15, (-0.1, 0.1), (0.6, 1.0), (0.8, 1.15)
OVAL_LEVEL: Range = (-128, 255)  # black below 0: in one of three
ERASE_SHARE, ERASE_HALF = 0.25, (0.05, 0.225)
NOISE_SHARE, NOISE = 0.25, (0, 20)

# Of a recipe's `harsh` share of the pictures.
EXPOSURE: Range = (1, 3)
HARSH_NOISE: Range = (10, 45)


def make_axes(levels: Tensor, low: float) -> tuple[Tensor, Tensor]:
    """Make coordinates from `low` to 1 of a batch's rows and columns, to be broadcast."""
    height, width = levels.shape[2:]
    y = torch.linspace(low, 1, height, device=levels.device).view(1, 1, -1, 1)
    return y, torch.linspace(low, 1, width, device=levels.device).view(1, 1, 1, -1)


def make_grid(rows: list[list[Tensor]], levels: Tensor) -> Tensor:
    """Make the grid of an affine transform, from output to input coordinates; two rows of three parameters."""
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return F.affine_grid(matrix, list(levels.shape), align_corners=False)


def make_warp_grid(levels: Tensor, parameters: Sequence[Tensor], flip: Tensor) -> Tensor:
    """Make the grid that turns and shears, then scales, then shifts.

    Args:
        levels: that the grid is for.
        parameters: turn, scale, stretch, shear, shift to the right, shift down; as their ranges above.
        flip: 1, or -1 for pictures to mirror.
    """
    angle, scale, stretch, shear, x, y = parameters
    angle = angle * (math.pi / 180)
    scale, stretch = torch.exp(scale), torch.exp(stretch)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return make_grid(
        [
            [flip * cos / (scale * stretch), flip * (shear - sin) / scale, x],
            [sin / (scale * stretch), cos / scale, y],
        ],
        levels,
    )


def step_back(near: Tensor, scale: Tensor, x: Tensor, y: Tensor, background: Tensor) -> Tensor:
    """Shrink pictures onto a background; shifts from -1 to 1, at which they touch the edge."""
    room = 1 / scale - 1  # in the shrunk picture's own size: never over the edge
    zero = torch.zeros_like(scale)
    grid = make_grid([[1 / scale, zero, x * room], [zero, 1 / scale, y * room]], near)
    far = F.grid_sample(torch.cat([near, torch.ones_like(near[:, :1])], dim=1), grid, align_corners=False)
    return far[:, :-1] + (1 - far[:, -1:]) * background


def blur(levels: Tensor) -> Tensor:
    """Put pictures out of focus, so that nothing in them can be read."""
    return F.interpolate(F.adaptive_avg_pool2d(levels, 5), levels.shape[2:], mode="bilinear")


def relight(levels: Tensor, contrast: Tensor, brightness: Tensor, gamma: Tensor) -> Tensor:
    """Change contrast around each picture's mean, brightness and gamma; parameters `[N, 1, 1, 1]`."""
    mean = levels.mean(dim=(1, 2, 3), keepdim=True)
    levels = (levels - mean) * torch.exp(contrast) + mean + brightness
    return 255 * (levels.clamp_(0, 255) / 255).pow_(torch.exp(gamma))


def is_outside_oval(levels: Tensor, x: Tensor, width: Tensor, y: Tensor, height: Tensor) -> Tensor:
    """Return which pixels lie outside an oval; parameters `[N, 1, 1, 1]`, the picture reaching from -1 to 1."""
    rows, columns = make_axes(levels, -1)
    return ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 > 1


def is_inside_rectangle(levels: Tensor, x: Tensor, width: Tensor, y: Tensor, height: Tensor) -> Tensor:
    """Return which pixels lie inside a rectangle of half this width and height, the picture from 0 to 1."""
    rows, columns = make_axes(levels, 0)
    return ((columns - x).abs() < width) & ((rows - y).abs() < height)
