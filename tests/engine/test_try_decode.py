"""One picture made into something: whatever is raised on its way is its own error, of the right kind."""

import os
from collections.abc import Callable

import numpy as np
import pytest

from fmengine.errors import FmengineError, Kind, SourceError
from fmengine.image.decode import try_decode
from fmengine.options import Limits
from fmengine.types import DecodedImage

GRAY = np.full((3, 4), 7, np.uint8)


def raising(error: BaseException) -> Callable[[DecodedImage], None]:
    def make(pixels: DecodedImage) -> None:
        raise error

    return make


def kind_of(outcome: object) -> Kind:
    assert isinstance(outcome, SourceError)
    return outcome.kind


def test_what_is_made_is_given_back() -> None:
    assert try_decode(GRAY, "gray", lambda pixels: pixels.shape) == (3, 4)


def test_a_picture_that_cannot_be_decoded_is_an_error(tmp_path: os.PathLike[str]) -> None:
    assert kind_of(try_decode(os.path.join(tmp_path, "none.png"), "gray", np.sum)) is Kind.NOT_FOUND
    assert kind_of(try_decode(b"no picture", "gray", np.sum)) is Kind.NOT_AN_IMAGE
    assert kind_of(try_decode(GRAY, "gray", np.sum, Limits(max_pixels=11))) is Kind.TOO_LARGE


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError(6), Kind.INTERNAL),
        (MemoryError(), Kind.OUT_OF_MEMORY),
        (SourceError(Kind.EMPTY, "nothing there"), Kind.EMPTY),
    ],
)
def test_whatever_is_raised_is_the_pictures_error(error: Exception, kind: Kind) -> None:
    assert kind_of(try_decode(GRAY, "gray", raising(error))) is kind


@pytest.mark.parametrize("error", [FmengineError("closed"), KeyboardInterrupt()])
def test_what_is_no_pictures_error_is_raised(error: BaseException) -> None:
    with pytest.raises(type(error)):
        try_decode(GRAY, "gray", raising(error))
