"""What people voted: which label they agree on, and what a network learns of it."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fmengine.errors import DataError
from fmengine_train.checkpoint import read_tensors
from fmengine_train.cli import train
from fmengine_train.data import find, load
from fmengine_train.recipe import Recipe
from fmengine_train.votes import Votes, blend_votes, find_majority, read_votes

from .conftest import ballot, fer_csv, votes_file


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        (ballot(happiness=9, neutral=1), "happy"),
        (ballot(sadness=4, neutral=3, fear=3), "sad"),
        (ballot(sadness=5, neutral=5), None),
        (ballot(contempt=6, happiness=4), None),
        (ballot(NF=10), None),
        (ballot(unknown=6, sadness=4), None),
        (ballot(), None),
    ],
)
def test_a_label_needs_more_votes_than_any_other(votes: dict[str, int], label: str | None) -> None:
    assert find_majority(votes) == label


@pytest.fixture
def faces(tmp_path: Path, drawn_faces: Path) -> Path:
    """A data set of its own, for its name is in the votes' way."""
    link = tmp_path / "faces"
    link.symlink_to(drawn_faces)
    return link


def learned(faces: Path, said: dict[str, dict[str, int]], label_votes: float = 2.0) -> dict[str, list[float]]:
    """The answers for some pictures, `train/happy/0.png` and the like, by name."""
    items = find([faces], (), 0.1)
    data = load(items, ("happy", "sad"), (1, 16, 16), "crop", faces.parent)
    assert blend_votes(data, items, Votes(said, []), [faces], label_votes) == len(said)
    names = [Path(item.name).relative_to(faces).as_posix() for item in items]
    untouched = [index for index, name in enumerate(names) if name not in said]
    np.testing.assert_array_equal(data.answers[untouched], np.eye(2)[data.targets[untouched]])
    return {name: data.answers[names.index(name)].tolist() for name in said}


def first_two(faces: Path) -> tuple[str, str]:
    """A happy and a sad picture."""
    return tuple(  # type: ignore[return-value]
        min((faces / "train" / label).iterdir()).relative_to(faces).as_posix() for label in ("happy", "sad")
    )


def test_answers_are_shares_of_the_votes_and_the_label_counts_as_some(faces: Path) -> None:
    happy, sad = first_two(faces)
    said = {happy: ballot(happiness=6, sadness=2, neutral=2), sad: ballot(happiness=8)}
    answers = learned(faces, said, label_votes=2.0)
    assert answers[happy] == pytest.approx([0.8, 0.2])  # (6 + 2) of 10
    assert answers[sad] == pytest.approx([0.8, 0.2])  # overruled: 2 of 10 left
    assert learned(faces, said, label_votes=0.0)[sad] == pytest.approx([1, 0])


@pytest.mark.parametrize("label_votes", [0.0, 2.0])
def test_who_saw_neither_feeling_leaves_the_label(faces: Path, label_votes: float) -> None:
    happy, sad = first_two(faces)
    said = {happy: ballot(neutral=10), sad: ballot(unknown=4, fear=6)}
    answers = learned(faces, said, label_votes)
    assert answers == {happy: [1, 0], sad: [0, 1]}


def test_votes_for_other_pictures_are_refused(faces: Path) -> None:
    items = find([faces], (), 0.1)
    data = load(items, ("happy", "sad"), (1, 16, 16), "crop", faces.parent)
    votes = Votes({"train/happy/another.png": ballot(happiness=10)}, [])
    with pytest.raises(DataError, match="the votes name no picture of"):
        blend_votes(data, items, votes, [faces], 2.0)


def test_rows_of_the_published_files_belong_together(tmp_path: Path) -> None:
    rows = [(3, "Training"), (4, "Training"), (3, "PublicTest"), (4, "PublicTest")]
    levels = [" ".join(map(str, np.random.default_rng(seed).integers(0, 256, 48 * 48))) for seed in range(4)]
    lines = [f"{emotion},{pixels},{usage}" for (emotion, usage), pixels in zip(rows, levels, strict=True)]
    source = fer_csv(tmp_path, *lines)
    said = [ballot(happiness=8), ballot(happiness=2, sadness=6), ballot(happiness=9), ballot(sadness=9)]
    votes = read_votes(votes_file(tmp_path / "fer2013new.csv", said))  # type: ignore[arg-type]
    items = find([source], (), 0.1)
    data = load(items, ("happy", "sad"), (1, 16, 16), "crop", tmp_path)
    assert blend_votes(data, items, votes, [source], 2.0) == 4
    np.testing.assert_allclose(data.answers[:2], [[1, 0], [0.2, 0.8]], atol=1e-6)


def test_a_run_learns_from_votes(faces: Path, tmp_path: Path) -> None:
    happy, sad = first_two(faces)
    said = [{"file": happy} | ballot(sadness=10), {"file": sad} | ballot(happiness=10)]
    path = votes_file(tmp_path / "votes.csv", said)
    options = ["--epochs", "1", "--size", "32", "--device", "cpu", "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(train, [str(faces), *options, "--votes", str(path)])
    assert result.exit_code == 0, result.output
    assert "people voted on 2 pictures" in result.output
    items = find([faces], (), 0.1)
    data = load(items, ("happy", "sad"), (1, 32, 32), "crop", tmp_path)
    blend_votes(data, items, read_votes(path), [faces], Recipe().label_votes)
    _, document = read_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert document["data_fingerprint"] == data.fingerprint


def test_a_broken_file_of_votes_is_found_before_any_picture_is_read(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text("file,neutral\n")
    options = ["--run", str(tmp_path / "run"), "--votes", str(tmp_path / "votes.csv")]
    result = CliRunner().invoke(train, [str(faces), *options])
    assert isinstance(result.exception, DataError)
    assert "has no columns" in str(result.exception)
    assert not (tmp_path / "run").exists()
