"""Turn whatever was raised for one picture into its `SourceError`."""

import logging
import traceback

from PIL import Image, UnidentifiedImageError

from ..errors import FmengineError, Kind, SourceError

log = logging.getLogger(__name__)


def as_source_error(error: Exception) -> SourceError:
    """Turn whatever was raised for a picture into its error, so that no library can end a run.

    The traceback of an unexpected exception is logged. An `FmengineError` that concerns no single picture, such as
    a failed GPU's, is raised again.
    """
    match error:
        case SourceError():
            return error
        case FmengineError():
            raise error
        case MemoryError():
            return make_decode_error(error)
    log.debug("a picture failed with an unexpected exception", exc_info=error)
    return SourceError(Kind.INTERNAL, describe_exception(error))


def make_decode_error(error: Exception) -> SourceError:
    """Make the error of a picture that cannot be decoded, from whatever a decoder raised."""
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


def describe_exception(error: Exception) -> str:
    """Return an exception's name and text, also where its `str`, which is code of the library, raises."""
    return "".join(traceback.format_exception_only(error)).strip()
