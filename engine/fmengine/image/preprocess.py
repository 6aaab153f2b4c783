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
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import Kind, SourceError
from ..types import COLORS, FITS, Color, Fit

Pixels = npt.NDArray[np.uint8]

TOGETHER = 200_000  # bytes that are resized in one go: more leave a core's cache, and are fresh memory each time
AT_ONCE = 4_000_000  # bytes of one picture that Pillow is given in one go

# A strip of a million rows may be small, and each row becomes as wide as the input, or as the padded picture.
MOST_BETWEEN = 2**25  # pixels between the two passes
MOST_PADDED = 2**27  # pixels with the borders


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

    Raises:
        SourceError: of the kind `too_large`, as `check_resize`.
        ValueError: for another colour or fit.
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

    Raises:
        SourceError: as `preprocess`, where one of them is too large.
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


def fit_box(source: tuple[int, int], target: tuple[int, int], fit: Fit) -> tuple[int, int, int, int]:
    """The box that a fit policy resizes, in the picture's coordinates; args as in `crop_box`."""
    match fit:
        case "crop":
            return crop_box(source, target)
        case "pad":
            return pad_box(source, target)
        case "stretch":
            return (0, 0, *source)
    raise ValueError(f"fit {fit!r}; expected one of {', '.join(FITS)}")


def check_resize(source: tuple[int, int], target: tuple[int, int], fit: Fit) -> None:
    """Refuse a picture that takes far more work to resize than its pixels tell: a strip, high or padded.

    Raises:
        SourceError: of the kind `too_large`.
    """
    left, top, right, bottom = fit_box(source, target, fit)
    padded, between = (right - left) * (bottom - top), (bottom - top) * target[0]
    if fit == "pad" and padded > MOST_PADDED:
        what = f"{right - left}×{bottom - top} with its borders; the limit is {MOST_PADDED:,} pixels"
    elif between > MOST_BETWEEN:
        what = f"{bottom - top:,} rows, resized to {target[0]} pixels each; the limit is {MOST_BETWEEN:,} pixels"
    else:
        return
    raise SourceError(Kind.TOO_LARGE, f"a strip of {source[0]}×{source[1]} pixels makes {what}")


def _fitted(pixels: Pixels, height: int, width: int, color: Color, fit: Fit) -> Pixels:
    """Steps 1 and 2, whose order changes no pixel: `[H, W]` where the model is gray, else `[H, W, 3]`."""
    if color not in COLORS:
        raise ValueError(f"color {color!r}; expected one of {', '.join(COLORS)}")
    size = pixels.shape[1], pixels.shape[0]
    check_resize(size, (width, height), fit)
    left, top, right, bottom = fit_box(size, (width, height), fit)
    if fit == "pad" and (right - left, bottom - top) != size:
        padded = np.zeros((bottom - top, right - left, *pixels.shape[2:]), np.uint8)
        padded[-top : size[1] - top, -left : size[0] - left] = pixels
        pixels = padded
    elif (right - left, bottom - top) != size:
        # A copy, which does not keep the whole picture in memory, nor change with it.
        pixels = pixels[top:bottom, left:right].copy()
    if pixels.ndim == (2 if color == "gray" else 3):
        return pixels
    return _by_rows(pixels, lambda image: image.convert("L" if color == "gray" else "RGB"))


def _by_rows(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """A picture that Pillow changes row by row, given some rows at a time: it copies what it is given."""
    rows = max(1, AT_ONCE // pixels[0].size)
    parts = [np.asarray(change(Image.fromarray(pixels[top : top + rows]))) for top in range(0, len(pixels), rows)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _resized(stack: Pixels, height: int, width: int) -> Pixels:
    """Step 3, from `[N, H, W]` or `[N, H, W, 3]` to `[N, C, height, width]`."""
    if stack.size > AT_ONCE and stack.shape[2] != width:
        below = stack.reshape(-1, *stack.shape[2:])
        narrow = _by_rows(below, lambda image: image.resize((width, image.height), Image.Resampling.BILINEAR))
        stack = narrow.reshape(*stack.shape[:2], width, *stack.shape[3:])
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
