"""Labelled pictures: found, checked and preprocessed once, before the first epoch.

Two forms are read: a folder per class, with or without `train` and `val` above the classes, and the csv
file of FER2013. Every picture is decoded and preprocessed exactly as the runtime does it, and the result
(one byte a pixel and channel) lies in a memory-mapped file, so that data larger than memory train too.
"""

import csv
import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TextIO, TypeVar

import numpy as np
import numpy.typing as npt

from fmengine.cli.console import track
from fmengine.errors import DataError, OutputError, SourceError
from fmengine.image.decode import try_decode
from fmengine.image.preprocess import preprocess
from fmengine.jobs.rows import escape_path
from fmengine.model.spec import InputSpec
from fmengine.system.cores import usable_cores
from fmengine.types import DecodedImage, Fit, InputBatch

from .checks import check_class_names, check_classes, check_path, leave_out, suggest_name

T = TypeVar("T")
R = TypeVar("R")

Split = Literal["train", "val"]
PARTS = ("select", "report")  # halves of the held-out pictures: to choose a model on, and to state its figures on

# FER2013 (Goodfellow et al. 2013), icml_face_data.csv / fer2013.csv: `emotion` is an index into these.
FER2013_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
# PrivateTest is left alone: it is the test split.
FER2013_SPLITS: dict[str, Split] = {"Training": "train", "PublicTest": "val"}


@dataclass(frozen=True, slots=True)
class Item:
    """One picture before it is decoded.

    Attributes:
        picture: a file, or decoded pixels.
        label: the class's name; None where a teacher alone knows.
        split: `train` or `val`.
        source: the data set it came from, by the name of its folder or file, as `escape_path` gives it.
        name: the file's, as the system knows it; messages show what `escape_path` makes of it.
    """

    picture: Path | DecodedImage
    label: str | None
    split: Split
    source: str
    name: str


@dataclass
class Dataset:
    """Preprocessed pictures.

    Attributes:
        labels: the classes' names, in the order of the outputs.
        pixels: uint8 `[N, C, H, W]`, memory-mapped.
        targets: int64 `[N]`, indices into `labels`; -1 for a picture without a label.
        answers: float32 `[N, K]`, the probabilities to learn; 1 for the label, without teachers and votes.
        hints: float16 `[N, D]`, the teachers' embeddings of each picture; D is 0 without teachers.
        train: indices of the pictures to train on.
        val: indices of the pictures to validate on.
        sources: `[N]`, where each picture came from.
        parts: `[N]`, `select` or `report`; see `part_of`.
        notes: what was dropped and why, for a person.
        digest: sha256 over pixels, labels and splits.
    """

    labels: tuple[str, ...]
    pixels: InputBatch
    targets: npt.NDArray[np.int64]
    answers: npt.NDArray[np.float32]
    hints: npt.NDArray[np.float16]
    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    sources: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]
    notes: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def fingerprint(self) -> str:
        """sha256 over all that a run learns from: `--resume` refuses other data, or other teachers."""
        return hashlib.sha256(self.digest.encode() + self.answers.tobytes() + self.hints.tobytes()).hexdigest()

    def describe(self) -> str:
        """Describe in one line for the model file how many pictures of which class come from which source."""
        parts = []
        for source in sorted(set(self.sources[self.train])):
            of_source = self.train[self.sources[self.train] == source]
            counts = Counter(self.targets[of_source].tolist())
            named = [(label, counts[index]) for index, label in enumerate(self.labels)] + [
                ("unlabelled", counts[-1])
            ]
            parts.append(f"{source}: " + ", ".join(f"{count} {name}" for name, count in named if count))
        return "; ".join(parts)


