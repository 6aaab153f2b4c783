"""Reads FER+, ten people's votes on each FER2013 picture, in either form in which they are at hand.

Barsoum et al.: "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
2016. `fer2013new.csv` has a row for each row of fer2013.csv, in its order; other files name their pictures in
a column `file`, relative to the data set's folder.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmengine.errors import DataError

from .data import Dataset, Item

# FER+ has eight emotions, and votes for an unknown one, or for no face.
COLUMNS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
# Names of FER2013's classes.
LABELS = {
    "happiness": "happy",
    "sadness": "sad",
    "anger": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "surprise": "surprise",
    "neutral": "neutral",
}


@dataclass(frozen=True)
class Votes:
    """Votes by picture.

    Attributes:
        by_file: for pictures that are named by their file.
        by_row: for the rows of fer2013.csv, in order.
    """

    by_file: dict[str, dict[str, int]]
    by_row: list[dict[str, int]]

    def find(self, item: Item, sources: Sequence[Path]) -> dict[str, int] | None:
        """Find the votes for a picture from one of these sources; None if there are none."""
        if (number := find_row(item)) is not None:
            return self.by_row[number] if number < len(self.by_row) else None
        return self.by_file.get(find_name_below(item, sources) or "")


def read_votes(path: Path) -> Votes:
    """Read a file of votes.

    Raises:
        DataError: for a file that cannot be read as votes.
    """
    try:
        # Names of files are bytes, as the file system has them.
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            names = set(reader.fieldnames or ())
            if not set(COLUMNS) <= names:
                missing = ", ".join(sorted(set(COLUMNS) - names))
                raise DataError(
                    f"{path} has no columns {missing}; expected FER+'s fer2013new.csv, or a file like it"
                )
            rows = [({name: int(row[name]) for name in COLUMNS}, row.get("file")) for row in reader]
    except (OSError, csv.Error, ValueError, TypeError) as error:
        raise DataError(f"cannot read the votes {path}: {error}") from error
    return Votes({name: votes for votes, name in rows if name}, [votes for votes, name in rows if not name])


def write_votes(path: Path, by_file: dict[str, dict[str, int]]) -> None:
    """Write votes by picture, as `read_votes` takes them."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, ["file", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"file": name} | votes for name, votes in by_file.items())


def find_majority(votes: dict[str, int]) -> str | None:
    """Find the label that more people chose than any other, by FER2013's name; None where there is no such one."""
    largest = max(votes.values())
    top = [name for name, count in votes.items() if count == largest]
    return LABELS.get(top[0]) if len(top) == 1 else None


def blend_votes(
    data: Dataset, items: list[Item], votes: Votes, sources: Sequence[Path], label_votes: float
) -> int:
    """Replace the data's answers by shares of the votes, in which the label counts as some more votes.

    Where nobody voted for a trained label, the label stays; where all voted for another, the votes overrule it.

    Args:
        data: from `load`; its answers are changed in place.
        items: that the data were loaded from.
        votes: from `read_votes`; those for labels that are not trained are left aside.
        sources: the folders or files that the items came from.
        label_votes: how many voters the label counts as.

    Returns:
        How many pictures have votes.

    Raises:
        DataError: if none has.
    """
    columns = {label: column for column, label in LABELS.items()}
    voted = 0
    for index, item in enumerate(items):
        ballot = votes.find(item, sources)
        if ballot is None or item.label is None:
            continue
        voted += 1
        counts = np.array([ballot[columns[label]] if label in columns else 0 for label in data.labels])
        if (total := counts.sum() + label_votes) > 0:
            data.answers[index] = (counts + label_votes * data.answers[index]) / total
    if not voted:
        raise DataError(
            f"the votes name no picture of {', '.join(map(str, sources))}; expected names below one of them, "
            "or a row for each row of fer2013.csv"
        )
    return voted


def find_name_below(item: Item, sources: Sequence[Path]) -> str | None:
    """Find a picture's name below its source, as votes name it; None if it is below none of them."""
    path = Path(item.name)
    return next((path.relative_to(source).as_posix() for source in sources if source in path.parents), None)


def find_row(item: Item) -> int | None:
    """Find the picture's row in fer2013.csv, from 0; None if it is from elsewhere."""
    match = re.search(r", line (\d+)$", item.name)
    # The file's first line holds the columns' names.
    return int(match[1]) - 2 if isinstance(item.picture, np.ndarray) and match else None
