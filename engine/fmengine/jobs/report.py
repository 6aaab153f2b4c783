"""Write the contact sheet: an HTML page with every picture, its label and its confidence."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..model.spec import ModelSpec
from ..options import Isolation, Limits
from ..pages.cards import Card, write_cards
from ..pages.page import choose_tone
from .rows import Row, Tally, escape_path
from .thumbnails import add_thumbnails, read_thumbnail


def write_report(
    path: Path,
    rows: Iterable[Row],
    spec: ModelSpec,
    describe: dict[str, str],
    limits: Limits | None = None,
    isolate: Isolation | None = None,
    maps: Mapping[str, Path] | None = None,
) -> Path | None:
    """Write the contact sheet.

    Args:
        path: of the HTML file; it is replaced atomically.
        rows: of `rows.to_row`, in the order to show.
        spec: of the model that answered.
        describe: of the backend that answered.
        limits: of a picture; those that it was labelled with.
        isolate: limits of worker processes that decode; those that it was labelled with.
        maps: files that show what the answer rests on, of pictures by their paths.

    Returns:
        The folder of thumbnails beside it, where they are too many for the page itself.

    Raises:
        OutputError: if anything cannot be written.
    """
    tally = Tally()

    def make_cards() -> Iterator[Card]:
        for row, jpeg in add_thumbnails(rows, limits or Limits(), isolate):
            tally.add([row])
            drawn = (maps or {}).get(row["path"])
            yield make_card(row, spec.labels) | {"image": jpeg, "map": read_thumbnail(drawn) if drawn else b""}

    return write_sheet(path, make_cards(), tally, spec, describe)


def write_sheet(
    path: Path, cards: Iterable[Card], tally: Tally, spec: ModelSpec, describe: dict[str, str]
) -> Path | None:
    """Write a contact sheet of cards; see `write_cards`.

    Args:
        path: of the HTML file.
        cards: facts and thumbnails; whoever makes them counts them in `tally` meanwhile.
        tally: of the rows, complete after the last card.
        spec: of the model that answered.
        describe: of the backend that answered.
    """

    def make_values() -> dict[str, Any]:
        return {
            "title": escape_path(path.stem),
            "total": tally.count(),
            "filters": _list_filters(tally, spec.labels),
            "labels": spec.labels,
            "model": f"{spec.name} {spec.precision}",
            "backend": ", ".join(describe.values()),
        }

    return write_cards(path, "sheet.html", cards, make_values)


def make_card(row: Row, labels: Sequence[str]) -> Card:
    """Make the card of a row; its keys are those of `pages/cards.py`."""
    card: Card = {"path": row["path"]}
    if row.get("face") is not None:
        card["face"] = row["face"]
    if row["error"]:
        return card | {"error": row["error"]["kind"], "message": row["error"]["message"]}
    if row["label"] is not None:  # else a photograph without a face
        card |= {"answer": row["label"], "confidence": row["confidence"]}
        card["probabilities"] = [row["probabilities"].get(label, 0.0) for label in labels]
    return card | ({"reason": row["reason"]} if row["reason"] else {})


def _list_filters(tally: Tally, labels: Sequence[str]) -> list[dict[str, Any]]:
    """List a button for each label, for each reason not to trust an answer, and for failed pictures."""
    order = [label for label in labels if label in tally.labels]
    order += [label for label in tally.labels if label not in labels]
    filters = [
        _make_filter("answer", label, label, tally.labels[label], choose_tone(label, labels)) for label in order
    ]
    for reason, count in sorted(tally.reasons.items()):
        filters.append(_make_filter("reason", reason, f"reason: {reason}", count))
    return filters + ([_make_filter("error", "", "failed", tally.failed)] if tally.failed else [])


def _make_filter(key: str, value: str, text: str, count: int, tone: str = "aside") -> dict[str, Any]:
    """Make a button for the cards whose `key` is `value`, or, where that is empty, which have it at all."""
    return {"key": key, "value": value, "text": text, "count": count, "tone": tone}
