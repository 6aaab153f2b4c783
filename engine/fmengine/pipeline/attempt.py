"""One picture, made into what is wanted of it, or the error that says why not: none ends a run over many."""

from collections.abc import Callable
from typing import TypeVar

from ..errors import SourceError
from ..image.decode import as_source_error, decode
from ..image.preprocess import Pixels
from ..options import Limits
from ..types import Color, Source

T = TypeVar("T")


def try_picture(
    source: Source, color: Color, make: Callable[[Pixels], T], limits: Limits | None = None
) -> T | SourceError:
    """Decode a picture and make something of its pixels, or return why that cannot be done.

    Args:
        source: as for `decode`.
        color: `gray` or `rgb`.
        make: makes of the decoded pixels what is wanted, such as a network's input.
        limits: what is refused before it is decoded.

    Returns:
        What `make` returns, or the picture's error, whatever was raised on its way.
    """
    try:
        return make(decode(source, color, limits or Limits()))
    except Exception as error:
        return as_source_error(error)
