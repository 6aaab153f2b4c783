"""`fmengine prepare`: each picture once, in one split, under one label, and every other one told."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fmengine.errors import DataError, OutputError
from fmengine.system.files import get_temporary_path
from fmengine_train.data import find
from fmengine_train.prepare import prepare
from fmengine_train.votes import COLUMNS, read_votes

from .conftest import ballot, fer_csv, votes_file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(prepare, [str(argument) for argument in arguments])


def made(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48), np.uint8)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def reasons(folder: Path) -> dict[str, str]:
    with (folder / "dropped.csv").open(newline="", encoding="utf-8") as file:
        return {Path(row["picture"]).name: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Five good pictures, and one of everything that is dropped."""
    root = tmp_path / "faces"
    pictures = {
        "train/happy/a.png": noise(1),
        "train/happy/b.png": noise(2),
        "train/happy/copy-of-b.png": noise(2),
        "train/happy/twin-in-val.png": noise(5),
        "train/happy/both.png": noise(9),
        "train/sad/c.png": noise(3),
        "train/sad/both.png": noise(9),
        "train/sad/flat.png": np.full((48, 48), 90, np.uint8),
        "val/happy/d.png": noise(5),
        "val/sad/e.png": noise(6),
    }
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    (root / "train/sad/broken.png").write_bytes(b"no picture")
    return root


KEPT = {"train/happy/a.png", "train/happy/b.png", "train/sad/c.png", "val/happy/d.png", "val/sad/e.png"}


