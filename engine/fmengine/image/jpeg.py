"""Decode plain JPEGs, gray or YCbCr, with libjpeg-turbo: a gray model takes the luma plane as it is stored."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from ..options import Limits
from ..types import Color, DecodedImage
from .cost import Cost, check_bytes, check_pixels, estimate_jpeg, wait_for_memory
from .faults import make_decode_error
from .headers import is_jpeg
from .orientation import read_orientation, turn_upright


def decode_plain_jpeg(data: bytes, color: Color, limits: Limits, min_side: int = 0) -> DecodedImage | None:
    """Decode with libjpeg-turbo, or return None where Pillow must decide: unusual colours, any warning, any error.

    Args:
        data: of any file.
        color: `gray` or `rgb`.
        limits: on pixels.
        min_side: as for `decode`.

    Raises:
        SourceError: if it is over the limits, or there is no room for it.
    """
    if (measured := _measure(data, limits)) is None:
        return None
    count, cost = measured
    space, channels = ("GRAY", 1) if color == "gray" else ("RGB", 3)
    try:
        with wait_for_memory(count * (channels + cost.memory)):
            # A `min_side` of 0 decodes the picture whole.
            pixels = simplejpeg.decode_jpeg(
                data, space, strict=True, min_height=min_side, min_width=min_side, min_factor=2
            )
    except MemoryError as error:
        raise make_decode_error(error) from error
    except Exception:
        return None
    if may_be_turned(data):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
                orientation = read_orientation(image)
        except Exception:  # Pillow decides whether the file can be decoded
            return None
        pixels = np.ascontiguousarray(turn_upright(pixels, orientation))
    return DecodedImage(pixels[..., 0] if channels == 1 else pixels)


def is_plain_jpeg(data: bytes, limits: Limits) -> bool:
    """Return whether the header is that of a gray or YCbCr JPEG, which libjpeg-turbo may decode.

    Raises:
        SourceError: if it is over the limits.
    """
    check_bytes(len(data), limits)
    return _measure(data, limits) is not None


def may_be_turned(data: bytes) -> bool:
    """Return whether a JPEG may name an orientation: in its Exif block, or as text in its XMP block."""
    return b"Exif\0\0" in data or b"tiff:Orientation" in data


def _measure(data: bytes, limits: Limits) -> tuple[int, Cost] | None:
    """Read from a plain JPEG's header how many pixels it has, and what each costs; None for another file.

    Raises:
        SourceError: if it is over the limits.
    """
    if not is_jpeg(data):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except MemoryError as error:
        raise make_decode_error(error) from error
    except Exception:  # such as KeyError, for an unknown sampling of chroma
        return None
    if colorspace not in ("Gray", "YCbCr"):
        return None
    cost = estimate_jpeg(data, width * height, limits)
    check_pixels(width, height, limits, cost, len(data))
    return width * height, cost
