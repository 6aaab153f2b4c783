"""From public sources, as they are downloaded, to folders to train on: `fmengine prepare`.

Each picture is kept once, in one split and under one label. What is dropped stands in `dropped.csv` with the
reason, and on `dropped.png` to look at. With votes, `clean/` holds the pictures whose label the voters chose,
and `ferplus_votes.csv` the votes, by the names that the pictures have there.
"""

import csv
import hashlib
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from fmengine.decode import decode
from fmengine.errors import DataError, OutputError, SourceError
from fmengine.flatness import is_flat
from fmengine.limits import Limits
from fmengine.preprocess import Pixels

from .data import Item, find
from .votes import Votes, agreed, name_below, read_votes, row_of, write_votes

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
@click.option("--classes", default="", help="Classes to keep, with commas.  [default: all]")
@click.option("--validation", default=0.1, show_default=True, help="Share held out where a source has no split.")
def prepare(sources: tuple[Path, ...], output: Path, votes: Path | None, classes: str, validation: float) -> None:
    """Clean labelled pictures: fer2013.csv, or folders with a folder for each class.

    Example: fmengine prepare fer2013.csv --votes fer2013new.csv --classes happy,sad --output faces/
    """
    if output.exists():
        raise OutputError(f"{output} exists; choose another --output")
    chosen = tuple(name.strip() for name in classes.split(",") if name.strip())
    ballots = None if votes is None else read_votes(votes)
    items = find(sources, chosen, validation)
    if ballots is not None:
        _check_votes(ballots, items, sources, chosen)
    kept, dropped = sift(items)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        clean = write(kept, partial, ballots, sources)
        write_dropped(dropped, partial)
        partial.rename(output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    for (split, label), count in sorted(Counter((item.split, str(item.label)) for item in kept).items()):
        agree = f", {clean[split, label]} of them as the voters say" if ballots else ""
        click.echo(f"{split}/{label}: {count} pictures{agree}", err=True)
    for reason, count in Counter(re.sub(r": .*", "", drop.reason) for drop in dropped).most_common():
        click.echo(f"dropped {count}: {reason}", err=True)
    click.echo(output)


def sift(items: list[Item]) -> tuple[list[Item], list[Dropped]]:
    """Tell pictures to keep from flat or unreadable ones and copies; of two splits, `val` keeps a picture."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(_examine, items), "reading", len(items), unit=" pictures", disable=None)
        examined = list(zip(items, bar, strict=True))
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
        dropped += [Dropped(item, f"a copy: of {first.name}, in {first.split}") for item in others]
    if not kept:
        raise DataError(f"none of {len(items)} pictures can be kept; the first: {dropped[0].reason}")
    return kept, dropped


def _examine(item: Item) -> tuple[str, str]:
    """A digest of the pixels, or nothing and the reason to drop the picture."""
    try:
        pixels = _pixels(item)
    except SourceError as error:
        return "", f"unreadable: {error.message}"
    if is_flat(np.moveaxis(np.atleast_3d(pixels), 2, 0)[np.newaxis])[0]:
        return "", "flat: one level all over"
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest(), ""


def _pixels(item: Item) -> Pixels:
    picture = item.picture
    return picture if isinstance(picture, np.ndarray) else decode(picture, "rgb", Limits())


def write(
    kept: list[Item], folder: Path, votes: Votes | None, sources: tuple[Path, ...]
) -> Counter[tuple[str, str]]:
    """Write `SPLIT/LABEL/…`, and again under `clean` where the voters agree; counts those."""
    clean: Counter[tuple[str, str]] = Counter()
    by_file = {}
    for item in tqdm(kept, "writing", unit=" pictures", disable=None):
        target = _free(folder / item.split / str(item.label) / _file_name(item))
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item.picture, np.ndarray):
            Image.fromarray(item.picture).save(target)
        else:
            shutil.copyfile(item.picture, target)
        ballot = None if votes is None else votes.of(item, sources)
        if ballot is None:
            continue
        by_file[target.relative_to(folder).as_posix()] = ballot
        if agreed(ballot) == item.label:
            twin = folder / "clean" / target.relative_to(folder)
            twin.parent.mkdir(parents=True, exist_ok=True)
            os.link(target, twin)
            clean[item.split, str(item.label)] += 1
    if by_file:
        write_votes(folder / "ferplus_votes.csv", by_file)
    return clean


def _check_votes(votes: Votes, items: list[Item], sources: tuple[Path, ...], classes: tuple[str, ...]) -> None:
    """Tell of votes for pictures that are not there, before any picture is read."""
    found = {name_below(item, sources) for item in items}
    # Of the classes that are kept: the others' pictures were not looked for.
    wanted = [name for name in votes.by_file if not classes or set(classes) & set(Path(name).parts)]
    if missing := [name for name in wanted if name not in found]:
        text = f"the votes name {len(missing)} pictures that are not in {', '.join(map(str, sources))}"
        if len(missing) == len(wanted):
            raise DataError(f"{text}, and none that is; the first: {missing[0]}; expected names below a source")
        click.echo(f"note: {text}; the first: {missing[0]}", err=True)


def _file_name(item: Item) -> str:
    number = row_of(item)
    return Path(item.name).name if number is None else f"fer{number:07d}.png"  # as FER+ names it


def _free(path: Path) -> Path:
    """The path, or one beside it where two sources use one name."""
    free, number = path, 1
    while free.exists():
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


def write_dropped(dropped: list[Dropped], folder: Path) -> None:
    """Write `dropped.csv`, and `dropped.png` with the first pictures of each reason."""
    with (folder / "dropped.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "split", "label", "reason"])
        writer.writerows([drop.item.name, drop.item.split, drop.item.label, drop.reason] for drop in dropped)
    lines = list(_lines(dropped))[:ROWS]
    sheet = Image.new("L", (COLUMNS * THUMBNAIL, max(1, len(lines)) * THUMBNAIL), 255)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        if isinstance(line, str):
            draw.text((4, (row + 0.7) * THUMBNAIL), line, 0)
            continue
        for column, pixels in enumerate(line):
            sheet.paste(
                Image.fromarray(pixels).convert("L").resize((THUMBNAIL,) * 2),
                (column * THUMBNAIL, row * THUMBNAIL),
            )
    sheet.save(folder / "dropped.png")


def _lines(dropped: list[Dropped]) -> Iterator[str | list[Pixels]]:
    """Lines of the sheet: a reason, and then up to three of pictures."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for drop in dropped:
        groups[re.sub(r": .*", "", drop.reason)].append(drop.item)
    for reason, items in groups.items():
        yield f"{reason}: {len(items)}"
        if reason != "unreadable":
            shown = [_pixels(item) for item in items[: 3 * COLUMNS]]
            yield from (shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS))
