"""What is wrong with labelled pictures is told in words, before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmengine.errors import DataError
from fmengine_train.data import Dataset, find, load

Draw = Callable[[Path, int], None]


@pytest.fixture
def faces(tmp_path: Path, picture: Draw) -> Path:
    """Three different pictures of each class to train on, one to validate."""
    for number in range(8):
        label, split = ("happy", "sad")[number % 2], "val" if number < 2 else "train"
        picture(tmp_path / "faces" / split / label / f"{number}.png", number)
    return tmp_path / "faces"


def read(folder: Path) -> Dataset:
    return load(find([folder], (), 0.1), ("happy", "sad"), (1, 8, 8), "crop", folder)


def test_a_picture_below_two_classes_is_refused(faces: Path, picture: Draw) -> None:
    picture(faces / "train" / "happy" / "sad" / "1.png", 9)
    with pytest.raises(DataError, match=r"happy/sad/1\.png lies below the folders of happy and sad: either"):
        read(faces)


def test_other_folders_within_a_class_are_fine(faces: Path, picture: Draw) -> None:
    picture(faces / "train" / "happy" / "monday" / "sad.png", 9)
    assert len(read(faces).train) == 7


def test_a_picture_under_two_labels_is_left_out_under_both(faces: Path, picture: Draw) -> None:
    for label in ("happy", "sad"):
        picture(faces / "train" / label / "twin.png", 9)
    dataset = read(faces)
    assert len(dataset.train) == 6
    assert dataset.notes[:2] == [
        f"left out of training {faces}/train/{label}/twin.png: the same picture is labelled happy and sad"
        for label in ("happy", "sad")
    ]


def test_copies_under_one_label_stay(faces: Path, picture: Draw) -> None:
    picture(faces / "train" / "happy" / "copy.png", 2)
    assert len(read(faces).train) == 7


def test_a_class_whose_pictures_are_all_alike_is_refused(faces: Path, picture: Draw) -> None:
    for path in (faces / "train" / "sad").iterdir():
        picture(path, 9)
    with pytest.raises(DataError, match="all 3 training pictures of class sad are alike; expected different"):
        read(faces)


def test_a_class_of_few_pictures_is_noted(faces: Path) -> None:
    assert read(faces).notes == [
        f"class {label} has only 3 training pictures; expect little of it under some hundred"
        for label in ("happy", "sad")
    ]
