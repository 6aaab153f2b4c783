"""From public sources, as they are downloaded, to folders to train on: `fmengine prepare`.

Each picture is kept once, in one split and under one label. What is dropped stands in `dropped.csv` with the
reason, and on `dropped.png` to look at. With votes, `clean/` holds the pictures whose label the voters chose,
and `ferplus_votes.csv` the votes, by the names that the pictures have there.
"""

import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from fmengine.cli.console import inform, print_json, print_path, track, warn
from fmengine.errors import DataError, SourceError
from fmengine.image.decode import try_decode
from fmengine.image.flatness import is_flat
from fmengine.image.source import get_path
from fmengine.jobs.formats import FORMULA
from fmengine.jobs.rows import escape_path
from fmengine.options import Limits
from fmengine.system.files import read_file
from fmengine.types import DecodedImage
from fmengine.wording import pluralise

from .checks import read_names
from .data import Item, find, map_threaded
from .folders import make_folder
from .votes import Votes, find_majority, find_name_below, find_row, read_votes, write_votes

THUMBNAIL, COLUMNS, ROWS = 72, 16, 40  # of the sheet: pixels, pictures


@dataclass(frozen=True)
class Dropped:
    """A picture that is not kept, and why."""

    item: Item
    reason: str


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--votes", type=click.Path(path_type=Path), help="FER+'s fer2013new.csv, or a file like it.")
@click.option("--classes", help="Classes to keep, with commas.  [default: all]")
@click.option(
    "--validation",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share held out where a source has no split.",
)
@click.option("--json", "as_json", is_flag=True, help="The folder and the counts as JSON.")
def prepare(
    sources: tuple[Path, ...],
    output: Path,
    votes: Path | None,
    classes: str | None,
    validation: float,
    as_json: bool,
) -> None:
    """Clean labelled pictures: fer2013.csv, or folders with a folder for each class.

    Example: fmengine prepare fer2013.csv --votes fer2013new.csv --classes happy,sad --output faces/
    """
    chosen = () if classes is None else read_names(classes)
    ballots = None if votes is None else read_votes(votes)
    with make_folder(output) as folder:
        items = find(sources, chosen, validation)
        if ballots is not None:
            _check_votes(ballots, items, sources, chosen)
        kept, dropped = sift(items)
        written, lost = write(kept, folder)
        dropped += lost
        clean = Counter() if ballots is None else write_clean(written, folder, ballots, sources)
        write_dropped(dropped, folder)
    counts = sorted(Counter((item.split, str(item.label)) for item, _ in written).items())
    for (split, label), count in counts:
        agree = f", {clean[split, label]} of them as the voters say" if ballots else ""
        inform(f"{split}/{label}: {pluralise(count, 'picture')}{agree}")
    reasons = Counter(_kind(drop.reason) for drop in dropped).most_common()
    for reason, count in reasons:
        inform(f"dropped {count}: {reason}")
    if as_json:
        pictures = [{"split": split, "label": label, "count": count} for (split, label), count in counts]
        print_json({"folder": str(output), "pictures": pictures, "dropped": dict(reasons)})
    else:
        print_path(output)


def sift(items: list[Item]) -> tuple[list[Item], list[Dropped]]:
    """Separate pictures to keep from flat or unreadable ones and copies; of two splits, `val` keeps a picture."""
    examined = list(zip(items, map_threaded(_examine, items, "reading"), strict=True))
    dropped = [Dropped(item, reason) for item, (digest, reason) in examined if not digest]
    alike: dict[str, list[Item]] = defaultdict(list)
    for item, (digest, _) in examined:
        if digest:
            alike[digest].append(item)
    kept = []
    for copies in alike.values():
        if len(labels := sorted({str(item.label) for item in copies})) > 1:
            dropped += [Dropped(item, f"the same picture is labelled {' and '.join(labels)}") for item in copies]
            continue
        first, *others = sorted(copies, key=lambda item: item.split != "val")  # stable: the first of `val`
        kept.append(first)
        dropped += [Dropped(item, f"a copy: of {escape_path(first.name)}, in {first.split}") for item in others]
    if not kept:
        raise DataError(
            f"{pluralise(len(items), 'picture')}, and none can be kept; the first: {dropped[0].reason}"
        )
    return kept, dropped


def _examine(item: Item) -> tuple[str, str]:
    """Return a digest of the pixels, or nothing and the reason to drop the picture."""
    digest = try_decode(item.picture, "rgb", _digest)
    if isinstance(digest, SourceError):
        return "", f"unreadable: {digest.message}"
    return digest, "" if digest else "flat: one level all over"


