"""FER+: what ten people said of each FER2013 picture, in either form in which it is at hand.

Barsoum et al.: "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
2016. `fer2013new.csv` has a row for each row of fer2013.csv, in its order; other files name their pictures in
a column `file`, relative to the data set's folder.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from fmengine.errors import DataError

# FER+ asks for eight emotions, and lets people say that they cannot tell, or that it is no face.
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


def read_votes(path: Path) -> Votes:
    """Read a file of votes.

    Raises:
        DataError: for a file that is none, with the line where it ends to be one.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = set(reader.fieldnames or ())
            if not set(COLUMNS) <= names:
                missing = ", ".join(sorted(set(COLUMNS) - names))
                raise DataError(
                    f"{path} has no columns {missing}; expected FER+'s fer2013new.csv, or a file like it"
                )
            rows = [({name: int(row[name]) for name in COLUMNS}, row.get("file")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise DataError(f"cannot read the votes {path}: {error}") from error
    return Votes({name: votes for votes, name in rows if name}, [votes for votes, name in rows if not name])


def agreed(votes: dict[str, int]) -> str | None:
    """The label that more people chose than any other, by FER2013's name; None where there is no such one."""
    most = max(votes.values())
    top = [name for name, count in votes.items() if count == most]
    return LABELS.get(top[0]) if len(top) == 1 else None
