"""`fmengine eval --rows`: a row for each picture, failed ones too, in every format."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fmengine.cli import cli
from fmengine.errors import Kind, OutputError
from fmengine.jobs.rows import KEYS
from fmengine.types import Failure, Prediction
from fmengine_bench.answer_rows import LabelledCsv, LabelledJsonl, make_labelled_row, open_rows

LABELS = ("happy", "sad")
SUFFIXES = ("jsonl", "csv", "parquet")


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", "alexnet-slim", *map(str, arguments)])


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Three gray pictures, one of them with commas, quotes and Hebrew in its name, and one file that is none."""
    for number, name in enumerate(["happy/a.png", 'happy/x, "שלום".png', "sad/b.png"]):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90 * number).save(path)
    (tmp_path / "faces/sad/broken.png").write_bytes(b"no picture")
    return tmp_path / "faces"


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            next(file)
            lines = LabelledCsv(LABELS)
            return [lines.decode(line) for line in file]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_is_that_of_infer_and_says_whether_it_is_right(faces, tmp_path, suffix):
    rows, inferred = tmp_path / f"rows.{suffix}", tmp_path / "inferred.jsonl"
    result = evaluate(faces, "--rows", rows, "--json")
    assert result.exit_code == 3, "one picture is broken"
    assert CliRunner().invoke(cli, ["infer", str(faces), "--output", str(inferred)]).exit_code == 3
    expected = {row["path"]: row for row in read(inferred)}
    found = read(rows)
    assert {row["path"] for row in found} == set(expected)
    assert len(found) == 4
    for row in found:
        assert {key: row[key] for key in KEYS} == expected[row["path"]]
        assert row["data"] == str(faces)
        assert row["expected"] == Path(row["path"]).parent.name
        assert row["right"] == (None if row["error"] else row["label"] == row["expected"])
    (figures,) = json.loads(result.stdout)
    assert figures["accuracy"] == sum(row["right"] is True for row in found) / 3


def test_several_folders_are_told_apart(faces, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(faces / "happy", other / "happy")
    assert evaluate(faces, other, "--rows", tmp_path / "rows.csv").exit_code == 3
    assert [row["data"] for row in read(tmp_path / "rows.csv")] == [str(faces)] * 4 + [str(other)] * 2


def test_a_spreadsheet_executes_no_name_of_a_folder(tmp_path):
    row = make_labelled_row("a.png", Failure(Kind.EMPTY, "=1+1", "a.png"), "=SUM(A1)", "-x")
    lines = LabelledCsv(("=SUM(A1)", "sad"))
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in next(csv.reader([lines.encode([row])])))
    assert lines.decode(lines.encode([row])) == row
    assert LabelledJsonl().decode(LabelledJsonl().encode([row])) == row


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, suffix):
    rows = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rows.write_text("old")
    answer = Prediction("sad", 0.75, {"happy": 0.25, "sad": 0.75}, "a.png")

    def break_off() -> None:
        with open_rows(rows, LABELS) as write:
            write(make_labelled_row("a.png", answer, "sad", "faces"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert rows.read_text() == "old"
    assert list(tmp_path.iterdir()) == [rows]
    with open_rows(rows, LABELS) as write:
        for number in range(2500):
            write(make_labelled_row(f"{number}.png", answer, "happy", "faces"))
    found = read(rows)
    assert [row["path"] for row in found] == [f"{number}.png" for number in range(2500)]
    assert {row["right"] for row in found} == {False}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.txt", "the name must end in .jsonl or .csv or .parquet"),
        ("none/rows.csv", "there is no folder"),
        ("old.csv", "exists; replace it with --overwrite"),
    ],
)
def test_what_cannot_be_written_is_noticed_before_the_work(tmp_path, name, message):
    (tmp_path / "old.csv").touch()
    result = evaluate(tmp_path / "no faces", "--rows", tmp_path / name)
    assert isinstance(result.exception, OutputError)
    assert message in str(result.exception)


def test_a_label_that_is_a_column_already_has_no_csv_file(tmp_path):
    with pytest.raises(OutputError, match="a column 'right' already"), open_rows(tmp_path / "x.csv", ("right",)):
        pass
    with open_rows(tmp_path / "x.jsonl", ("right",)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