def find(paths: Sequence[Path], classes: tuple[str, ...], validation: float) -> list[Item]:
    """List every labelled picture of all data sets.

    Args:
        paths: folders of classes, folders of `train` and `val`, or FER2013 csv files.
        classes: those to use; all that are found if empty.
        validation: share held out by a hash of the file name, where a data set has no `val`.

    Raises:
        DataError: for a path that holds neither form, or a class without pictures.
    """
    check_class_names(classes)
    items: list[Item] = []
    for path in paths:
        try:
            items += _list(path, classes, validation)
        except OSError as error:
            raise DataError(f"cannot list {path}: {error.strerror}") from error
    labels = classes or list_labels(items)
    check_class_names(labels)
    if len(labels) < 2:
        found = f"only the class {labels[0]}" if labels else "no class"
        raise DataError(f"found {found}; expected two or more, a folder for each")
    counts = Counter((item.label, item.split) for item in items)
    for split in ("train", "val"):
        if empty := [label for label in labels if not counts[label, split]]:
            listed = (item for path in paths for item in _list(path, (), validation))
            there = sorted({item.label for item in listed if item.split == split and item.label})
            raise DataError(
                f"no {split} pictures of class {', '.join(empty)}{suggest_name(empty[0], there)}; give each class "
                "pictures, leave it out with --classes, or raise --validation"
            )
    return items


def _list(path: Path, classes: tuple[str, ...], validation: float) -> Iterable[Item]:
    if os.path.isdir(path):
        return list(_from_folder(path, classes, validation))
    if os.path.isfile(path) and path.suffix == ".csv":
        return list(_from_fer2013(path, classes))
    raise DataError(f"{path} is neither a folder nor a csv file; expected a folder per class, or fer2013.csv")


def list_labels(items: list[Item]) -> tuple[str, ...]:
    """List the labels that occur, by name."""
    return tuple(sorted({item.label for item in items if item.label is not None}))


def list_unlabelled(folders: Iterable[Path]) -> list[Item]:
    """List every file below some folders, of which teachers' answers are learned.

    Raises:
        DataError: for a path that is no folder, or holds no file.
    """
    items: list[Item] = []
    for root in folders:
        try:
            paths = sorted(root.rglob("*"))
        except OSError as error:
            raise DataError(f"cannot list {root}: {error.strerror}") from error
        found = [path for path in paths if os.path.isfile(path) and not _hidden(path.relative_to(root))]
        if not found:
            raise DataError(f"{root} is no folder with pictures in it; expected one, of any depth")
        source = escape_path("/".join(root.absolute().parts[-2:]))  # "train" alone would name no data set
        items += [Item(path, None, "train", source, str(path)) for path in found]
    return items


def load(
    items: list[Item],
    labels: tuple[str, ...],
    shape: tuple[int, int, int],
    fit: Fit,
    folder: Path,
    caption: str = "reading",
) -> Dataset:
    """Decode and preprocess every picture; drop, with a note, those that cannot be used.

    Args:
        items: from `find`.
        labels: the classes' names, in the order of the outputs.
        shape: channels, rows and columns of the network's input.
        fit: how other aspect ratios are brought to the input's.
        folder: where the memory-mapped file lies; it vanishes with the process.
        caption: of the progress bar.

    Raises:
        DataError: if a class has no usable picture left.
        OutputError: if the folder has no room for the pixels.
    """
    channels, height, width = shape
    spec = InputSpec(height, width, "gray" if channels == 1 else "rgb", fit)
    make = partial(preprocess, spec=spec)
    pixels = _map_file((len(items), *shape), folder)

    def prepare(index: int) -> str | SourceError:
        made = try_decode(items[index].picture, spec.color, make)
        if isinstance(made, SourceError):
            return made
        pixels[index] = made
        return hashlib.sha256(pixels[index]).hexdigest()

    notes = []
    digests: dict[int, str] = {}
    for index, outcome in enumerate(map_threaded(prepare, range(len(items)), caption)):
        if isinstance(outcome, SourceError):
            notes.append(f"left out {escape_path(items[index].name)}: {outcome.message}")
        else:
            digests[index] = outcome
    notes += leave_out(items, digests)

    targets = np.array([-1 if item.label is None else labels.index(item.label) for item in items], dtype=np.int64)
    by_split = {
        split: np.array([index for index in digests if items[index].split == split], dtype=np.int64)
        for split in ("train", "val")
    }
    for split, indices in by_split.items():
        if missing := [label for k, label in enumerate(labels) if k not in targets[indices]]:
            raise DataError(
                f"no usable {split} picture of class {', '.join(missing)} is left"
                f"{''.join(f'; {note}' for note in notes[:3])}: add pictures, or leave the class out with "
                "--classes"
            )
    notes += check_classes(items, digests)
    described = "\n".join(f"{d} {targets[i]} {items[i].split}" for i, d in sorted(digests.items()))
    return Dataset(
        labels=labels,
        pixels=pixels,
        targets=targets,
        answers=(targets[:, np.newaxis] == np.arange(len(labels))).astype(np.float32),
        hints=np.empty((len(items), 0), np.float16),
        train=by_split["train"],
        val=by_split["val"],
        sources=np.array([item.source for item in items]),
        parts=np.array([part_of(item.name) for item in items]),
        notes=notes,
        digest=hashlib.sha256(described.encode()).hexdigest(),
    )


