"""Labelled pictures: both forms of data sets, splits, and what is left out and why."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmengine.errors import DataError, OutputError
from fmengine.image.decode import decode
from fmengine.image.preprocess import preprocess
from fmengine.model.spec import InputSpec
from fmengine.options import Limits
from fmengine_train.data import Dataset, Item, find, is_held_out, list_unlabelled, load, part_of

from .conftest import HEADER, fer_csv, write_strip

Write = Callable[[Path, int], None]
HAPPY, SAD = 3, 4  # indices into FER2013's classes


@pytest.fixture
def faces(tmp_path: Path, picture: Write) -> Path:
    """`faces/{train,val}/{happy,sad}`, with three and two pictures of each."""
    root = tmp_path / "faces"
    seed = 0
    for split, count in (("train", 3), ("val", 2)):
        for label in ("happy", "sad"):
            for number in range(count):
                seed += 1
                picture(root / split / label / f"{number}.png", seed)
    return root


def read(root: Path, labels: tuple[str, ...] = ("happy", "sad"), size: int = 8) -> Dataset:
    return load(find([root], labels, 0.3), labels, (1, size, size), "crop", root.parent)


def fer_row(emotion: int | str, usage: str, level: int = 0, count: int = 48 * 48) -> str:
    return f"{emotion},{' '.join([str(level)] * count)},{usage}"


def good_rows() -> list[str]:
    return [fer_row(e, usage, 10 * e + n) for n, usage in enumerate(("Training", "PublicTest")) for e in (3, 4)]


# Folders


def test_train_and_val_folders_are_the_splits(faces: Path) -> None:
    items = find([faces], (), 0.1)
    assert {(i.label, i.split, Path(i.name).parent.parent.name) for i in items} == {
        (label, split, split) for label in ("happy", "sad") for split in ("train", "val")
    }
    assert len(items) == 10
    assert {i.source for i in items} == {"faces"}


def test_without_val_a_hash_of_the_name_holds_pictures_out(tmp_path: Path, picture: Write) -> None:
    for number in range(20):
        for label in ("happy", "sad"):
            picture(tmp_path / label / f"{number}.png", number)
    items = find([tmp_path], (), 0.3)
    assert {i.split for i in items} == {"train", "val"}
    for item in items:
        name = Path(item.name).relative_to(tmp_path).as_posix()
        assert (item.split == "val") == is_held_out(name, 0.3)


def test_train_without_val_is_split_by_the_same_names(tmp_path: Path, picture: Write) -> None:
    for number in range(20):
        for label in ("happy", "sad"):
            picture(tmp_path / "plain" / label / f"{number}.png", number)
            picture(tmp_path / "nested" / "train" / label / f"{number}.png", number)
    splits = [
        [(Path(i.name).name, i.label, i.split) for i in find([tmp_path / name], (), 0.3)]
        for name in ("plain", "nested")
    ]
    assert splits[0] == splits[1]


def test_the_split_is_blind_to_other_files(tmp_path: Path, picture: Write) -> None:
    def splits() -> dict[str, str]:
        return {i.name: i.split for i in find([tmp_path], (), 0.3)}

    for number in range(20):
        for label in ("happy", "sad"):
            picture(tmp_path / label / f"{number}.png", number)
    before = splits()
    for number in range(20, 30):
        picture(tmp_path / "happy" / f"{number}.png", number)
    assert {name: split for name, split in splits().items() if name in before} == before


def test_held_out_is_a_golden_hash() -> None:
    # A change would move pictures between training and validation of every model there is.
    names = [f"happy/{n}.png" for n in range(12)]
    assert [n for n, name in enumerate(names) if is_held_out(name, 0.3)] == [1]
    assert not any(is_held_out(name, 0.0) for name in names)
    assert all(is_held_out(name, 1.0) for name in names)


@pytest.mark.parametrize(("name", "encoded"), [("a/é.png", b"a/\xc3\xa9.png"), ("a/\udcff.png", b"a/\xff.png")])
def test_a_names_hash_is_that_of_its_bytes(name: str, encoded: bytes) -> None:
    share = int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big") / 2**64
    assert is_held_out(name, share + 1e-9)
    assert not is_held_out(name, share - 1e-9)
    part = hashlib.sha256(b"part " + os.path.basename(encoded)).digest()[0] & 1
    assert part_of(name) == ("select", "report")[part]


def test_the_share_held_out_is_about_the_one_asked_for() -> None:
    assert sum(is_held_out(f"{n}.png", 0.2) for n in range(5000)) == pytest.approx(1000, rel=0.1)


def test_pictures_lie_at_any_depth(faces: Path, picture: Write) -> None:
    picture(faces / "train" / "happy" / "deep" / "er" / "0.png", 99)
    assert len(find([faces], (), 0.1)) == 11


def test_hidden_files_and_folders_are_ignored(faces: Path, picture: Write) -> None:
    (faces / "train" / "happy" / ".DS_Store").write_bytes(b"\0")
    picture(faces / "train" / ".cache" / "0.png", 99)
    assert len(find([faces], (), 0.1)) == 10


def test_hidden_folders_inside_a_class_are_ignored(faces: Path, picture: Write) -> None:
    picture(faces / "train" / "happy" / ".ipynb_checkpoints" / "0.png", 99)
    assert len(find([faces], (), 0.1)) == 10


def test_classes_choose_folders_and_the_order_of_outputs(faces: Path, picture: Write) -> None:
    picture(faces / "train" / "angry" / "0.png", 98)
    items = find([faces], ("sad", "happy"), 0.1)
    assert {i.label for i in items} == {"happy", "sad"}
    dataset = load(items, ("sad", "happy"), (1, 8, 8), "crop", faces.parent)
    assert [dataset.labels[t] for t in dataset.targets] == [i.label for i in items]


def test_several_data_sets_are_one(faces: Path, tmp_path: Path) -> None:
    csv = fer_csv(tmp_path, *good_rows())
    items = find([faces, csv], ("happy", "sad"), 0.1)
    assert {i.source for i in items} == {"faces", "fer2013"}
    assert len(items) == 14


def test_a_class_without_pictures_is_an_error(faces: Path) -> None:
    with pytest.raises(DataError, match="no train pictures of class angry"):
        find([faces], ("happy", "angry"), 0.1)


def test_a_class_without_validation_pictures_is_an_error(faces: Path) -> None:
    for path in (faces / "val" / "sad").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no val pictures of class sad"):
        find([faces], (), 0.1)


def test_one_class_is_an_error(tmp_path: Path, picture: Write) -> None:
    picture(tmp_path / "happy" / "0.png", 0)
    with pytest.raises(DataError, match="found only the class happy; expected two or more"):
        find([tmp_path], (), 0.1)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is neither a folder nor a csv file"):
        find([tmp_path / "nowhere"], (), 0.1)


def test_a_folder_of_loose_pictures_is_an_error(tmp_path: Path, picture: Write) -> None:
    picture(tmp_path / "0.png", 0)
    with pytest.raises(DataError, match="has no folders; expected one for each class"):
        find([tmp_path], (), 0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        (" ", "has spaces around it"),
        ("sad ", "has spaces around it"),
        ("a\nb", "a%0Ab cannot be a label"),
        ("\udcff", "%FF cannot be a label: it is not UTF-8"),
        (".sad", "a dot at its beginning"),
        ("faces/sad", "without a slash"),
        ("train", "a class cannot be called train"),
        ("val", "a class cannot be called val"),
        ("happy", "the label happy is given 2 times"),
    ],
)
def test_names_that_cannot_be_a_class_are_refused(faces: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find([faces], ("happy", name), 0.1)


@pytest.mark.parametrize("name", ["sad ", "a\nb", "\udcff\udcfe", "val"])
def test_so_are_the_names_of_folders_but_not_of_those_that_are_left_aside(
    tmp_path: Path, picture: Write, name: str
) -> None:
    for number in range(20):
        for label in ("happy", "sad", name):
            picture(tmp_path / label / f"{number}.png", number)
    with pytest.raises(DataError, match="cannot be"):
        find([tmp_path], (), 0.3)
    assert {item.label for item in find([tmp_path], ("happy", "sad"), 0.3)} == {"happy", "sad"}


def test_a_name_too_long_for_the_system_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="xxx"):
        find([tmp_path / ("x" * 300)], (), 0.1)
    with pytest.raises(DataError, match="xxx"):
        list_unlabelled([tmp_path / ("x" * 300)])


# FER2013


def test_fer2013_rows_become_pictures(tmp_path: Path) -> None:
    path = fer_csv(tmp_path, *good_rows(), fer_row(HAPPY, "PrivateTest"))
    items = find([path], (), 0.5)
    assert [(i.label, i.split) for i in items] == [
        ("happy", "train"),
        ("sad", "train"),
        ("happy", "val"),
        ("sad", "val"),
    ]
    assert [int(i.picture[47, 47]) for i in items] == [30, 40, 31, 41]
    assert items[0].picture.shape == (48, 48)
    assert items[0].source == "fer2013"


def test_a_header_with_spaces_and_another_order_reads_the_same(tmp_path: Path) -> None:
    rows = [f"{e}, {usage}, {pixels}" for e, pixels, usage in (row.split(",") for row in good_rows())]
    spaced = find([fer_csv(tmp_path, *rows, header="emotion, Usage, pixels")], (), 0.1)
    plain = find([fer_csv(tmp_path, *good_rows())], (), 0.1)
    assert [(i.label, i.split) for i in spaced] == [(i.label, i.split) for i in plain]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(spaced, plain, strict=True))


def test_classes_choose_rows_of_fer2013(tmp_path: Path) -> None:
    path = fer_csv(tmp_path, *good_rows(), fer_row(0, "Training"))
    assert {i.label for i in find([path], ("happy", "sad"), 0.1)} == {"happy", "sad"}


@pytest.mark.parametrize(
    "row",
    [
        fer_row(7, "Training"),
        fer_row(-1, "Training"),
        fer_row("happy", "Training"),
        fer_row(HAPPY, "Training", count=100),
        fer_row(HAPPY, "Training", level=256),
        fer_row(HAPPY, "Training", level=-1),
        "3",
    ],
    ids=["emotion 7", "emotion -1", "emotion happy", "100 pixels", "level 256", "level -1", "one column"],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: str) -> None:
    path = fer_csv(tmp_path, fer_row(HAPPY, "Training"), row)
    with pytest.raises(DataError, match=r"fer2013\.csv, line 3: not a row of FER2013"):
        find([path], (), 0.1)


def test_blank_lines_count(tmp_path: Path) -> None:
    path = fer_csv(tmp_path, fer_row(HAPPY, "Training"), "", "nonsense")
    with pytest.raises(DataError, match="line 4"):
        find([path], (), 0.1)


def test_missing_columns_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected Usage, emotion, pixels"):
        find([fer_csv(tmp_path, "1,2", header="label,pixels")], (), 0.1)


def test_a_csv_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\xfd\n")
    with pytest.raises(DataError, match="fer2013"):
        find([path], (), 0.1)


# Loading


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_what_the_runtime_computes(faces: Path, channels: int) -> None:
    items = find([faces], (), 0.1)
    dataset = load(items, ("happy", "sad"), (channels, 5, 6), "pad", faces.parent)
    color = "gray" if channels == 1 else "rgb"
    for item, pixels in zip(items, dataset.pixels, strict=True):
        expected = preprocess(decode(item.picture, color, Limits()), InputSpec(5, 6, color, "pad"))
        assert np.array_equal(pixels, expected)


def test_splits_and_targets_belong_to_the_items(faces: Path) -> None:
    items = find([faces], (), 0.1)
    dataset = read(faces)
    for split in ("train", "val"):
        assert [items[i].split for i in getattr(dataset, split)] == [split] * len(getattr(dataset, split))
    assert dataset.targets.tolist() == [("happy", "sad").index(i.label) for i in items]
    assert (len(dataset.train), len(dataset.val)) == (6, 4)
    assert not any(note.startswith("left out") for note in dataset.notes)


def test_a_corrupt_file_is_left_out_with_a_note(faces: Path) -> None:
    broken = faces / "train" / "happy" / "1.png"
    broken.write_bytes(b"not a picture")
    dataset = read(faces)
    assert len(dataset.train) == 5
    assert sum(note.startswith("left out") for note in dataset.notes) == 1
    assert dataset.notes[0].startswith(f"left out {broken}: ")


def test_whatever_is_raised_is_that_pictures_note(faces: Path) -> None:
    """Padded to a square, a strip has more pixels than Pillow makes; one picture is gone before it is read."""
    strip, gone = write_strip(faces / "train" / "sad" / "strip.png"), faces / "train" / "happy" / "1.png"
    items = find([faces], (), 0.1)
    gone.unlink()
    dataset = load(items, ("happy", "sad"), (1, 8, 8), "pad", faces.parent)
    assert len(dataset.train) == 5
    assert dataset.notes[0] == f"left out {gone}: no such file"
    assert dataset.notes[1].startswith(f"left out {strip}: ")


def test_names_that_are_no_utf8_or_no_line_are_percent_encoded(faces: Path, picture: Write) -> None:
    odd = Path(os.fsdecode(os.fsencode(faces.parent) + b"/\xff\xfe"))
    faces.rename(odd)
    picture(odd / "train" / "sad" / "\udcff.png", 99)
    (odd / "train" / "sad" / "a\nb.png").write_bytes(b"broken")
    dataset = read(odd)
    assert dataset.describe() == "%FF%FE: 3 happy, 4 sad"
    assert [note for note in dataset.notes if "b.png" in note] == [
        f"left out {faces.parent}/%FF%FE/train/sad/a%0Ab.png: no known image format; expected JPEG, PNG, WebP "
        "or alike"
    ]


def test_the_room_for_the_pixels_is_taken_before_a_picture_is_read(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"no room in .*, 640 bytes: No space left on device"):
        read(faces)


def test_a_class_with_nothing_but_corrupt_files_is_an_error(faces: Path) -> None:
    for path in (faces / "val" / "sad").iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="no usable val picture of class sad is left; left out "):
        read(faces)


def test_a_twin_across_the_splits_is_left_out_of_training(faces: Path) -> None:
    twin = faces / "train" / "sad" / "twin.png"
    twin.write_bytes((faces / "val" / "happy" / "0.png").read_bytes())
    dataset = read(faces)
    assert (len(dataset.train), len(dataset.val)) == (6, 4)
    assert dataset.notes[0] == f"left out of training {twin}: the same picture is in the validation split"


def test_a_twin_is_known_by_its_pixels_and_not_by_its_bytes(faces: Path) -> None:
    with Image.open(faces / "val" / "happy" / "0.png") as image:
        image.save(faces / "train" / "happy" / "twin.bmp")
    assert len(read(faces).train) == 6


def test_twins_within_a_split_stay(faces: Path) -> None:
    twin = faces / "train" / "happy" / "twin.png"
    twin.write_bytes((faces / "train" / "happy" / "0.png").read_bytes())
    assert len(read(faces).train) == 7


def test_reading_again_gives_the_same_fingerprint(faces: Path) -> None:
    assert read(faces).fingerprint == read(faces).fingerprint


def test_another_picture_label_or_split_gives_another_fingerprint(faces: Path, picture: Write) -> None:
    seen = {read(faces).fingerprint}
    picture(faces / "train" / "happy" / "0.png", 77)
    seen.add(read(faces).fingerprint)
    (faces / "train" / "happy" / "0.png").rename(faces / "train" / "sad" / "9.png")
    seen.add(read(faces).fingerprint)
    (faces / "train" / "sad" / "9.png").rename(faces / "val" / "sad" / "9.png")
    seen.add(read(faces).fingerprint)
    assert len(seen) == 4


def test_describe_counts_the_training_pictures_by_source_and_class(faces: Path, tmp_path: Path) -> None:
    csv = fer_csv(tmp_path, *good_rows(), fer_row(HAPPY, "Training", 200))
    items = find([faces, csv], ("happy", "sad"), 0.1)
    dataset = load(items, ("happy", "sad"), (1, 8, 8), "crop", tmp_path)
    assert dataset.describe() == "faces: 3 happy, 3 sad; fer2013: 2 happy, 1 sad"


def test_decoded_pixels_may_be_items(tmp_path: Path) -> None:
    items = [
        Item(np.full((8, 8), 10 * n, np.uint8), label, split, "memory", f"{n}")
        for n, (label, split) in enumerate((s, t) for s in ("happy", "sad") for t in ("train", "val"))
    ]
    dataset = load(items, ("happy", "sad"), (1, 4, 4), "crop", tmp_path)
    assert dataset.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30]


def test_a_pictures_part_depends_on_its_name_alone() -> None:
    assert part_of("a/b/x.png") == part_of("x.png")
    assert {part_of(f"{number}.png") for number in range(20)} == {"select", "report"}
