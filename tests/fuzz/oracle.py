"""What a file's pixels are by definition, written once more and only with Pillow and NumPy; and the check."""

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps

from fmengine.errors import Kind, SourceError
from fmengine.image.decode import decode
from fmengine.image.pillow import REFUSED_FORMATS
from fmengine.options import Limits

# Small, so that a mutated header does not cost gigabytes; the same for both sides.
LIMITS = Limits(max_pixels=4_000_000)
MOST_COUNTED = 30  # times that a pixel of what is not built to be dear counts at most


def pixels(data: bytes, color: str, limits: Limits = LIMITS) -> np.ndarray | None:
    """Upright luma or RGB, or None where Pillow makes nothing of the bytes, or nothing that has a meaning."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in REFUSED_FORMATS or image.width * image.height > limits.max_pixels:
                return None
            upright = _transposed(_loaded(image, data, color))
            white = _white(upright, image.format)
            if white == 65_535:
                upright = Image.fromarray(((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8))
            upright = upright.convert({"La": "LA", "LAB": "RGB"}.get(upright.mode, upright.mode))
            found = np.asarray(upright.convert("L" if color == "gray" else "RGB"))
            return found if found.size and white else None
    except Exception as error:
        without = _without_metadata(data) if re.search("MAX_TEXT_|Invalid Exif payload", str(error)) else data
        return None if without == data else pixels(without, color, limits)


def _without_metadata(data: bytes) -> bytes:
    """A PNG without its texts, and an AVIF whose Exif block nobody finds."""
    if not data.startswith(b"\x89PNG"):
        return data.replace(b"Exif", b"none")
    place, kept = 8, data[:8]
    while place < len(data):
        chunk = data[place : place + 12 + int.from_bytes(data[place : place + 4])]
        kept += b"" if chunk[4:8] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") else chunk
        place += len(chunk)
    return kept


def _loaded(image: Image.Image, data: bytes, color: str) -> Image.Image:
    """A gray one is a JPEG's luma as it is stored, where libjpeg gives that."""
    if color == "gray":
        image.draft("L", None)
    try:
        image.load()
    except OSError:
        if color == "rgb" or image.format not in ("JPEG", "MPO"):
            raise
        image = Image.open(io.BytesIO(data))
        image.load()
    return image


def _white(image: Image.Image, kind: str | None) -> int:
    """The level that is white, or 0 where there is no telling."""
    if image.mode == "F":
        return 0
    if image.mode == "I":
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65_535:
            return 0
        return 65_535 if kind == "PPM" or levels.max() > 255 else 255
    return 65_535 if image.mode.startswith("I;16") else 255


def _transposed(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def check(data: bytes) -> str:
    """Hold fmengine's decoding of a file against the definition: "" where they agree, else what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for color in ("gray", "rgb"):
            try:
                found = decode(data, color, LIMITS)
            except SourceError as error:
                found = error.kind
            except BaseException as error:
                return f"{color}: {type(error).__name__}: {error}"
            expected = pixels(data, color)
            if isinstance(found, Kind):
                if expected is not None and not _may_be_dear(found, data, expected):
                    return f"{color}: {found}, where Pillow gives {expected.shape}"
            elif expected is None:
                return f"{color}: pixels {found.shape}, where Pillow gives none"
            elif not np.array_equal(found, expected):
                return f"{color}: pixels {found.shape} are not Pillow's {expected.shape}"
    return ""


def _may_be_dear(found: Kind, data: bytes, expected: np.ndarray) -> bool:
    """Whether the pixels may count as too many: several times each, or those of another picture in an icon."""
    height, width = expected.shape[:2]
    many = max(16, width) * height * MOST_COUNTED > LIMITS.max_pixels
    return found is Kind.TOO_LARGE and (many or data.startswith((b"icns", b"\0\0\1\0")))
