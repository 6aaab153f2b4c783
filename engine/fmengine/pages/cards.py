"""Write a page of cards: a few facts and a thumbnail for each of many pictures, drawn by the page's script.

The page holds the facts of all cards as JSON; its script filters, orders and draws those that are seen, 200 at a
time, so that 20,000 open as fast as 200. A card is a dict; its keys, all but `path` only where they apply:

    path          as a row has it
    answer        the label; `confidence`; `probabilities` in the order of the model's labels
    reason        not to trust it, or why there is none
    error         kind; `message`
    expected      the right label; `verdict`: `right` or `wrong`; `data`: index of the folder
    face          number in the photograph
    boxes         of a photograph, each left, top, width, height, and `answer`, `reason`, `face`; `size`; `count`
    image         thumbnail as JPEG, empty where there is none; `map`: of what the answer rests on

Filters look at these keys: those of the page's controls, and of its address behind `#`.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from markupsafe import Markup

from ..errors import OutputError
from ..system.files import open_atomic
from .images import PageImages, get_folder
from .page import load_template, to_script_json

Card = dict[str, Any]

IN_MEMORY = 1 << 24  # bytes of facts that are kept there until the page is written
PIECE = 1 << 16  # characters


def write_cards(
    path: Path, template: str, cards: Iterable[Card], describe: Callable[[], dict[str, Any]]
) -> Path | None:
    """Write a page of cards.

    Args:
        path: of the page; it is replaced atomically.
        template: that includes `cards.html`.
        cards: facts and thumbnails.
        describe: gives the other values of the template after the last card: by then they are counted.

    Returns:
        The folder of thumbnails, where they are too many for the page itself.

    Raises:
        OutputError: if anything cannot be written. An old page then stays, with its thumbnails.
    """
    try:
        with (
            tempfile.SpooledTemporaryFile(IN_MEMORY, "w+", encoding="utf-8") as facts,
            PageImages(path) as images,
        ):
            for number, card in enumerate(cards):
                numbered = {
                    key: images.add(value) if isinstance(value, bytes) else value
                    for key, value in card.items()
                    if value != b""
                }
                facts.write(("," if number else "") + to_script_json(numbered))
            facts.seek(0)
            values = {"cards": _read_pieces(facts), "images": images} | describe()
            with open_atomic(path, "w") as file:
                file.writelines(load_template(template).generate(values))
            images.finish()
            return None if images.folder is None else get_folder(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _read_pieces(file: IO[str]) -> Iterator[Markup]:
    while piece := file.read(PIECE):
        yield Markup(piece)  # of `to_script_json`
