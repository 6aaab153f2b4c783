"""Decode any source to pixels: paths, encoded bytes, file-likes, arrays and PIL images.

A plain JPEG (gray or YCbCr) is decoded by libjpeg-turbo: a gray model takes its luma plane as stored,
and chroma is never decoded. Everything else, and every JPEG that libjpeg-turbo refuses or warns of, is
decoded by Pillow, which decides whether a file can be decoded.

A JPEG's luma plane and the luma of its decoded RGB differ by up to 21 levels where the file's colours
were clipped, so a file's bytes and an array (or a PIL image) decoded from it are not the same input.
"""

import os
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from PIL import Image

from ..errors import Kind, SourceError
from ..options import Limits
from ..system.files import make_size_error, read_file
from ..types import Channels, Color, DecodedImage, DLPackArray, Source
from .arrays import convert_array, import_dlpack
from .faults import as_source_error
from .headers import JPEG_MAGIC
from .jpeg import decode_plain_jpeg
from .pillow import convert_image, decode_with_pillow
from .source import get_bytes, get_path, is_file_like, is_on_device, read_file_like

T = TypeVar("T")


def decode(
    source: Source, color: Color, limits: Limits, channels: Channels = "rgb", min_side: int = 0
) -> DecodedImage:
    """Decode any source to the pixels that `preprocess` takes.

    Args:
        source: a path, an encoded picture, a file-like that is open for reading bytes, a uint8 array (`[H, W]`, or
            `[H, W, C]` with 1, 3 or 4 channels) or a PIL image.
        color: `gray` or `rgb`, the model's.
        limits: what is refused before it is decoded.
        channels: the order of an array's channels; `bgr` for cameras read with OpenCV.
        min_side: rows and columns that a large JPEG keeps where it is decoded smaller by a factor of 2 to 8, which
            changes pixels; 0 decodes every picture whole.

    Returns:
        uint8 `[H, W]`, or `[H, W, 3]` in RGB order, upright (EXIF orientation applied).

    Raises:
        SourceError: with the kind of what went wrong.
    """
    match source:
        case np.ndarray():
            return convert_array(source, limits, channels)
        case Image.Image():
            return convert_image(source, color, limits)
        case bytes() | bytearray() | memoryview():
            return decode_bytes(get_bytes(source), color, limits, min_side)
        case str() | os.PathLike():
            return decode_bytes(read_file(get_path(source), limits.max_bytes), color, limits, min_side)
    if is_on_device(source):
        raise SourceError(
            Kind.UNSUPPORTED,
            "the picture lies in a GPU's memory; open the engine with backend='tensorrt', or give a NumPy array",
        )
    if hasattr(source, "__dlpack_device__"):
        return convert_array(import_dlpack(cast(DLPackArray, source)), limits, channels)
    if is_file_like(source):
        return decode_bytes(read_file_like(source, limits), color, limits, min_side)
    raise SourceError(
        Kind.UNSUPPORTED,
        f"cannot take a {type(source).__name__} as a picture; give a path, encoded bytes, a file open for reading "
        "bytes, a NumPy array or a PIL image",
    )


def decode_bytes(data: bytes, color: Color, limits: Limits, min_side: int = 0) -> DecodedImage:
    """Decode an encoded picture; see `decode`."""
    if not data:
        raise SourceError(Kind.EMPTY, "the file is empty; expected an encoded picture")
    if len(data) > limits.max_bytes:
        raise make_size_error(limits.max_bytes)
    if data.startswith(JPEG_MAGIC) and (image := decode_plain_jpeg(data, color, limits, min_side)) is not None:
        return image
    return decode_with_pillow(data, color, limits)


def try_decode(
    source: Source, color: Color, make: Callable[[DecodedImage], T], limits: Limits | None = None
) -> T | SourceError:
    """Decode a picture and make something of its pixels, or return its error: none ends a run over many.

    Args:
        source: as for `decode`.
        color: `gray` or `rgb`.
        make: makes something of the decoded pixels, such as a network's input.
        limits: what is refused before it is decoded.

    Returns:
        What `make` returns, or the picture's error, whatever was raised by either.
    """
    try:
        return make(decode(source, color, limits or Limits()))
    except Exception as error:
        return as_source_error(error)
