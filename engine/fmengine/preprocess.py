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

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Color = Literal["gray", "rgb"]
Fit = Literal["crop", "pad", "stretch"]

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
    if color == "gray" and pixels.shape == (height, width):
        return pixels[np.newaxis]
    image = Image.fromarray(pixels)
    mode = "L" if color == "gray" else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    image = _fit(image, height, width, fit)
    if image.width != width:
        image = image.resize((width, image.height), Image.Resampling.BILINEAR)
    if image.height != height:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[np.newaxis] if color == "gray" else np.ascontiguousarray(array.transpose(2, 0, 1))


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


def _fit(image: Image.Image, height: int, width: int, fit: Fit) -> Image.Image:
    if fit == "stretch":
        return image
    box = (crop_box if fit == "crop" else pad_box)(image.size, (width, height))
    # Pillow's crop fills what lies outside the picture with black.
    return image if box == (0, 0, *image.size) else image.crop(box)
