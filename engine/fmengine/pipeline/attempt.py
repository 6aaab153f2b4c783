"""Make something of one picture, or return its error: none ends a run over many."""

from collections.abc import Callable
from typing import TypeVar

from ..errors import SourceError
from ..image.decode import decode
from ..image.faults import as_source_error
from ..options import Limits
from ..types import Color, DecodedImage, Source

T = TypeVar("T")


def try_picture(
    source: Source, color: Color, make: Callable[[DecodedImage], T], limits: Limits | None = None
) -> T | SourceError:
    """Decode a picture and make something of its pixels, or return why that cannot be done.

    Args:
        source: as for `decode`.
        color: `gray` or `rgb`.
        make: makes something of the decoded pixels, such as a network's input.
        limits: what is refused before it is decoded.

    Returns:
        What `make` returns, or the picture's error, whatever was raised on its way.
    """
    try:
        return make(decode(source, color, limits or Limits()))
    except Exception as error:
        return as_source_error(error)
