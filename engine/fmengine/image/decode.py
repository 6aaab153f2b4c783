"""From a source to decoded pixels: paths, encoded bytes, NumPy arrays and PIL images.

A plain JPEG (gray or YCbCr) is decoded by libjpeg-turbo: a gray model takes its luma plane as stored,
and chroma is never decoded. Everything else, and every JPEG that libjpeg-turbo finds fault with, goes
through Pillow, whose verdict is the one that counts.

A JPEG's luma plane and the luma of its decoded RGB differ by up to 21 levels where the file's colours
were clipped, so a file's bytes and an array (or a PIL image) decoded from it are not the same input.
"""

import errno
import io
import logging
import os
import stat
import threading
import traceback
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeGuard, cast

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import FmengineError, Kind, SourceError
from ..options import Limits
from ..types import CHANNELS, Channels, Color, Encoded, Source
from .cost import (
    MADE,
    Cost,
    check_inside,
    check_opened,
    check_pixels,
    cost_of_jpeg,
)
from .preprocess import Pixels

DLPACK_CPU = 1  # DLPack's kDLCPU

log = logging.getLogger(__name__)

# Never opened: EPS runs Ghostscript, MPEG has no decoder, and others are stubs that need a handler. The last four
# hold a picture of another format, which Pillow opens and decodes in one go, whatever it costs.
REFUSED_FORMATS = frozenset({"EPS", "MPEG", "WMF", "BUFR", "GRIB", "HDF5", "BLP", "FPX", "IPTC", "MIC"})

LARGE = 128_000_000  # bytes: what takes as much to decode is decoded one at a time
_large = threading.Lock()
_small = nullcontext()

AT_ONCE = 1_000_000  # pixels that are converted in one go
_BY_WAY_OF = {"La": "LA", "LAB": "RGB"}  # modes that Pillow makes no gray of, and what it does make of them


def decode(source: Source, color: Color, limits: Limits, channels: Channels = "rgb", least: int = 0) -> Pixels:
    """Decode any source to the pixels that `preprocess` takes.

    Args:
        source: a path, an encoded picture, a uint8 array (`[H, W]`, or `[H, W, C]` with 1, 3 or 4 channels)
            or a PIL image.
        color: `gray` or `rgb`, the model's.
        limits: what is refused before it is decoded.
        channels: the order of an array's channels; `bgr` for cameras read with OpenCV.
        least: rows and columns that a large JPEG keeps at least where it is decoded smaller by a factor of 2 to 8,
            which changes pixels; 0 decodes every picture whole.

    Returns:
        uint8 `[H, W]`, or `[H, W, 3]` in RGB order, upright (EXIF orientation applied).

    Raises:
        SourceError: with the kind of what went wrong.
    """
    match source:
        case np.ndarray():
            return _from_array(source, limits, channels)
        case Image.Image():
            return _from_image(source, color, limits)
        case bytes() | bytearray() | memoryview():
            return decode_bytes(bytes_of(source), color, limits, least)
        case str() | os.PathLike():
            return decode_bytes(read_file(source, limits), color, limits, least)
    if on_gpu(source):
        raise SourceError(
            Kind.UNSUPPORTED,
            "the picture lies in a GPU's memory; open the engine with backend='tensorrt', or give a NumPy array",
        )
    if hasattr(source, "__dlpack_device__"):
        try:
            array = np.from_dlpack(cast(Any, source))
        except Exception as error:  # of the library that holds it, such as for a tensor that needs gradients
            message = f"its library does not hand the picture over: {_described(error)}"
            raise SourceError(Kind.UNSUPPORTED, message) from error
        return _from_array(array, limits, channels)
    raise SourceError(
        Kind.UNSUPPORTED,
        f"cannot take a {type(source).__name__} as a picture; give a path, encoded bytes, a NumPy array "
        "or a PIL image",
    )


def check_channels(channels: Channels) -> None:
    """Refuse an order of channels that does not exist, which would else be taken for another.

    Raises:
        ValueError: that names those that do.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels {channels!r}; expected 'rgb' or 'bgr'")


def is_encoded(source: object) -> TypeGuard[Encoded]:
    """Whether a source is a path or a file's bytes, which are yet to be decoded."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)


