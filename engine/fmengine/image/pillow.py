"""Decode with Pillow: PIL images, every format but plain JPEG, and JPEGs that `jpeg.py` leaves to it."""

import io
from functools import cache
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import Kind, SourceError
from ..options import Limits
from ..types import Color, DecodedImage
from .cost import PILLOW_BYTES, check_inside, check_opened, check_pixels, wait_for_memory
from .faults import make_decode_error
from .headers import JPEG_MAGIC
from .orientation import SWAPPED, read_orientation, turn_upright

# Never opened: EPS runs Ghostscript, MPEG has no decoder, and others are stubs that need a handler. The last four
# hold a picture of another format, which Pillow decodes as it opens the file, whatever it costs.
REFUSED_FORMATS = frozenset({"EPS", "MPEG", "WMF", "BUFR", "GRIB", "HDF5", "BLP", "FPX", "IPTC", "MIC"})

MAX_STRIP_PIXELS = 1_000_000  # that are converted in one call
# Modes that Pillow does not convert to gray, and the modes that they are converted to before.
VIA_MODE = {"La": "LA", "LAB": "RGB"}


def decode_with_pillow(data: bytes, color: Color, limits: Limits) -> DecodedImage:
    """Decode an encoded picture, without its metadata where only they cannot be read.

    Raises:
        SourceError: with the kind of what went wrong.
    """
    gray = color == "gray"
    try:
        check_inside(data, limits)
        try:
            return _decode(data, color, limits, as_luma=gray)
        except Exception as error:
            if rest := _remove_metadata(data, str(error)):
                return _decode(rest, color, limits, as_luma=gray)
            if gray and data.startswith(JPEG_MAGIC) and make_decode_error(error).kind is Kind.CORRUPT:
                # libjpeg decodes a lossless one to its colours only.
                return _decode(data, color, limits, as_luma=False)
            raise
    except Exception as error:  # a decoder may raise anything at all on hostile bytes
        raise make_decode_error(error) from error


def convert_image(image: Image.Image, color: Color, limits: Limits) -> DecodedImage:
    """Convert a caller's image, which may not be loaded from its file yet.

    Raises:
        SourceError: with the kind of what went wrong.
    """
    try:
        check_pixels(*image.size, limits)
        with wait_for_memory(image.width * image.height * PILLOW_BYTES):
            return _convert(image, color)
    except Exception as error:  # a decoder may raise anything at all on hostile bytes
        raise make_decode_error(error) from error


def raise_pillow_limit(max_pixels: int) -> None:
    """Raise Pillow's limit to ours. It holds for the whole process, so only processes of our own may call this."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels // 2)


def _decode(data: bytes, color: Color, limits: Limits, *, as_luma: bool) -> DecodedImage:
    """Open and decode a file. May raise anything.

    Args:
        data: of the file.
        color: of the pixels.
        limits: of what it may cost.
        as_luma: whether a JPEG's luma plane is taken as it is stored; other formats are not affected.
    """
    with Image.open(io.BytesIO(data), formats=_list_formats()) as image:
        cost = check_opened(image, data, limits)
        if as_luma:
            image.draft("L", None)  # never of a caller's image, which would stay gray
        with wait_for_memory(image.width * image.height * (PILLOW_BYTES + cost.memory)):
            return _convert(image, color, of_file=True)


def _convert(image: Image.Image, color: Color, *, of_file: bool = False) -> DecodedImage:
    """Load an image and convert it, in strips where it is large: whole, it would take several times the memory."""
    image.load()
    width, height = image.size
    if not width * height:
        raise SourceError(Kind.EMPTY, f"a picture of {width}×{height} pixels")
    white = _find_white(image, of_file)
    orientation = read_orientation(image)
    rows = max(1, MAX_STRIP_PIXELS // width)
    if rows >= height:
        upright = turn_upright(_convert_levels(image, color, white), orientation)
        return DecodedImage(np.ascontiguousarray(upright))
    turned = (width, height) if orientation in SWAPPED else (height, width)
    pixels: npt.NDArray[np.uint8] = np.empty(turned if color == "gray" else (*turned, 3), np.uint8)
    as_stored = turn_upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))  # all others undo themselves
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(top + rows, height)))
        as_stored[top : top + rows] = _convert_levels(part, color, white)
    return DecodedImage(pixels)


def _find_white(image: Image.Image, of_file: bool) -> int:
    """Find the level of a loaded image that is white: 255, or 65,535 where it has 16 bits.

    Mode `I`, of 32 bits, may hold either: 16 bits where any level is over 255, as Pillow reads a PGM, else 8, as
    `Image.convert("I")` makes it: a picture of 16 bits as dark as that would show nothing. A PGM file that Pillow
    opens in this mode has 16 bits by its header.

    Raises:
        SourceError: of the kind `unsupported`, for levels whose white is unknown.
    """
    if image.mode.startswith("I;16"):
        return 65_535
    if image.mode not in ("I", "F"):
        return 255
    low, high = cast("tuple[float, float]", image.getextrema())
    if image.mode == "I" and low >= 0 and high <= 65_535:
        return 65_535 if high > 255 or (of_file and image.format == "PPM") else 255
    raise SourceError(
        Kind.UNSUPPORTED,
        f"levels of 32 bits from {low:,.6g} to {high:,.6g}, of which none is known as white; scale them to 255: "
        'Image.fromarray((numpy.asarray(image, "float32") * (255 / white)).clip(0, 255).astype("uint8"))',
    )


def _convert_levels(image: Image.Image, color: Color, white: int) -> npt.NDArray[np.uint8]:
    """Convert a loaded image, or a part of one, to uint8 `[H, W]` or `[H, W, 3]`."""
    if white > 255:  # Pillow would clip them to 255; 65,535 / 257 = 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in VIA_MODE:
        image = image.convert(VIA_MODE[image.mode])
    mode = "L" if color == "gray" else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _remove_metadata(data: bytes, complaint: str) -> bytes | None:
    """Remove the metadata that a decoder cannot read, or return None where `complaint` is of something else.

    An orientation in them is lost.
    """
    if "Invalid Exif payload" in complaint:  # libavif's text; it ignores items of an unknown type
        return data.replace(b"Exif", b"none")
    if "MAX_TEXT_" not in complaint:  # Pillow's two limits for a PNG's texts and profile
        return None
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


@cache
def _list_formats() -> tuple[str, ...]:
    """List Pillow's formats but those that are refused."""
    Image.init()
    return tuple(name for name in Image.ID if name not in REFUSED_FORMATS)
