"""Checks labels and labelled pictures before hours are spent on training."""

import difflib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmengine.errors import DataError
from fmengine.jobs.formats import COLUMNS
from fmengine.jobs.rows import escape_path
from fmengine.types import UNSURE
from fmengine.wording import pluralise

if TYPE_CHECKING:
    from .data import Item

MIN_PICTURES = 50  # of a class in training, under which little can be expected
SPLITS = ("train", "val")


def read_names(text: str) -> tuple[str, ...]:
    """Split the text of `--classes` into the names between commas.

    Raises:
        DataError: if it names none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise DataError(f"--classes {text!r} names no class; expected names with commas, such as happy,sad")
    return names


def check_labels(labels: Sequence[str]) -> None:
    """Refuse names that rows and tables could not show, or could not show as different.

    Raises:
        DataError: for such a name.
    """
    for label in labels:
        if escape_path(label) != label:
            raise DataError(
                f"{escape_path(label)} cannot be a label: it is not UTF-8, or holds control characters (shown "
                "here percent-encoded); give it another name"
            )
        if label != label.strip() or not label:
            raise DataError(f"{label!r} cannot be a label: it is empty, or has spaces around it; rename it")
        if labels.count(label) > 1:
            raise DataError(f"the label {label} is given {labels.count(label)} times; expected different names")


def check_class_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be a label, or no class's folder.

    Raises:
        DataError: for such a name.
    """
    check_labels(names)
    for name in names:
        if name in SPLITS:
            raise DataError(
                f"a class cannot be called {name}: {' and '.join(SPLITS)} are the folders of the splits; give the "
                "folder above them, or rename the class"
            )
        if name.startswith(".") or "/" in name:
            raise DataError(
                f"{name} cannot be a class: expected the name of a folder, without a dot at its beginning (those "
                "are passed over) and without a slash"
            )


def suggest_name(name: str, known: Sequence[str]) -> str:
    """Return a question after the name that was perhaps meant; empty where none is close."""
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def list_label_notes(labels: Sequence[str]) -> list[str]:
    """List notes on labels that mean something else in results."""
    notes = [
        f"class {label} has the name of a column of CSV results: write jsonl or parquet"
        for label in labels
        if label in COLUMNS
    ]
    if UNSURE in labels:
        notes.append(
            f"class {UNSURE} has the name of what `--unsure-below` answers where the confidence is low: `reason` "
            "alone shows which it is"
        )
    return notes


def check_path(path: Path, classes: Sequence[str]) -> None:
    """Refuse a picture below the folders of two classes: either could be meant.

    Args:
        path: relative to the folder that holds the classes.
        classes: names of those folders.
    """
    if len(named := dict.fromkeys(part for part in path.parts[:-1] if part in classes)) > 1:
        raise DataError(
            f"{escape_path(str(path))} lies below the folders of {' and '.join(map(escape_path, named))}: either "
            "could be meant; expected a folder for each class, beside one another"
        )


def leave_out(items: "list[Item]", digests: dict[int, str]) -> list[str]:
    """Remove from `digests` the training pictures that would spoil a run; return which and why.

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
        notes.append(f"left out of training {escape_path(items[index].name)}: {why}")
        del digests[index]
    return notes


def check_classes(items: "list[Item]", digests: dict[int, str]) -> list[str]:
    """List notes on classes with few training pictures.

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
        if count < MIN_PICTURES:
            notes.append(
                f"class {label} has only {pluralise(count, 'training picture')}; expect little of it under some "
                "hundred"
            )
    return notes
