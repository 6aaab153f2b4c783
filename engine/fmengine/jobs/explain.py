"""Write what the answers rest on, a picture each, into a folder of their own."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..engine import Engine
from ..errors import SourceError
from ..explain.occlusion import explain
from ..explain.overlay import SIDE, draw_overlay
from ..image.decode import decode
from ..image.faults import as_source_error
from ..types import DecodedImage
from .picture_folder import Names, encode_picture, save_picture
from .rows import Row, decode_path


class Explained(NamedTuple):
    """A picture that has an answer, and what became of it.

    Attributes:
        row: of the picture.
        file: that shows what the answer rests on.
        error: what kept it from being written.
    """

    row: Row
    file: Path
    error: SourceError | None


def explain_pictures(
    folder: Path, rows: Iterable[Row], engine: Engine, roots: Sequence[str] = ()
) -> Iterator[Explained]:
    """Write each picture that has an answer into a folder, with the map of `explain` drawn over it, upright.

    Args:
        folder: of `picture_folder.prepare_folder`, which says how they are named.
        rows: of `rows.to_row`.
        engine: that answered.
        roots: folders that pictures were read from.

    Raises:
        OutputError: if one cannot be written.
    """
    names = Names(roots)
    for row in rows:
        if row["error"]:
            continue
        path = decode_path(row)
        name = names.choose(path)
        try:
            drawn = draw_explanation(engine, path)
        except Exception as error:
            yield Explained(row, folder / name, as_source_error(error))
            continue
        save_picture(folder / name, encode_picture(Image.fromarray(drawn), name))
        yield Explained(row, folder / name, None)


def draw_explanation(engine: Engine, path: str, side: int = SIDE) -> DecodedImage:
    """Draw what the answer for a picture rests on, uint8 `[h, w, 3]`; `side` is the longer one in pixels."""
    effect = explain(engine, path).effect
    return draw_overlay(decode(path, "gray", engine.limits), effect, engine.spec.input, side)