def _digest(pixels: DecodedImage) -> str:
    """Return a digest of the pixels; none of a flat picture."""
    if is_flat(np.moveaxis(np.atleast_3d(pixels), 2, 0)[np.newaxis])[0]:
        return ""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def write(kept: list[Item], folder: Path) -> tuple[list[tuple[Item, Path]], list[Dropped]]:
    """Write `SPLIT/LABEL/…`; gives the pictures with their new files, and those that can no longer be read."""
    written, lost = [], []
    for item in track(kept, len(kept), "pictures", caption="writing"):
        try:
            data = (
                item.picture
                if isinstance(item.picture, np.ndarray)
                else read_file(get_path(item.picture), Limits().max_bytes)
            )
        except SourceError as error:
            lost.append(Dropped(item, f"unreadable: {error.message}"))
            continue
        target = _find_free(folder / item.split / str(item.label) / _file_name(item))
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            target.write_bytes(data)
        else:
            Image.fromarray(data).save(target)
        written.append((item, target))
    return written, lost


def write_clean(
    written: list[tuple[Item, Path]], folder: Path, votes: Votes, sources: tuple[Path, ...]
) -> Counter[tuple[str, str]]:
    """Write the votes, and the pictures again under `clean` where the voters agree; counts those."""
    clean: Counter[tuple[str, str]] = Counter()
    by_file = {}
    for item, target in written:
        ballot = votes.find(item, sources)
        if ballot is None:
            continue
        by_file[target.relative_to(folder).as_posix()] = ballot
        if find_majority(ballot) == item.label:
            twin = folder / "clean" / target.relative_to(folder)
            twin.parent.mkdir(parents=True, exist_ok=True)
            os.link(target, twin)
            clean[item.split, str(item.label)] += 1
    if by_file:
        write_votes(folder / "ferplus_votes.csv", by_file)
    return clean


def _check_votes(votes: Votes, items: list[Item], sources: tuple[Path, ...], classes: tuple[str, ...]) -> None:
    """Warn of votes for pictures that are not there, before any picture is read."""
    found = {find_name_below(item, sources) for item in items}
    # Of the classes that are kept: the others' pictures were not looked for.
    wanted = [name for name in votes.by_file if not classes or set(classes) & set(Path(name).parts)]
    if missing := [name for name in wanted if name not in found]:
        what = "a picture that is" if len(missing) == 1 else f"{len(missing)} pictures that are"
        text = f"the votes name {what} not in {', '.join(map(str, sources))}"
        first = f"the first: {escape_path(missing[0])}"
        if len(missing) == len(wanted):
            raise DataError(f"{text}, and none that is; {first}; expected names below a source")
        warn(f"note: {text}; {first}")


def _file_name(item: Item) -> str:
    number = find_row(item)
    return Path(item.name).name if number is None else f"fer{number:07d}.png"  # as FER+ names it


def _find_free(path: Path) -> Path:
    """Return the path, or one beside it where two sources use one name."""
    free, number = path, 1
    while free.exists():
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


def write_dropped(dropped: list[Dropped], folder: Path) -> None:
    """Write `dropped.csv`, and `dropped.png` with the first pictures of each reason."""
    with (folder / "dropped.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "split", "label", "reason"])
        writer.writerows(
            map(_cell, [escape_path(drop.item.name), drop.item.split, str(drop.item.label), drop.reason])
            for drop in dropped
        )
    lines = list(_lines(dropped))[:ROWS]
    sheet = Image.new("L", (COLUMNS * THUMBNAIL, max(1, len(lines)) * THUMBNAIL), 255)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        if isinstance(line, str):
            draw.text((4, (row + 0.7) * THUMBNAIL), line, 0)
            continue
        for column, thumbnail in enumerate(line):
            sheet.paste(thumbnail, (column * THUMBNAIL, row * THUMBNAIL))
    sheet.save(folder / "dropped.png")


def _cell(text: str) -> str:
    """Return a cell that is no formula to a spreadsheet."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _lines(dropped: list[Dropped]) -> Iterator[str | list[Image.Image]]:
    """Yield lines of the sheet: a reason, and then up to three of pictures, of those that can be read."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for drop in dropped:
        groups[_kind(drop.reason)].append(drop.item)
    for reason, items in groups.items():
        yield f"{reason}: {len(items)}"
        if reason != "unreadable":
            made = [try_decode(item.picture, "rgb", _thumbnail) for item in items[: 3 * COLUMNS]]
            shown = [thumbnail for thumbnail in made if not isinstance(thumbnail, SourceError)]
            yield from (shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS))


def _kind(reason: str) -> str:
    """Return a reason without what is special to one picture."""
    return re.sub(r": .*", "", reason)


def _thumbnail(pixels: DecodedImage) -> Image.Image:
    return Image.fromarray(pixels).convert("L").resize((THUMBNAIL,) * 2)