def _map_file(shape: tuple[int, int, int, int], folder: Path) -> InputBatch:
    """Map an array into an unnamed file, which is allocated whole: a write without room would kill the process."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            file.truncate(math.prod(shape))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise OutputError(
                f"no room in {folder} for the preprocessed pictures, {math.prod(shape):,} bytes: "
                f"{error.strerror}; choose another --run folder"
            ) from error
        return InputBatch(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))


def map_threaded(function: Callable[[T], R], items: Sequence[T], caption: str) -> list[R]:
    """Map a function over pictures in order, on all cores, under a progress bar. An interruption stops it."""
    pool = ThreadPoolExecutor(usable_cores())
    try:
        return list(track(pool.map(function, items), len(items), "pictures", caption=caption))
    finally:
        pool.shutdown(cancel_futures=True)


def is_held_out(name: str, share: float) -> bool:
    """Return whether a picture of this name belongs to the held-out share, whichever other files there are."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") < share * 2**64


def part_of(name: str) -> str:
    """Return `select` or `report`, by the last part of a name alone: another hash than `is_held_out`'s."""
    return PARTS[hashlib.sha256(b"part " + os.fsencode(os.path.basename(name))).digest()[0] & 1]


def _from_folder(root: Path, classes: tuple[str, ...], validation: float) -> Iterator[Item]:
    source = escape_path(root.name)
    if (root / "train").is_dir():
        has_val = (root / "val").is_dir()
        yield from _from_classes(root / "train", classes, source, None if has_val else validation)
        if has_val:
            for item in _from_classes(root / "val", classes, source, None):
                yield Item(item.picture, item.label, "val", item.source, item.name)
    else:
        yield from _from_classes(root, classes, source, validation)


def _from_classes(root: Path, classes: tuple[str, ...], source: str, validation: float | None) -> Iterator[Item]:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not folders:
        raise DataError(f"{root} has no folders; expected one for each class, with pictures in it")
    names = [folder.name for folder in folders]
    for folder in folders:
        if classes and folder.name not in classes:
            continue
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(root)
            if _hidden(relative) or not os.path.isfile(path):
                continue
            check_path(relative, names)
            name = relative.as_posix()
            split: Split = "val" if validation is not None and is_held_out(name, validation) else "train"
            yield Item(path, folder.name, split, source, str(path))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _from_fer2013(path: Path, classes: tuple[str, ...]) -> Iterator[Item]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from _fer2013_rows(path, file, classes)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; expected the csv file of FER2013") from error


def _fer2013_rows(path: Path, file: TextIO, classes: tuple[str, ...]) -> Iterator[Item]:
    reader = csv.DictReader(file, skipinitialspace=True)  # one published copy has spaces after commas
    wanted = {"emotion", "pixels", "Usage"}
    if not wanted <= {name.strip() for name in reader.fieldnames or ()}:
        raise DataError(f"{path} has columns {reader.fieldnames}; expected {', '.join(sorted(wanted))}")
    for raw in reader:
        row = {key.strip(): value for key, value in raw.items() if key and value is not None}
        name = f"{path}, line {reader.line_num}"
        try:
            label = dict(enumerate(FER2013_CLASSES))[int(row["emotion"])]
            split = FER2013_SPLITS.get(row["Usage"].strip())
            levels = np.array(row["pixels"].split(), dtype=np.uint8).reshape(48, 48)
        except (KeyError, ValueError, OverflowError) as error:
            raise DataError(f"{name}: not a row of FER2013 ({error})") from error
        if split is not None and (not classes or label in classes):
            yield Item(DecodedImage(levels), label, split, escape_path(path.stem), name)