def on_gpu(source: object) -> bool:
    """Whether a source lies in a GPU's memory."""
    if isinstance(source, np.ndarray | str | bytes):
        return False
    try:
        device = getattr(source, "__dlpack_device__", None)
        if device is not None:
            return bool(device()[0] != DLPACK_CPU)
        return hasattr(source, "__cuda_array_interface__")
    except Exception:  # of the library that holds it; to decode it says what is wrong
        return False


def bytes_of(source: bytes | bytearray | memoryview) -> bytes:
    """An encoded picture's bytes: a view may have gaps, any shape, or been released."""
    try:
        return bytes(source)
    except (ValueError, BufferError, TypeError) as error:
        raise SourceError(Kind.UNSUPPORTED, f"its bytes cannot be read: {error}") from error


def path_of(source: str | os.PathLike[str]) -> str:
    """The name of a picture's file, which an object may fail to tell."""
    try:
        return os.fsdecode(source)
    except Exception as error:
        raise SourceError(
            Kind.UNSUPPORTED, f"its path cannot be told: {_described(error)}; expected text, or a pathlib.Path"
        ) from error


def read_file(path: str | os.PathLike[str], limits: Limits) -> bytes:
    """Read a regular file of at most `limits.max_bytes`; pipes, devices and folders are never opened."""
    if not isinstance(path, str):
        path = path_of(path)
    # Each system call lets go of the interpreter's lock, which threads that decode small pictures wait for: hence
    # four calls, where a file object makes eight.
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a device or a socket"
            raise SourceError(Kind.NOT_A_FILE, f"it is {what}; expected a regular file")
        _check_bytes(status.st_size, limits)
        file = os.open(path, os.O_RDONLY)
        try:
            # One byte more than there is shows a file that grew since `stat`, and that nothing is left.
            data = os.read(file, status.st_size + 1)
            if len(data) != status.st_size:
                data += _rest(file, limits.max_bytes + 1 - len(data))
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise read_error(error) from error
    _check_bytes(len(data), limits)
    return data


def _rest(file: int, most: int) -> bytes:
    """What a file holds from where it is read, up to a number of bytes."""
    parts = []
    while most > 0 and (part := os.read(file, min(most, 1 << 20))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def decode_bytes(data: bytes, color: Color, limits: Limits, least: int = 0) -> Pixels:
    """Decode an encoded picture; see `decode`."""
    if not data:
        raise SourceError(Kind.EMPTY, "the file is empty; expected an encoded picture")
    _check_bytes(len(data), limits)
    if (pixels := _plain_jpeg(data, color, limits, least)) is not None:
        return pixels
    luma = color == "gray"
    try:
        check_inside(data, limits)
        try:
            return _by_pillow(data, color, limits, luma)
        except Exception as error:
            if rest := _without_metadata(data, str(error)):
                return _by_pillow(rest, color, limits, luma)
            if luma and _is_jpeg(data) and decode_error(error).kind is Kind.CORRUPT:
                return _by_pillow(data, color, limits, luma=False)  # of a lossless one libjpeg makes colours alone
            raise
    except Exception as error:  # a decoder may raise anything at all on hostile bytes
        raise decode_error(error) from error


def is_plain_jpeg(data: bytes, limits: Limits) -> bool:
    """Whether the header is that of a gray or YCbCr JPEG, of which libjpeg-turbo may make pixels.

    Raises:
        SourceError: if it is over the limits.
    """
    return _plain_jpeg_cost(data, limits) is not None


def may_be_turned(data: bytes) -> bool:
    """Whether a JPEG may name an orientation: in its Exif block, or as text in its XMP block."""
    return b"Exif\0\0" in data or b"tiff:Orientation" in data


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _plain_jpeg_cost(data: bytes, limits: Limits) -> tuple[int, Cost] | None:
    """Pixels of a gray or YCbCr JPEG and what each costs, else None. Raises as `is_plain_jpeg` does."""
    if not _is_jpeg(data):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except MemoryError as error:
        raise decode_error(error) from error
    except Exception:  # such as KeyError, where it has no name for how chroma is sampled
        return None
    if colorspace not in ("Gray", "YCbCr"):
        return None
    _check_bytes(len(data), limits)
    cost = cost_of_jpeg(data, width * height, limits)
    check_pixels(width, height, limits, cost, len(data))
    return width * height, cost


def _plain_jpeg(data: bytes, color: Color, limits: Limits, least: int) -> Pixels | None:
    """Decode by libjpeg-turbo, or None where Pillow must decide: unusual colours, any warning, any error."""
    if (found := _plain_jpeg_cost(data, limits)) is None:
        return None
    count, cost = found
    space, channels = ("GRAY", 1) if color == "gray" else ("RGB", 3)
    try:
        with _turn(count * (channels + cost.memory)):
            # Of a `least` of 0 it makes nothing smaller.
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, space, strict=True, min_height=least, min_width=least, min_factor=2
            )
    except MemoryError as error:
        raise decode_error(error) from error
    except Exception:
        return None
    if may_be_turned(data):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
                orientation = _orientation(image)
        except Exception:  # let Pillow's own path decide what to make of it
            return None
        pixels = np.ascontiguousarray(_upright(pixels, orientation))
    return pixels[..., 0] if channels == 1 else pixels


