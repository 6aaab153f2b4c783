"""Write what the answers rest on, a picture each, into a folder of their own."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..engine import Engine
from ..errors import SourceError
from ..explain.occlusion import explain
from ..explain.overlay import draw_overlay
from ..image.decode import decode
from ..image.faults import as_source_error
from ..types import DecodedImage
from .picture_folder import Names, encode_picture, save_picture
from .rows import Row, decode_path


def explain_pictures(
    folder: Path, rows: Iterable[Row], engine: Engine, roots: Sequence[str] = ()
) -> Iterator[tuple[str, SourceError | None]]:
    """Write each picture that has an answer into a folder, with the map of `explain` drawn over it, upright.

    Args:
        folder: of `picture_folder.prepare_folder`, which says how they are named.
        rows: of `rows.to_row`.
        engine: that answered.
        roots: folders that pictures were read from.

    Yields:
        The path of each picture, and what kept it from being explained.

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
            drawn = _draw(engine, path)
        except Exception as error:
            yield path, as_source_error(error)
            continue
        save_picture(folder / name, encode_picture(Image.fromarray(drawn), name))
        yield path, None


def _draw(engine: Engine, path: str) -> DecodedImage:
    effect = explain(engine, path).effect
    return draw_overlay(decode(path, "gray", engine.limits), effect, engine.spec.input)
