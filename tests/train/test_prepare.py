"""`fmengine prepare`: each picture once, in one split, under one label, and every other one told."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fmengine.errors import DataError, OutputError
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
    assert f"note: the votes name 1 pictures that are not in {faces}; the first: none/such.png" in result.stderr


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


def test_a_folder_that_exists_is_refused(faces: Path, tmp_path: Path) -> None:
    result = run(faces, "--output", tmp_path)
    assert isinstance(result.exception, OutputError)


def test_nothing_to_keep_is_told(faces: Path, tmp_path: Path) -> None:
    for path in faces.rglob("*.png"):
        path.write_bytes(b"no picture")
    result = run(faces, "--output", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert "can be kept" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_what_was_left_by_a_killed_run_is_in_nobodys_way(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "out.partial")
    made(faces, "--output", tmp_path / "out")
    assert files(tmp_path / "out") == KEPT | {"dropped.csv", "dropped.png"}
