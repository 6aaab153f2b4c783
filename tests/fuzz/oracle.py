"""What a file's pixels are by definition, written once more and only with Pillow and NumPy; and the check."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from fmengine.decode import REFUSED_FORMATS, decode
from fmengine.errors import Kind, SourceError
from fmengine.limits import Limits

# Small, so that a mutated header does not cost gigabytes; the same for both sides.
LIMITS = Limits(max_pixels=4_000_000)


def pixels(data: bytes, color: str, limits: Limits = LIMITS) -> np.ndarray | None:
    """Upright luma or RGB, or None where Pillow makes nothing of the bytes."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in REFUSED_FORMATS or image.width * image.height > limits.max_pixels:
                return None
            if color == "gray":
                image.draft("L", None)
            image.load()
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))
            upright = _transposed(image)
            if deep:
                upright = Image.fromarray(((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8))
            found = np.asarray(upright.convert("L" if color == "gray" else "RGB"))
            return found if found.size else None
    except Exception:
        return None


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
                if expected is not None and not (found is Kind.TOO_LARGE and expected.shape[1] < 16):
                    return f"{color}: {found}, where Pillow gives {expected.shape}"
            elif expected is None:
                if not _is_lab(data):
                    return f"{color}: pixels {found.shape}, where Pillow gives none"
            elif not np.array_equal(found, expected):
                return f"{color}: pixels {found.shape} are not Pillow's {expected.shape}"
    return ""


def _is_lab(data: bytes) -> bool:
    """The one mode that Pillow opens and does not convert."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode == "LAB"