def _turn(size: float) -> AbstractContextManager[object]:
    """Wait until no other picture is decoded that takes much memory, where one takes so many bytes."""
    return _large if size >= LARGE else _small


def _orientation(image: Image.Image) -> int:
    """What the metadata say, 1 where they say nothing that can be read: the pixels are whole all the same."""
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)  # or text, or anything, which turns nothing
        return int(value) if value in range(2, 9) else 1
    except Exception:  # Pillow parses what it finds, and may raise anything
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 2 to 4 mirror or turn by 180 degrees, 5 to 8 also swap the axes. A view."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _from_array(array: np.ndarray[Any, Any], limits: Limits, channels: Channels) -> Pixels:
    """Check an array and bring it to `[H, W]` or RGB `[H, W, 3]`; alpha is dropped, as Pillow drops it."""
    if array.dtype != np.uint8:
        raise SourceError(Kind.UNSUPPORTED, f"array of {array.dtype}; expected uint8 levels from 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise SourceError(
            Kind.UNSUPPORTED,
            f"array of shape {array.shape}; expected [H, W] or [H, W, C] with C of 1, 3 or 4",
        )
    if not array.size:
        raise SourceError(Kind.EMPTY, f"array of shape {array.shape} has no pixels")
    check_pixels(array.shape[1], array.shape[0], limits)
    if array.ndim == 3 and (channels == "bgr" or array.shape[2] == 4):
        # Channel by channel: a copy of `array[..., 2::-1]` goes three bytes at a time, and takes thrice as long.
        array = np.stack([array[..., i] for i in ((2, 1, 0) if channels == "bgr" else (0, 1, 2))], axis=-1)
    return np.ascontiguousarray(array)


def _from_image(image: Image.Image, color: Color, limits: Limits) -> Pixels:
    """Convert a caller's image, which may be yet to be loaded from its file."""
    try:
        check_pixels(*image.size, limits)
        with _turn(image.width * image.height * MADE):
            return _converted(image, color)
    except Exception as error:  # a decoder may raise anything at all on hostile bytes
        raise decode_error(error) from error


def _by_pillow(data: bytes, color: Color, limits: Limits, luma: bool) -> Pixels:
    """Decode what is no plain JPEG, and what libjpeg-turbo finds fault with. May raise anything.

    Args:
        data: of the file.
        color: of the pixels.
        limits: of what it may cost.
        luma: whether a JPEG's luma plane is taken as it is stored; nothing happens to other formats.
    """
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        cost = check_opened(image, data, limits)
        if luma:
            image.draft("L", None)  # never of a caller's image, which would stay gray
        with _turn(image.width * image.height * (MADE + cost.memory)):
            return _converted(image, color, of_file=True)


def _without_metadata(data: bytes, complaint: str) -> bytes | None:
    """A file without the metadata that its decoder stumbled over, or None where it complains of something else.

    An orientation that they name is lost with them.
    """
    if "Invalid Exif payload" in complaint:  # in libavif's words; it passes over items whose type it does not know
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


