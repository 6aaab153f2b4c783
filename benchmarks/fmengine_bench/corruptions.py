"""Corrupts pictures as cameras, files and other people do, at five severities each.

After Hendrycks and Dietterich: "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
2019, with the kinds that matter for faces. Each takes decoded pixels, uint8 `[H, W]` or `[H, W, 3]`, and
returns them corrupted; what is random is drawn from the generator given.
"""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageFilter

SEVERITIES = 5
Corruption = Callable[[npt.NDArray[np.uint8], int, Generator], npt.NDArray[np.uint8]]


def blur(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Blur by a Gaussian with a radius of 1 to 5 % of the shorter side."""
    radius = 0.01 * severity * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noise(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Add Gaussian noise with a standard deviation of 8 to 40 levels."""
    return _round_levels(pixels + rng.normal(0, 8 * severity, pixels.shape))


def jpeg(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Compress as JPEG with a quality of 50 down to 10."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=(50, 35, 25, 15, 10)[severity - 1])
    return np.asarray(Image.open(file))


def rotation(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Rotate by 6 to 30 degrees, either way; the edge's levels continue outside."""
    margin = max(pixels.shape[:2]) // 2
    padded = np.pad(pixels, [(margin, margin)] * 2 + [(0, 0)] * (pixels.ndim - 2), mode="edge")
    angle = 6 * severity * rng.choice([-1, 1])
    turned = Image.fromarray(padded).rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(turned)[margin:-margin, margin:-margin] if margin else pixels


def dark(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Multiply levels by 0.7 down to 0.2."""
    return _round_levels(pixels * (0.7, 0.55, 0.4, 0.3, 0.2)[severity - 1])


def bright(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Multiply levels by 1.3 up to 3, clipped at white."""
    return _round_levels(pixels * (1.3, 1.6, 2.0, 2.5, 3.0)[severity - 1])


def occlusion(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Cover 5 to 25 % of the picture with a rectangle of one level, anywhere."""
    height, width = pixels.shape[:2]
    side = (0.05 * severity) ** 0.5
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    covered = pixels.copy()
    covered[top : top + rows, left : left + columns] = rng.integers(256)
    return covered


def small(pixels: npt.NDArray[np.uint8], severity: int, rng: Generator) -> npt.NDArray[np.uint8]:
    """Shrink until the shorter side has 40 down to 24 pixels."""
    height, width = pixels.shape[:2]
    scale = (40, 36, 32, 28, 24)[severity - 1] / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return pixels if scale >= 1 else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function for function in (blur, noise, jpeg, rotation, dark, bright, occlusion, small)
}


def _round_levels(values: "np.typing.NDArray[np.floating]") -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels
