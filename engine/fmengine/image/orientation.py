"""How a picture's EXIF metadata turn it, and how that is undone."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

SWAPPED = (5, 6, 7, 8)  # orientations that exchange rows and columns


def read_orientation(image: Image.Image) -> int:
    """Read the orientation of an opened image, 1 where its metadata hold none that can be read.

    The pixels are whole all the same.
    """
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)  # or text, or anything, which turns nothing
        return int(value) if value in range(2, 9) else 1
    except Exception:  # Pillow parses what it finds, and may raise anything
        return 1


def turn_upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo an orientation: 2 to 4 mirror or turn by 180 degrees, 5 to 8 also swap the axes. Returns a view."""
    if orientation in SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
