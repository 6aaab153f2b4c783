"""Defines preprocessing in plain NumPy, written apart from the runtime that it checks.

Pillow's 8-bit resampling (`src/libImaging/Resample.c`): coefficients of the triangle filter in double
precision, rounded to 22 fractional bits; sums rounded and clipped to 8 bits after each pass. The passes
are in the order of `fmengine.image.preprocess`: horizontal, then vertical.
"""

import numpy as np
import numpy.typing as npt

from fmengine.model.spec import InputSpec
from fmengine.types import DecodedImage, NetworkInput

PRECISION_BITS = 32 - 8 - 2


def precompute_coeffs(size: int, target: int) -> npt.NDArray[np.float64]:
    """Compute the integer weights of one pass as a `[target, size]` matrix.

    float64 holds them, and every sum of 255 times them, exactly: those stay under 2^31.
    """
    scale = size / target
    support = max(scale, 1.0)  # the triangle's half width, in source pixels
    matrix = np.zeros((target, size))
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        weights = [max(0.0, 1.0 - abs((x - centre + 0.5) / support)) for x in range(first, last)]
        total = sum(weights)  # in this order: Pillow adds from left to right
        matrix[row, first:last] = [int(0.5 + weight / total * (1 << PRECISION_BITS)) for weight in weights]
    return matrix


def resize(plane: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize one `[H, W]` channel, horizontally and then vertically."""
    if plane.shape[1] != width:
        plane = _round(plane.astype(np.float64) @ precompute_coeffs(plane.shape[1], width).T)
    if plane.shape[0] != height:
        plane = _round(precompute_coeffs(plane.shape[0], height) @ plane.astype(np.float64))
    return plane


def convert_to_luma(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Compute ITU-R 601 luma in Pillow's fixed point, `[H, W, 3]` to `[H, W]`."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def fit_picture(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Crop or pad `[H, W]` or `[H, W, C]` to the aspect ratio of the input, sizes rounded to whole pixels."""
    (rows, columns), (height, width) = pixels.shape[:2], (spec.height, spec.width)
    wide = columns * height > rows * width
    if spec.fit == "stretch":
        return pixels
    if spec.fit == "crop":
        keep_rows = rows if wide else max(1, _divide_rounded(columns * height, width))
        keep_columns = max(1, _divide_rounded(rows * width, height)) if wide else columns
        top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
        return pixels[top : top + keep_rows, left : left + keep_columns]
    add_rows = (max(rows, _divide_rounded(columns * height, width)) - rows) if wide else 0
    add_columns = 0 if wide else max(columns, _divide_rounded(rows * width, height)) - columns
    margins = [(add_rows // 2, add_rows - add_rows // 2), (add_columns // 2, add_columns - add_columns // 2)]
    return np.pad(pixels, margins + [(0, 0)] * (pixels.ndim - 2))


def preprocess(image: DecodedImage, spec: InputSpec) -> NetworkInput:
    """Preprocess as `fmengine.image.preprocess.preprocess` must, bit for bit."""
    pixels: npt.NDArray[np.uint8] = image
    if spec.color == "gray" and pixels.ndim == 3:
        pixels = convert_to_luma(pixels)
    if spec.color == "rgb" and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., np.newaxis], 3, axis=2)
    pixels = fit_picture(pixels, spec)
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., channel] for channel in range(3)]
    return NetworkInput(np.stack([resize(plane, spec.height, spec.width) for plane in planes]))


def _divide_rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _round(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    half = 1 << (PRECISION_BITS - 1)
    levels: npt.NDArray[np.uint8] = np.clip((sums.astype(np.int64) + half) >> PRECISION_BITS, 0, 255).astype(
        np.uint8
    )
    return levels
