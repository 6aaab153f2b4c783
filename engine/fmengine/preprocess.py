"""From decoded pixels to the network's input: one definition, bit for bit.

The definition is Pillow's 8-bit arithmetic with the order of the passes fixed:

1. luma, `(19595 R + 38470 G + 7471 B + 0x8000) >> 16`, where the model is gray and the pixels are not;
2. the fit policy: `crop` cuts the centre out, `pad` adds black borders, `stretch` does neither;
3. the triangle filter with antialiasing (Pillow's `BILINEAR`: 22-bit fixed-point coefficients, 8-bit
   rounding after each pass), **horizontal first, then vertical**; a pass that changes no size is skipped.

Step 3 is two calls of Pillow and not one, because Pillow 13 began to run the vertical pass first on tall
pictures (python-pillow/Pillow #9549), which moves pixels by one level.

Training, every runtime and every exported model use this definition.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Color = Literal["gray", "rgb"]
Fit = Literal["crop", "pad", "stretch"]

TOGETHER = 200_000  # bytes that are resized in one go: more leave a core's cache, and are fresh memory each time

COLORS: tuple[Color, ...] = ("gray", "rgb")
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")


def preprocess(pixels: Pixels, height: int, width: int, color: Color = "gray", fit: Fit = "crop") -> Pixels:
    """Turn a decoded picture into the network's input.

    Args:
        pixels: uint8, `[H, W]` luma or `[H, W, 3]` RGB, any size from 1×1.
        height: rows of the network's input.
        width: columns of the network's input.
        color: `gray` gives one channel, `rgb` three.
        fit: how another aspect ratio is brought to the input's: `crop`, `pad` or `stretch`.

    Returns:
        uint8 `[C, height, width]`.
    """
    made: Pixels = _resized(_fitted(pixels, height, width, color, fit)[np.newaxis], height, width)[0]
    return made


def preprocess_batch(
    pictures: Sequence[Pixels], height: int, width: int, color: Color = "gray", fit: Fit = "crop"
) -> Pixels:
    """Turn decoded pictures into a batch of the network's input.

    Those of one size are resized together, in two calls of Pillow: each takes as long as a small face.

    Args:
        pictures: each as for `preprocess`.
        height: as for `preprocess`.
        width: as for `preprocess`.
        color: as for `preprocess`.
        fit: as for `preprocess`.

    Returns:
        uint8 `[N, C, height, width]`.
    """
    if len(pictures) == 1:
        return preprocess(pictures[0], height, width, color, fit)[np.newaxis]
    alike: dict[tuple[int, ...], tuple[list[int], list[Pixels]]] = defaultdict(lambda: ([], []))
    for index, pixels in enumerate(pictures):
        fitted = _fitted(pixels, height, width, color, fit)
        indices, group = alike[fitted.shape]
        indices.append(index)
        group.append(fitted)
    batch = np.empty((len(pictures), 1 if color == "gray" else 3, height, width), np.uint8)
    for indices, group in alike.values():
        at_once = max(1, TOGETHER // group[0].size)
        for begin in range(0, len(group), at_once):
            part = slice(begin, begin + at_once)
            batch[indices[part]] = _resized(np.stack(group[part]), height, width)
    return batch


def crop_box(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The centred box of `target`'s aspect ratio inside a picture, in whole pixels.

    Args:
        source: width and height of the picture.
        target: width and height of the network's input.

    Returns:
        left, top, right, bottom; at least one pixel wide and high. Sizes round to the nearest pixel
        and an odd margin puts the extra pixel right or below.
    """
    (w, h), (tw, th) = source, target
    if w * th > h * tw:
        width, height = max(1, (2 * h * tw + th) // (2 * th)), h
    else:
        width, height = w, max(1, (2 * w * th + tw) // (2 * tw))
    left, top = (w - width) // 2, (h - height) // 2
    return left, top, left + width, top + height


def pad_box(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The smallest centred box of `target`'s aspect ratio around a picture, in the picture's coordinates.

    Args and rounding as in `crop_box`; left and top are zero or negative.
    """
    (w, h), (tw, th) = source, target
    if w * th > h * tw:
        width, height = w, max(h, (2 * w * th + tw) // (2 * tw))
    else:
        width, height = max(w, (2 * h * tw + th) // (2 * th)), h
    left, top = -((width - w) // 2), -((height - h) // 2)
    return left, top, left + width, top + height


def _fitted(pixels: Pixels, height: int, width: int, color: Color, fit: Fit) -> Pixels:
    """Steps 1 and 2: `[H, W]` where the model is gray, else `[H, W, 3]`."""
    if pixels.ndim != (2 if color == "gray" else 3):
        pixels = np.asarray(Image.fromarray(pixels).convert("L" if color == "gray" else "RGB"))
    size, target = (pixels.shape[1], pixels.shape[0]), (width, height)
    if fit == "crop":
        left, top, right, bottom = crop_box(size, target)
        return pixels[top:bottom, left:right]
    if fit == "pad" and (box := pad_box(size, target)) != (0, 0, *size):
        # Pillow fills what lies outside the picture with black, and refuses what no memory could hold.
        return np.asarray(Image.fromarray(pixels).crop(box))
    return pixels


def _resized(stack: Pixels, height: int, width: int) -> Pixels:
    """Step 3, from `[N, H, W]` or `[N, H, W, 3]` to `[N, C, height, width]`."""
    count, rows, columns, *channels = stack.shape
    if (rows, columns) != (height, width):
        image = Image.fromarray(stack.reshape(count * rows, columns, *channels))  # one below the other
        if columns != width:
            image = image.resize((width, count * rows), Image.Resampling.BILINEAR)
        if rows != height:
            if count > 1:  # now side by side
                stack = np.asarray(image).reshape(count, rows, width, *channels)
                image = Image.fromarray(stack.swapaxes(0, 1).reshape(rows, count * width, *channels))
            image = image.resize((count * width, height), Image.Resampling.BILINEAR)
            stack = np.asarray(image).reshape(height, count, width, *channels).swapaxes(0, 1)
        else:
            stack = np.asarray(image).reshape(count, height, width, *channels)
    return np.ascontiguousarray(stack.transpose(0, 3, 1, 2)) if channels else stack[:, np.newaxis]
