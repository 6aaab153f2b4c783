"""Read a picture's EXIF orientation, and undo it."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

SWAPPED = (5, 6, 7, 8)  # orientations that exchange rows and columns


def read_orientation(image: Image.Image) -> int:
    """Read the orientation of an opened image, from 1 (upright) to 8.

    It is 1 where the metadata hold none that can be read: damaged metadata are no reason to refuse the pixels.
    """
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)  # may be text, or anything
        return int(value) if value in range(2, 9) else 1
    except Exception:  # Pillow may raise anything on damaged metadata
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