def _converted(image: Image.Image, color: Color, *, of_file: bool = False) -> Pixels:
    """Load an image and convert it, by parts where it is large: at once would take several times the memory."""
    image.load()
    width, height = image.size
    if not width * height:
        raise SourceError(Kind.EMPTY, f"a picture of {width}×{height} pixels")
    white = _white_level(image, of_file)
    orientation = _orientation(image)
    rows = max(1, AT_ONCE // width)
    if rows >= height:
        return np.ascontiguousarray(_upright(_levels(image, color, white), orientation))
    turned = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    pixels = np.empty(turned if color == "gray" else (*turned, 3), np.uint8)
    as_stored = _upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))  # all others undo themselves
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(top + rows, height)))
        as_stored[top : top + rows] = _levels(part, color, white)
    return pixels


def _white_level(image: Image.Image, of_file: bool) -> int:
    """The level of a loaded image that is white: 255, or 65,535 where it has 16 bits.

    Mode `I`, of 32 bits, may hold either: 16 where any level is over 255, as Pillow reads a PGM, and else 8, as
    `Image.convert("I")` makes it. A picture of 16 bits as dark as that would show nothing. Of a PGM's bytes it has
    16 in any case, as their header says.

    Raises:
        SourceError: of the kind `unsupported`, for levels whose white nobody knows.
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


def _levels(image: Image.Image, color: Color, white: int) -> Pixels:
    """The pixels of a loaded image, uint8 `[H, W]` or `[H, W, 3]`."""
    if white > 255:  # Pillow would clip them to 255; 65,535 / 257 = 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    mode = "L" if color == "gray" else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def raise_pillows_limit(max_pixels: int) -> None:
    """Let Pillow open what our limits allow. Its own is the process's: for those that are all ours."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels // 2)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in REFUSED_FORMATS)


def _check_bytes(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise SourceError(Kind.FILE_TOO_LARGE, f"over {limits.max_bytes:,} bytes, the limit for one file")


def read_error(error: OSError | ValueError) -> SourceError:
    """The error of a picture whose file cannot be read, from what the system says."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR) or isinstance(error, ValueError):
        return SourceError(Kind.NOT_FOUND, "no such file")
    reason = os.strerror(number) if number else str(error)
    return SourceError(Kind.UNREADABLE, f"cannot read the file: {reason}")


def as_source_error(error: Exception) -> SourceError:
    """The error of a picture whatever was raised on its way, so that no library can end a run.

    The traceback of what nobody foresaw is logged. An error of ours that is no picture's is raised again.
    """
    match error:
        case SourceError():
            return error
        case FmengineError():
            raise error
        case MemoryError():
            return decode_error(error)
    log.debug("a picture failed for a reason that nobody foresaw", exc_info=error)
    return SourceError(Kind.INTERNAL, _described(error))


def _described(error: Exception) -> str:
    """An exception's name and text. Its own `str` is code of whoever raised it, and may raise as well."""
    return "".join(traceback.format_exception_only(error)).strip()


def decode_error(error: Exception) -> SourceError:
    """The error of a picture that cannot be decoded, from whatever a decoder raised."""
    text = str(error) or type(error).__name__
    match error:
        case SourceError():
            return error
        case UnidentifiedImageError():
            return SourceError(Kind.NOT_AN_IMAGE, "no known image format; expected JPEG, PNG, WebP or alike")
        case Image.DecompressionBombError():
            return SourceError(Kind.TOO_LARGE, f"too large to decode: {text}")
        case MemoryError():
            return SourceError(Kind.OUT_OF_MEMORY, f"no room to decode it: {text}")
        case NotImplementedError():
            return SourceError(Kind.UNSUPPORTED, f"a variant of the format that cannot be decoded: {text}")
        case EOFError():
            return SourceError(Kind.TRUNCATED, f"the file ends before the picture does: {text}")
        case OSError() if "truncated" in text.lower():
            return SourceError(Kind.TRUNCATED, f"the file ends before the picture does: {text}")
    return SourceError(Kind.CORRUPT, f"the picture cannot be decoded: {text}")