def test_each_picture_is_kept_once_and_the_others_are_told(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = made(faces, "--output", out)
    assert result.stdout == f"{out}\n"
    assert files(out) == KEPT | {"dropped.csv", "dropped.png"}
    told = reasons(out)
    assert told["copy-of-b.png"].startswith("a copy: of ")
    assert told["twin-in-val.png"].endswith("d.png, in val")
    assert told["both.png"] == "the same picture is labelled happy and sad"
    assert told["flat.png"].startswith("flat")
    assert told["broken.png"].startswith("unreadable: no known image format")
    assert "train/happy: 2 pictures" in result.stderr
    assert "dropped 2: the same picture is labelled happy and sad" in result.stderr


def test_the_counts_as_json(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = json.loads(made(faces, "--output", out, "--json").stdout)
    assert document["folder"] == str(out)
    assert {"split": "train", "label": "happy", "count": 2} in document["pictures"]
    assert sum(entry["count"] for entry in document["pictures"]) == len(KEPT)
    assert document["dropped"]["the same picture is labelled happy and sad"] == 2


def test_files_are_copied_as_they_are(faces: Path, tmp_path: Path) -> None:
    made(faces, "--output", tmp_path / "out")
    for name in KEPT:
        assert (tmp_path / "out" / name).read_bytes() == (faces / name).read_bytes()


def test_what_comes_out_goes_into_training_and_stays_the_same(faces: Path, tmp_path: Path) -> None:
    made(faces, "--output", tmp_path / "once")
    assert len(find([tmp_path / "once"], (), 0.1)) == len(KEPT)
    made(tmp_path / "once", "--output", tmp_path / "twice")
    assert files(tmp_path / "twice") == files(tmp_path / "once")
    assert reasons(tmp_path / "twice") == {}


def test_two_sources_that_use_one_name_lose_nothing(faces: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for split, label, seed in (
        ("train", "happy", 21),
        ("train", "sad", 22),
        ("val", "happy", 23),
        ("val", "sad", 24),
    ):
        (other / split / label).mkdir(parents=True)
        Image.fromarray(noise(seed)).save(other / split / label / "a.png")
    made(faces, other, "--output", tmp_path / "out")
    assert {"train/happy/a.png", "train/happy/a-1.png"} <= files(tmp_path / "out")


def test_the_sheet_shows_what_was_dropped(faces: Path, tmp_path: Path) -> None:
    made(faces, "--output", tmp_path / "out")
    with Image.open(tmp_path / "out" / "dropped.png") as sheet:
        assert sheet.height > 72 * 4  # reasons and pictures
        assert np.asarray(sheet).std() > 10


def test_names_need_not_be_utf8(faces: Path, tmp_path: Path) -> None:
    """What is copied keeps its name; tables show it percent-encoded."""
    faces = faces.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    (faces / "train/happy/a.png").rename(faces / "train/happy/\udcff.png")
    (faces / "train/sad/broken.png").rename(faces / "train/sad/a\nb.png")
    said: list[dict[str, object]] = [{"file": "train/happy/\udcff.png"} | ballot(happiness=9)]
    with (votes := tmp_path / "votes.csv").open("w", newline="", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(said[0]))
        writer.writeheader()
        writer.writerows(said)
    out = tmp_path / "out\udcff"
    result = made(faces, "--votes", votes, "--output", out)
    assert result.stdout_bytes == os.fsencode(out) + b"\n"
    assert files(out) >= {"train/happy/\udcff.png", "clean/train/happy/\udcff.png"}
    assert read_votes(out / "ferplus_votes.csv").by_file.keys() == {"train/happy/\udcff.png"}
    assert reasons(out)["a%0Ab.png"].startswith("unreadable")
    assert reasons(out)["copy-of-b.png"] == f"a copy: of {tmp_path}/%FF%FE/train/happy/b.png, in train"


def test_no_cell_is_a_formula(faces: Path, tmp_path: Path) -> None:
    (faces / "train/sad").rename(faces / "train/=1+1")
    (faces / "val/sad").rename(faces / "val/=1+1")
    made(faces, "--output", tmp_path / "out")
    with (tmp_path / "out" / "dropped.csv").open(newline="", encoding="utf-8") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"happy", "'=1+1"}


def test_one_picture_is_one_in_words(faces: Path, tmp_path: Path) -> None:
    assert "train/sad: 1 picture\n" in made(faces, "--output", tmp_path / "out").stderr


# Whatever is raised is that picture's reason


def test_a_picture_that_a_decoder_was_not_made_for_ends_nothing(faces: Path, tmp_path: Path) -> None:
    """A JPEG whose header claims 4:4:1 chroma, for which the binding of libjpeg-turbo has no name."""
    path = faces / "train/sad/441.jpg"
    Image.fromarray(np.stack([noise(n) for n in range(3)], axis=2)).save(path, subsampling=0)
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xc0") + 11] = 0x14
    path.write_bytes(data)
    made(faces, "--output", tmp_path / "out")


def test_a_picture_that_vanishes_meanwhile_is_dropped(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all were read, when the first is written."""
    mkdir = Path.mkdir

    def vanishing(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "happy":
            (faces / "train/sad/c.png").unlink(missing_ok=True)
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", vanishing)
    result = made(faces, "--output", tmp_path / "out")
    assert files(tmp_path / "out") == KEPT - {"train/sad/c.png"} | {"dropped.csv", "dropped.png"}
    assert reasons(tmp_path / "out")["c.png"] == "unreadable: no such file"
    assert "train/sad" not in result.stderr


def test_a_sheet_leaves_out_what_cannot_be_shown(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resize(*arguments: object) -> None:
        raise KeyError("what nobody foresaw")

    monkeypatch.setattr(Image.Image, "resize", resize)
    made(faces, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "dropped.png").exists()


# Votes

FIVE = ("happy", "sad", "sad", "happy", "sad")


def test_the_published_files_go_through_one_command(tmp_path: Path) -> None:
    """fer2013.csv and fer2013new.csv: row by row, splits by name, PrivateTest left alone."""
    rows = [(3, 1, "Training"), (4, 2, "Training"), (4, 3, "Training"), (3, 4, "PublicTest"), (4, 5, "PublicTest")]
    rows += [(3, 6, "PrivateTest")]
    lines = [f"{emotion},{' '.join(map(str, noise(seed).ravel()))},{usage}" for emotion, seed, usage in rows]
    faces = fer_csv(tmp_path, *lines)
    said = [
        ballot(happiness=10),
        ballot(neutral=9),
        ballot(sadness=9),
        ballot(happiness=8),
        ballot(sadness=6),
        ballot(),
    ]
    names: list[dict[str, object]] = [
        {"Usage": "", "Image name": f"fer{i:07d}.png"} | votes for i, votes in enumerate(said)
    ]
    votes = votes_file(tmp_path / "fer2013new.csv", names)
    result = made(faces, "--votes", votes, "--output", tmp_path / "out")
    kept = {"train/happy/fer0000000.png", "train/sad/fer0000001.png", "train/sad/fer0000002.png"}
    kept |= {"val/happy/fer0000003.png", "val/sad/fer0000004.png"}
    clean = {f"clean/{name}" for name in kept - {"train/sad/fer0000001.png"}}
    assert files(tmp_path / "out") == kept | clean | {"dropped.csv", "dropped.png", "ferplus_votes.csv"}
    names_there = [f"{'train' if i < 3 else 'val'}/{label}/fer{i:07d}.png" for i, label in enumerate(FIVE)]
    votes_there = read_votes(tmp_path / "out" / "ferplus_votes.csv").by_file
    assert votes_there == dict(zip(names_there, said[:5], strict=True))
    assert "train/sad: 2 pictures, 1 of them as the voters say" in result.stderr
    with Image.open(tmp_path / "out/train/sad/fer0000002.png") as image:
        np.testing.assert_array_equal(np.asarray(image), noise(3))


def test_votes_by_file_name(faces: Path, tmp_path: Path) -> None:
    said: list[dict[str, object]] = [
        {"file": "train/happy/a.png"} | ballot(happiness=7),
        {"file": "train/sad/c.png"} | ballot(neutral=7),
        {"file": "none/such.png"} | ballot(happiness=7),
    ]
    result = made(faces, "--votes", votes_file(tmp_path / "votes.csv", said), "--output", tmp_path / "out")
    assert {name for name in files(tmp_path / "out") if name.startswith("clean/")} == {"clean/train/happy/a.png"}
    assert f"note: the votes name a picture that is not in {faces}; the first: none/such.png" in result.stderr


def test_votes_for_other_pictures_are_refused(faces: Path, tmp_path: Path) -> None:
    votes = votes_file(tmp_path / "votes.csv", [{"file": "happy/a.png"} | ballot(happiness=7)])
    result = run(faces, "--votes", votes, "--output", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert "and none that is; the first: happy/a.png; expected names below a source" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "has no columns NF, anger"),
        (",".join(COLUMNS) + "\nx" + ",1" * 9 + "\n", "cannot read the votes"),
    ],
)
def test_a_file_that_holds_no_votes_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "votes.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_votes(tmp_path / "votes.csv")


# Errors


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "exists; choose another --output"),
        ("file", "exists; choose another --output"),
        ("dangling", "exists; choose another --output"),
        ("none/out", "there is no folder"),
        ("file/out", "there is no folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_before_the_pictures_are_looked_for(
    tmp_path: Path, output: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    result = run(tmp_path / "no faces", "--output", tmp_path / output)
    assert isinstance(result.exception, OutputError)
    assert message in str(result.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling"}


@pytest.mark.parametrize("classes", ["", ",", "happy,happy", "happy,.sad", "happy,sad/deep"])
def test_classes_that_cannot_be_are_refused(faces: Path, tmp_path: Path, classes: str) -> None:
    result = run(faces, "--classes", classes, "--output", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert {path.name for path in tmp_path.iterdir()} == {"faces"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_a_run_leaves_nothing_behind(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def save(*arguments: object) -> None:
        raise error(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)  # of the sheet, which comes last
    assert run(faces, "--output", tmp_path / "out").exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"faces"}


def test_nothing_to_keep_is_told(faces: Path, tmp_path: Path) -> None:
    for path in faces.rglob("*.png"):
        path.write_bytes(b"no picture")
    result = run(faces, "--output", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert "can be kept" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_what_was_left_by_a_killed_run_is_in_nobodys_way(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, get_temporary_path(tmp_path / "out"))
    made(faces, "--output", tmp_path / "out")
    assert files(tmp_path / "out") == KEPT | {"dropped.csv", "dropped.png"}
