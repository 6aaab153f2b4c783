"""Parquet: the rows of a jsonl file, in columns, and `resume` from wherever a run was killed."""

import json
import os
import sys
from pathlib import Path

import pytest
from test_output import IDENTITY, ROWS, answer, kill, opened

from fmengine.errors import OutputError, UnavailableError
from fmengine.jobs.output import claim, open_output
from fmengine.jobs.state import VERSION, get_journal_path, get_restored_path, get_state_path, list_output_files

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.parquet"


def write(path: Path, rows=ROWS, **options) -> list[dict]:
    with opened(path, **options) as file:
        for row in rows:
            file.write([row])
    return read(path)


def read(path: Path) -> list[dict]:
    rows = parquet.read_table(path).to_pylist()
    return [{k: v for k, v in row.items() if k != "path_encoding" or v} for row in rows]


def refusal(path: Path, **options) -> str:
    with pytest.raises(OutputError) as caught, opened(path, **options):
        pass
    return str(caught.value)


def only(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


def test_rows_come_back(path):
    assert write(path) == ROWS
    assert only(path)


def test_columns_are_numbers_and_text(path):
    write(path)
    table = parquet.read_table(path)
    columns = ["path", "label", "confidence", "probabilities", "reason", "error", "path_encoding"]
    assert table.column_names == columns
    assert str(table.schema.field("confidence").type) == "double"
    assert table["probabilities"].combine_chunks().field("happy").to_pylist()[0] == 0.75
    assert json.loads(table.schema.metadata[b"fmengine"]) == {"version": VERSION, **IDENTITY}


def test_no_rows_are_a_file(path):
    assert write(path, []) == []


def test_many_rows_are_some_row_groups(path):
    rows = [answer(f"{number}.png") for number in range(20_001)]
    assert write(path, rows) == rows
    assert parquet.ParquetFile(path).num_row_groups == 3


@pytest.mark.parametrize("kept", range(len(ROWS) + 1))
def test_resume_after_a_kill(path, kept):
    kill(path, ROWS[:kept])
    assert not path.exists()
    assert "x.parquet.rows.jsonl exists; go on with --resume" in refusal(path)
    with opened(path, resume=True) as file:
        assert file.finished.total() == kept
        for row in ROWS[kept:]:
            file.write([row])
    assert read(path) == ROWS
    assert only(path)


def test_resume_of_a_finished_file_goes_on(path):
    write(path, ROWS[:3])
    with opened(path, resume=True) as file:
        assert file.finished.total() == 3
        assert file.failed == 1
        for row in ROWS[3:]:
            file.write([row])
    assert read(path) == ROWS
    assert only(path)


def test_resume_of_a_finished_file_that_was_killed(path):
    """The old file stays whole until the new one is."""
    write(path, ROWS[:3])
    kill(path, ROWS[3:5], resume=True)
    assert read(path) == ROWS[:3]
    assert write(path, ROWS[5:], resume=True) == ROWS


def test_resume_of_a_run_killed_while_it_restored(path, monkeypatch):
    write(path, ROWS)
    get_restored_path(path).write_text("torn")
    get_state_path(get_journal_path(path)).write_text("left behind")
    assert write(path, [], resume=True) == ROWS
    assert only(path)


def test_resume_of_a_run_killed_as_it_ended(path):
    write(path, ROWS)
    kill(path, [], resume=True)
    get_journal_path(path).with_name(f".{path.name}.tmp").write_bytes(b"PAR1 torn")
    assert write(path, [], resume=True) == ROWS
    assert only(path)


@pytest.mark.parametrize("version", [2, 4, None])
def test_a_finished_file_of_another_version_is_refused_in_words(path, version):
    write(path)
    made_by = {} if version is None else {"version": version}
    table = parquet.read_table(path).drop_columns("reason")
    parquet.write_table(table.replace_schema_metadata({b"fmengine": json.dumps(made_by | IDENTITY)}), path)
    assert f"x.parquet: its rows are of version {version!r}" in refusal(path, resume=True)
    assert only(path)


@pytest.mark.parametrize("label", ["two\nlines", "\ud800"])
def test_labels_that_cannot_be_columns_are_refused(path, label):
    with claim(path) as target, pytest.raises(OutputError, match=r"choose \.jsonl"):
        open_output(target, ("happy", label), IDENTITY)
    assert not os.listdir(path.parent)


@pytest.mark.parametrize("key", IDENTITY)
@pytest.mark.parametrize("finished", [True, False])
def test_other_model_or_options_are_refused(path, key, finished):
    (write if finished else kill)(path, ROWS[:2])
    assert f"it was made with {key} " in refusal(path, resume=True, identity=IDENTITY | {key: "other"})
    assert write(path, ROWS[2:], resume=True) == ROWS


def test_an_error_leaves_the_journal(path):
    with pytest.raises(KeyboardInterrupt), opened(path) as file:  # noqa: PT012 - what is written before it counts
        file.write([ROWS[0]])
        raise KeyboardInterrupt
    assert not path.exists()
    assert write(path, ROWS[1:], resume=True) == ROWS


def test_overwrite_begins_anew_and_keeps_the_old_file_until_then(path):
    write(path, ROWS)
    with opened(path, overwrite=True) as file:
        file.write([ROWS[1]])
        assert read(path) == ROWS
    assert read(path) == [ROWS[1]]


def test_what_is_no_result_of_ours_is_refused(path):
    for data in (b"", b"PAR1", b"no parquet at all"):
        path.write_bytes(data)
        assert "it is no result of fmengine, or damaged" in refusal(path, resume=True)
    import pyarrow

    parquet.write_table(pyarrow.table({"a": [1]}), path)
    assert "it is no result of fmengine" in refusal(path, resume=True)


def test_all_files_that_belong_to_it_are_known(path):
    write(path, ROWS[:2])
    kill(path, ROWS[2:], resume=True)
    found = set(os.listdir(path.parent))
    assert found <= {file.name for file in list_output_files(path)}
    assert len(found) == 3


def test_a_disk_that_is_full_at_the_end_costs_no_row(path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "ParquetWriter", full)
        with pytest.raises(OutputError, match=r"No space left on device; every row is in x\.parquet\.rows\.jsonl"):
            write(path)
    assert write(path, [], resume=True) == ROWS


def test_without_pyarrow_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "fmengine.jobs.parquet", raising=False)
    with pytest.raises(UnavailableError, match=r"pip install '\.\[parquet\]'"), claim(path):
        pass
