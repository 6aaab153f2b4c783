"""Lists pictures in a folder per label, to score a model on."""

import os
from pathlib import Path

from fmengine.errors import DataError
from fmengine.jobs.rows import escape_path
from fmengine.jobs.sources import walk
from fmengine_train.data import is_held_out, part_of


def list_labelled_files(
    root: Path, labels: tuple[str, ...], held_out_share: float = 1.0, part: str = "all"
) -> list[tuple[str, int]]:
    """List `root/<label>/…` as paths and indices of their labels.

    Args:
        root: the folder of labels.
        labels: the model's.
        held_out_share: only the pictures that `fmengine train --validation SHARE` holds out; 1.0 for all.
        part: `select` or `report`, half of the pictures each, by a hash of the file's name alone.

    Raises:
        DataError: if no folder bears a label's name, or no picture is left.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; expected one with a folder for each of {', '.join(labels)}")
    found = [label for label in labels if (root / label).is_dir()]
    if not found:
        folders = sorted(escape_path(entry.name) for entry in os.scandir(root) if entry.is_dir())
        inside = ", ".join(folders) or "no folders"
        raise DataError(f"{root} has no folder named {' or '.join(labels)}; it has {inside}")
    files = [
        (path, labels.index(label))
        for label in found
        for path in walk(str(root / label))
        if is_held_out(Path(path).relative_to(root).as_posix(), held_out_share) and part in ("all", part_of(path))
    ]
    if not files:
        raise DataError(f"no pictures in {root}")
    return files
