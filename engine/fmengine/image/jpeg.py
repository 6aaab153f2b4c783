"""Decode plain JPEGs, gray or YCbCr, with libjpeg-turbo: a gray model takes the luma plane as it is stored."""

import io
from contextlib import nullcontext

import numpy as np
import simplejpeg
from PIL import Image

from ..options import MIN_ROW, Limits
from ..system.files import make_size_error
from ..types import Color, DecodedImage
from .cost import CHEAP, LARGE, USUAL, check_jpeg, wait_for_memory
from .faults import make_decode_error
from .headers import JPEG_MAGIC
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
    if (size := _read_plain_size(data)) is None:
        return None
    turned = may_be_turned(data)
    width, height = size
    if (
        max(width, MIN_ROW) * height <= limits.max_pixels
        and width * height * len(data) <= CHEAP * limits.max_pixels
    ):
        cost = USUAL  # as of nearly all files
    else:
        cost = check_jpeg(width, height, data, limits)
    space, channels = ("GRAY", 1) if color == "gray" else ("RGB", 3)
    memory = width * height * (channels + cost.memory)
    try:
        with wait_for_memory(memory) if memory >= LARGE else nullcontext():
            # A `min_side` of 0 decodes the picture whole.
            pixels = simplejpeg.decode_jpeg(
                data, space, strict=True, min_height=min_side, min_width=min_side, min_factor=2
            )
    except MemoryError as error:
        raise make_decode_error(error) from error
    except Exception:
        return None
    if turned:
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
    if len(data) > limits.max_bytes:
        raise make_size_error(limits.max_bytes)
    if (size := _read_plain_size(data)) is None:
        return False
    check_jpeg(*size, data, limits)
    return True


def may_be_turned(data: bytes) -> bool:
    """Return whether a JPEG may name an orientation: in its Exif block, or as text in its XMP block."""
    return b"Exif\0\0" in data or b"tiff:Orientation" in data


def _read_plain_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height of a plain JPEG from its header; None for another file."""
    if not data.startswith(JPEG_MAGIC):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except MemoryError as error:
        raise make_decode_error(error) from error
    except Exception:  # such as KeyError, for an unknown sampling of chroma
        return None
    return (width, height) if colorspace in ("Gray", "YCbCr") else None
