"""`fmengine eval --groups`: what a table says of pictures, and what is wrong with one."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fmengine.cli import cli
from fmengine.errors import DataError, Kind
from fmengine.types import Failure, Prediction
from fmengine_bench.answer_rows import make_labelled_row
from fmengine_bench.by_group import as_text, score_groups
from fmengine_bench.groups import GroupColumn, assign_groups, read_table
from fmengine_bench.metrics import compute_wilson_interval

LABELS = ("happy", "sad")
NAMES = [f"{label}/{number:02}.png" for label in LABELS for number in range(12)]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Twelve pictures of each label; names repeat from one label to the other."""
    for index, name in enumerate(NAMES):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (24, 24), np.uint8)).save(path)
    return tmp_path / "faces"


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "groups.csv"
    path.write_text("\n".join(lines), encoding=encoding)
    return path


def assign(faces: Path, *lines: str):
    return assign_groups(read_table(write(faces.parent, *lines)), [faces], LABELS)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", "alexnet-slim", *map(str, arguments)])


# The table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_of_every_kind_are_read(tmp_path, encoding, mark):
    lines = [mark.join(line) for line in (["camera", "path", "age"], ['"Nikon ""D5"", old"', "a b.png", " 7 "])]
    table = read_table(write(tmp_path, *lines, "", encoding=encoding))
    assert table.columns == ["camera", "age"]
    assert table.cells == {"a b.png": ['Nikon "D5", old', "7"]}


def test_the_first_column_names_the_picture_where_none_is_called_path(tmp_path):
    assert read_table(write(tmp_path, "file,sex", "a.png,f")).cells == {"a.png": ["f"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "has no columns of groups; expected a first line such as: path,age,camera"),
        (["path", "a.png"], "has no columns of groups"),
        (["path,age,age", "a.png,1,2"], "has 2 columns named age in its first line"),
        (["path,age,", "a.png,1,2"], "has a column without a name"),
        (["path,age"], "names no pictures"),
        (["path,age", "a.png,1,2"], "has 3 cells in line 2; expected 2"),
        (["path,age", ",1"], "names no picture in line 2"),
        (["path,age", "a.png,1", "b.png,2", "a.png,1"], "names a.png more than once"),
        (["path,age", 'a.png,"1'], "is no CSV file: line 2"),
        (["path,age", "a.png,\0"], "is no CSV file (a null character)"),
        ([",".join(["path", *map(str, range(60))]), "a.png"], "has 61 columns; expected 50 of groups at most"),
    ],
)
def test_what_is_no_table_is_reported(tmp_path, lines, message):
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, *lines))
    assert message in str(caught.value)


def test_a_file_of_bytes_is_no_table(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_bytes(b"PAR1\xff\xfe\x80")
    with pytest.raises(DataError, match=r"is no CSV file .*; save the table as CSV in UTF-8"):
        read_table(path)
    with pytest.raises(DataError, match=r"cannot read groups from .*: no such file"):
        read_table(tmp_path / "none.csv")


# Its pictures


def test_a_picture_is_named_by_path_by_place_in_the_folder_or_by_its_name(faces, monkeypatch):
    (faces / "sad" / "alone.png").write_bytes((faces / "sad/00.png").read_bytes())
    (faces / "sad" / "x\n.png").write_bytes((faces / "sad/00.png").read_bytes())
    names = [
        "happy/00.png",
        "./happy/01.png",
        f"{faces}/happy/02.png",
        "alone.png",
        "faces/sad/03.png",
        "sad/x%0A.png",
    ]
    monkeypatch.chdir(faces.parent)
    groups = assign(faces, "path,g", *(f"{name},{number}" for number, name in enumerate(names)))
    found = ["happy/00.png", "happy/01.png", "happy/02.png", "sad/alone.png", "sad/03.png", "sad/x\n.png"]
    assert groups.columns[0].values == {f"{faces}/{name}": str(number) for number, name in enumerate(found)}


def test_names_of_missing_pictures_are_noted(faces):
    groups = assign(faces, "path,g", *(f"{name},a" for name in NAMES), *(f"no{n}.png,a" for n in range(5)))
    assert groups.notes[0].endswith(
        f"names 5 pictures that {faces} does not have: no0.png, no1.png, no2.png and 2 more"
    )


def test_pictures_of_another_label_are_not_missing(faces):
    (faces / "odd").mkdir()
    (faces / "odd/1.png").touch()
    groups = assign(faces, "path,g", *(f"{name},{number % 2}" for number, name in enumerate(NAMES)), "odd/1.png,a")
    assert groups.notes == []


def test_pictures_without_a_group_are_noted_and_left_out(faces):
    groups = assign(
        faces, "path,g,h", *(f"{name},{n % 2},{'' if n < 4 else 'x'}" for n, name in enumerate(NAMES[2:]))
    )
    assert groups.notes[0].endswith(
        f"does not name 2 pictures of {faces}, left out by group: happy/00.png, happy/01.png"
    )
    assert [len(column.values) for column in groups.columns] == [22, 18]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x/a.png,1", "b.png,2"], "names no picture of"),
        (["00.png,1"], "names 00.png, which several pictures are called; name the folder too"),
        (["happy/00.png,1", "./happy/00.png,1"], "names one picture twice, as happy/00.png and ./happy/00.png"),
        (["happy/00.png,", "happy/01.png,nan"], "has no column of groups: "),
    ],
)
def test_what_pictures_are_not_named_by_is_reported(faces, lines, message):
    with pytest.raises(DataError) as caught:
        assign(faces, "path,g", *lines)
    assert message in str(caught.value)


# Its columns


