"""What is wrong with labelled pictures, told before hours are spent on them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmengine.errors import DataError

if TYPE_CHECKING:
    from .data import Item

FEW = 50  # training pictures of a class, under which little can be expected


def check_path(path: Path, classes: Sequence[str]) -> None:
    """Refuse a picture below the folders of two classes: either could be meant.

    Args:
        path: relative to the folder that holds the classes.
        classes: names of those folders.
    """
    if len(named := dict.fromkeys(part for part in path.parts[:-1] if part in classes)) > 1:
        raise DataError(
            f"{path} lies below the folders of {' and '.join(named)}: either could be meant; expected a folder "
            "for each class, beside one another"
        )


def leave_out(items: "list[Item]", digests: dict[int, str]) -> list[str]:
    """Take out of `digests` the training pictures that would spoil a run; says which and why.

    Args:
        items: all pictures.
        digests: of the pixels of those that could be read, by index.
    """
    notes = []
    held_out = {digest for index, digest in digests.items() if items[index].split == "val"}
    labels: dict[str, set[str]] = defaultdict(set)
    for index, digest in digests.items():
        if (label := items[index].label) is not None:
            labels[digest].add(label)
    for index, digest in list(digests.items()):
        if items[index].split != "train":
            continue
        if digest in held_out:
            why = "the same picture is in the validation split"
        elif len(labels[digest]) > 1:
            why = f"the same picture is labelled {' and '.join(sorted(labels[digest]))}"
        else:
            continue
        notes.append(f"left out of training {items[index].name}: {why}")
        del digests[index]
    return notes


def check_classes(items: "list[Item]", digests: dict[int, str]) -> list[str]:
    """Notes on classes of few training pictures.

    Raises:
        DataError: where all training pictures of a class are alike.
    """
    notes = []
    trained = [index for index in digests if items[index].split == "train" and items[index].label is not None]
    counts = Counter(str(items[index].label) for index in trained)
    distinct = Counter(label for label, _ in {(str(items[index].label), digests[index]) for index in trained})
    for label, count in sorted(counts.items()):
        if count > 1 and distinct[label] == 1:
            raise DataError(f"all {count} training pictures of class {label} are alike; expected different faces")
        if count < FEW:
            notes.append(
                f"class {label} has only {count} training pictures; expect little of it under some hundred"
            )
    return notes
