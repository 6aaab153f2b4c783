"""What the training tests share."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmengine_train.data import Dataset, Item, find, load
from fmengine_train.votes import COLUMNS

HEADER = "emotion,pixels,Usage"


@pytest.fixture(scope="module")
def faces(drawn_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """All the drawn faces, preprocessed."""
    items = find([drawn_faces], (), 0.1)
    return load(items, ("happy", "sad"), (1, 32, 32), "crop", tmp_path_factory.mktemp("pixels"))


@pytest.fixture
def items(drawn_faces: Path) -> list[Item]:
    """Of all the drawn faces."""
    return find([drawn_faces], (), 0.1)


@pytest.fixture
def picture() -> Callable[[Path, int], None]:
    """Writes a picture of 8×8 noise, another one for each seed."""

    def write(path: Path, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(levels).save(path)

    return write


def write_strip(path: Path) -> Path:
    """A small file with a picture that is as long as no other: padded to a square, it has 3.6 billion pixels."""
    Image.linear_gradient("L").resize((1, 60_000)).save(path)
    return path


def ballot(**counts: int) -> dict[str, int]:
    """One picture's votes; none for what is not named."""
    return dict.fromkeys(COLUMNS, 0) | counts


def votes_file(path: Path, rows: list[dict[str, object]]) -> Path:
    """A file as FER+ publishes it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def fer_csv(folder: Path, *rows: str, header: str = HEADER) -> Path:
    """A fer2013.csv of these lines, as it is published."""
    path = folder / "fer2013.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path