def test_many_numbers_are_cut_at_their_quartiles(faces):
    groups = assign(faces, "path,age", *(f"{name},{20 + number}" for number, name in enumerate(NAMES)))
    (column,) = groups.columns
    assert column.groups == ["20 to 25", "26 to 31", "32 to 37", "38 to 43"]
    assert [list(column.values.values()).count(group) for group in column.groups] == [6] * 4
    assert (
        "column age has 24 numbers, cut at their quartiles: 20 to 25, 26 to 31, 32 to 37, 38 to 43" in groups.notes
    )


def test_few_numbers_are_groups_in_their_order(faces):
    (column,) = assign(faces, "path,grade", *(f"{name},{9 + n % 2}" for n, name in enumerate(NAMES))).columns
    assert column.groups == ["9", "10"]


def test_a_column_with_a_group_for_each_picture_is_left_out(faces, monkeypatch):
    monkeypatch.setattr("fmengine_bench.groups.MAX_GROUPS", 20)
    groups = assign(faces, "path,id,g", *(f"{name},id{n},{n % 2}" for n, name in enumerate(NAMES)))
    assert [column.name for column in groups.columns] == ["g"]
    assert "column id has 24 groups for 24 pictures, and is left out; join them into 20 at most" in groups.notes[0]


def test_small_groups_are_noted(faces):
    groups = assign(faces, "path,g", *(f"{name},{'ab'[n == 0]}" for n, name in enumerate(NAMES)))
    assert "column g has 1 group of fewer than 10 pictures, shown and not compared: b" in groups.notes
    assert "column g has not two groups of 10 pictures or more: nothing is compared" in groups.notes


# Its figures


def test_figures_of_a_group_are_those_of_its_pictures():
    column = GroupColumn("camera", ["old", "new"], {f"{n}.png": "old" if n < 20 else "new" for n in range(50)})
    rows = []
    for number in range(60):  # the last ten have no group
        label, answer = LABELS[number % 2], LABELS[number % 2 if number % 10 else 1]
        result = Prediction(answer, 1.0, {}, "x") if number != 25 else Failure(Kind.EMPTY, "empty", "x")
        rows.append(make_labelled_row(f"{number}.png", result, label, "faces"))
    report = score_groups([column], LABELS, rows, 0.1)
    (figures,) = report.columns
    old, new = figures.groups
    assert (old.count, old.unanswered, old.accuracy, old.counts) == (20, 0, 18 / 20, {"happy": 10, "sad": 10})
    assert old.recall == {"happy": 0.8, "sad": 1.0}
    assert old.recall_interval["happy"] == compute_wilson_interval(8, 10)
    assert old.accuracy_interval == compute_wilson_interval(18, 20)
    assert (new.count, new.unanswered, figures.without) == (29, 1, 10)
    assert figures.clearest is not None
    assert figures.clearest.p > 0.5
    json.dumps(figures.__dict__ | {"groups": []}, default=lambda value: value.__dict__, allow_nan=False)
    text = as_text(report)
    assert "by camera: 49 pictures; 10 pictures without one" in text
    assert "may be chance" in text
    assert "one of 10 points would be found in " in text


def test_a_planted_gap_is_told(faces):
    column = GroupColumn("skin", ["light", "dark"], {f"{n}": "light" if n % 2 else "dark" for n in range(400)})
    rows = []
    for n in range(400):
        label = LABELS[n // 2 % 2]
        wrong = label == "sad" and n % 2 == 0 and n % 5 == 0
        answer = Prediction("happy" if wrong else label, 1.0, {}, "x")
        rows.append(make_labelled_row(f"{n}", answer, label, "faces"))
    report = score_groups([column], LABELS, rows)
    (figures,) = report.columns
    gap = figures.clearest
    assert gap is not None
    assert (gap.better, gap.worse, gap.label, gap.size) == ("light", "dark", "sad", pytest.approx(0.2))
    assert gap.p < 0.01
    assert (
        "light 20.0 points above dark, recall of sad; p 0.0005 among all gaps of 1 column: more than chance"
        in as_text(report)
    )


# The command


def test_the_command_gives_figures_by_group(faces):
    lines = [f'{name},"{"אב"[n % 2]}, ""x"""' for n, name in enumerate(NAMES)]
    table = write(faces.parent, "path,קבוצה", *lines, "no.png,1")
    result = run(faces, "--groups", table, "--gap", "0.2", "--json", "--rows", faces.parent / "rows.csv")
    assert result.exit_code == 0, result.exception
    (figures,) = json.loads(result.stdout)
    (column,) = figures["groups"]["columns"]
    assert column["name"] == "קבוצה"
    assert [group["name"] for group in column["groups"]] == ['א, "x"', 'ב, "x"']
    assert [group["counts"] for group in column["groups"]] == [{"happy": 6, "sad": 6}] * 2
    right = sum(group["count"] * group["accuracy"] for group in column["groups"])
    assert right == pytest.approx(24 * figures["accuracy"])
    assert figures["groups"]["stated_gap"] == 0.2
    assert "names 1 picture that" in result.stderr
    text = run(faces, "--groups", table).stdout
    assert 'by קבוצה: 24 pictures\n    א, "x"' in text


def test_what_is_wrong_with_groups_is_said_before_the_work(tmp_path, faces):
    result = run(tmp_path / "no faces", "--groups", tmp_path / "none.csv")
    assert isinstance(result.exception, DataError)
    assert "cannot read groups" in str(result.exception)
    assert run(faces, "--gap", "0.1").exit_code == 2
    assert run(faces, "--groups", write(tmp_path, "path,g", "a,1"), "--gap", "2").exit_code == 2
    result = run(faces, "--groups", write(tmp_path, "path,g", "a,1"))
    assert isinstance(result.exception, DataError)
    assert "names no picture of" in str(result.exception)
    assert result.stdout == ""
