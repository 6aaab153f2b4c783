"""Decode a photograph twice over: in colour to search for faces, and as `predict` reads it to cut them out.

A crop holds the levels that `predict` would have for the same file: of a JPEG, for a gray model, its luma plane
at full size. The detector sees colours, which a large JPEG gives scaled down by its decoder, in less time.
"""

import math
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..options import Limits
from ..system.files import read_file
from ..types import Channels, Color, DecodedImage, Source
from .decode import decode
from .source import get_bytes, get_path

SMALL, SMALL_SEARCH = 300, 160  # long side of a picture that is a face itself, and the size to find it at
SEARCH = 640  # pixels of the long side that other pictures are searched at


class SceneImage(NamedTuple):
    """A decoded photograph.

    Attributes:
        picture: at full size, for crops: uint8 `[H, W]`, or `[H, W, 3]` in RGB order.
        colors: for the search, RGB, uint8 `[h, w, 3]`: the same picture, perhaps smaller.
    """

    picture: DecodedImage
    colors: DecodedImage

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.picture.nbytes + (0 if self.colors is self.picture else self.colors.nbytes)


def decode_scene(
    source: Source, color: Color, limits: Limits, channels: Channels = "rgb", search_size: int = SEARCH
) -> SceneImage:
    """Decode a source for a search at a given size.

    Args:
        source: as for `decode`.
        color: `gray` or `rgb`, the classifier's.
        limits: as for `decode`.
        channels: the order of an array's channels.
        search_size: pixels of the long side that it will be searched at.

    Raises:
        SourceError: as for `decode`.
    """
    if isinstance(source, str | os.PathLike):
        source = read_file(get_path(source), limits.max_bytes)
    elif isinstance(source, bytes | bytearray | memoryview):
        source = get_bytes(source)
    if not isinstance(source, bytes | Image.Image):
        image = decode(source, "rgb", limits, channels)
        return SceneImage(image, _to_rgb(image))
    if color == "rgb":
        image = decode(source, color, limits)
        return SceneImage(image, image)
    picture = decode(source, color, limits)
    min_side = search_size * min(picture.shape) // max(picture.shape)
    return SceneImage(picture, decode(source, "rgb", limits, min_side=max(1, min_side)))


def resize_for_search(
    image: npt.NDArray[np.uint8], long_side: int, multiple: int
) -> tuple[npt.NDArray[np.uint8], tuple[float, float]]:
    """Resize a picture so that its long side has so many pixels, and pad it with zeros right and below.

    Args:
        image: uint8 `[h, w, 3]`.
        long_side: pixels.
        multiple: that height and width become multiples of.

    Returns:
        The network's input, uint8 `[1, 3, H, W]`, and how many pixels of `image` one of its is wide and high.
    """
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if (new_width, new_height) != (width, height):
        # First by a whole factor where it is large, in a sixth of the time; then to the size itself.
        size, gap = (new_width, new_height), 1.0
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=gap))
    padded = np.zeros(
        (1, 3, -(-new_height // multiple) * multiple, -(-new_width // multiple) * multiple), np.uint8
    )
    padded[0, :, :new_height, :new_width] = image.transpose(2, 0, 1)
    return padded, (width / new_width, height / new_height)


def turn(image: npt.NDArray[np.uint8], degrees: float) -> npt.NDArray[np.uint8]:
    """Turn a picture counterclockwise about its centre, on a black ground that has room for all of it."""
    turned = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    return np.asarray(turned)


def turn_back(
    points: npt.NDArray[np.floating[Any]], degrees: float, size: tuple[int, int], turned: tuple[int, int]
) -> npt.NDArray[np.floating[Any]]:
    """Return where points of a picture that `turn` turned are in it as it was.

    Args:
        points: x and y, `[…, 2]`.
        degrees: that it was turned by.
        size: its width and height.
        turned: width and height of what `turn` made of it.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    back = np.array([[cosine, sine], [-sine, cosine]])
    found: npt.NDArray[np.floating[Any]] = (points - np.array(turned) / 2) @ back + np.array(size) / 2
    return found


def choose_search_size(size: tuple[int, int]) -> int:
    """Choose the long side at which a picture of this width and height is searched.

    A picture that is a face itself is more than the largest anchors see, unless it is searched small: of FER2013's
    crops of 48×48, 99 of 100 are found at 160 pixels, 62 at 640.
    """
    return SMALL_SEARCH if max(size) < SMALL else SEARCH


def _to_rgb(image: DecodedImage) -> DecodedImage:
    return image if image.ndim == 3 else DecodedImage(np.repeat(image[..., np.newaxis], 3, axis=2))
