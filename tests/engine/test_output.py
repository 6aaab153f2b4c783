"""The output file: whole rows only, and `resume` that ends where an uninterrupted run would."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmengine.errors import Kind, OutputError, SourceError
from fmengine.jobs.formats import COLUMNS, Csv, Jsonl
from fmengine.jobs.journal import Journal
from fmengine.jobs.output import claim, open_output
from fmengine.jobs.rows import Row, to_row
from fmengine.jobs.state import get_state_path
from fmengine.types import Failure, Prediction, Reason

LABELS = ("happy", "sad")
IDENTITY = {"model": "0123", "backend": "onnxruntime"}
FORMATS = ("jsonl", "csv")


def answer(path: str, confidence: float = 0.75, reason: Reason | None = None) -> Row:
    probabilities = {"happy": confidence, "sad": 1 - confidence}
    return to_row(path, Prediction("happy", confidence, probabilities, path, reason))


def failure(path: str, message: str = "no such file") -> Row:
    return to_row(path, Failure(Kind.NOT_FOUND, SourceError(Kind.NOT_FOUND, message).message, path))


ROWS = [
    answer("a.png"),
    failure('gone,“quoted”".png', 'it said "no", and went'),
    answer("line\nbreak.png", 0.123456),
    answer("grüße/漢字.png"),
    failure("\udcff.png"),
    answer("z.png", reason=Reason.FLAT),
]


@contextmanager
def opened(path: Path, *, identity=IDENTITY, retry=False, **options: bool) -> Iterator[Journal]:
    with claim(path, **options) as target, open_output(target, LABELS, identity, retry_failed=retry) as file:
        yield file


def kill(path: Path, rows: list[Row], **options: bool) -> None:
    """A run that ended without being able to do anything about it."""
    with claim(path, **options) as target:
        file = open_output(target, LABELS, IDENTITY)
        for row in rows:
            file.write([row])
        os.close(file._file)


def write(path: Path, rows=ROWS, **options) -> bytes:
    with opened(path, **options) as file:
        file.write(rows[:1])
        file.write(rows[1:])
    return path.read_bytes()


@pytest.fixture(params=FORMATS)
def path(request, tmp_path) -> Path:
    return tmp_path / f"x.{request.param}"


# What is written.


def test_rows_come_back(path):
    write(path)
    with opened(path, resume=True) as file:
        assert list(file.read_rows()) == ROWS


def test_rows_can_be_read_while_the_file_grows(path):
    with opened(path) as file:
        for count, row in enumerate(ROWS, 1):
            file.write([row])
            assert list(file.read_rows()) == ROWS[:count]


def test_one_row_is_one_line(path):
    lines = write(path).decode().splitlines()
    assert len(lines) == len(ROWS) + (path.suffix == ".csv")


def test_jsonl_is_json(tmp_path):
    data = write(tmp_path / "x.jsonl")
    assert [json.loads(line) for line in data.splitlines()] == ROWS
    assert "漢字".encode() in data, "readable, not escaped"


def test_csv_has_a_column_a_label(tmp_path):
    header, first, second, *_ = write(tmp_path / "x.csv").decode().splitlines()
    assert header == "path,label,confidence,happy,sad,reason,error_kind,error_message,path_encoding"
    assert first == "a.png,happy,0.75,0.75,0.25,,,,"
    assert second.endswith(',,,,,not_found,"it said ""no"", and went",')


def test_state_says_what_made_the_file(path):
    data = write(path)
    state = json.loads(get_state_path(path).read_text())
    known = {"rows": len(ROWS), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert state == {"version": 3, **IDENTITY, **known}
    assert sorted(os.listdir(path.parent)) == sorted([path.name, get_state_path(path).name])


anything = st.text(
    st.characters(exclude_characters="\0") | st.sampled_from("\r\n\t\"',;\x1c\x85\u2028"), min_size=1
)
# A name is what the system gives: text, or bytes that are none, but never half a character.
text_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
file_names = text_names | st.binary(min_size=1).map(lambda data: os.fsdecode(data.replace(b"\0", b"-")))
reasons = st.sampled_from([None, *Reason])
probability = st.floats(0, 1).map(lambda value: round(value, 6))


@pytest.mark.parametrize("encoding", [Jsonl(), Csv(LABELS)], ids=FORMATS)
@given(name=file_names, message=anything, confidence=probability, reason=reasons, failed=st.booleans())
@example(name="0", message="\ud800", confidence=0.0, reason=None, failed=True)
def test_any_row_is_one_line_and_comes_back(encoding, name, message, confidence, reason, failed):
    row = failure(name, message) if failed else answer(name, confidence, reason)
    line = encoding.encode([row])
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert encoding.decode(line.encode().decode()) == row


probabilities_given = st.floats(0, 1, width=32)  # what a network answers


@given(p=probabilities_given)
@example(p=1 / 128)  # halfway between two numbers of six digits, as
@example(p=3 / 128)
@example(p=2.0**-149)
def test_rows_hold_six_digits(p):
    row = to_row("a", Prediction("happy", p, {"happy": p}, "a"))
    assert (row["confidence"], row["probabilities"]) == (round(p, 6), {"happy": round(p, 6)})


@given(
    name=file_names,
    label=anything,
    probabilities=st.dictionaries(anything, probabilities_given, min_size=1, max_size=3),
    reason=reasons,
)
@example(name="a", label="\ud800", probabilities={"\ud800": 1.0, '"\\%{': 0.0}, reason=Reason.FLAT)
def test_jsonl_is_what_json_writes(name, label, probabilities, reason):
    highest = max(probabilities.values())
    rows = [
        to_row(name, Prediction(label, highest, probabilities, name, reason)),
        to_row(name, Failure(Kind.CORRUPT, label, name)),
        answer("a.png"),
    ]
    assert Jsonl().encode(rows) == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("encoding", [Jsonl(), Csv(LABELS)], ids=FORMATS)
def test_rows_are_encoded_together_as_they_are_alone(encoding):
    assert encoding.encode(ROWS) == "".join(encoding.encode([row]) for row in ROWS)
    assert encoding.encode([]) == ""


# Going on after an interruption.


def interrupted(path: Path) -> bytes:
    """Kill a run after its last row: the file is whole, the state still that of the beginning."""
    kill(path, [])
    state = get_state_path(path).read_bytes()
    kill(path, ROWS, overwrite=True)
    get_state_path(path).write_bytes(state)
    return path.read_bytes()


@pytest.mark.slow
def test_resume_after_any_byte_gives_the_same_file(path):
    whole = interrupted(path)
    state = get_state_path(path).read_bytes()
    begin = json.loads(state)["bytes"]
    for length in range(begin, len(whole) + 1):
        path.write_bytes(whole[:length])
        get_state_path(path).write_bytes(state)
        with opened(path, resume=True) as file:
            kept = whole[:length].count(b"\n") - (path.suffix == ".csv")
            assert len(file.finished) == kept
            assert file.failed == sum(row["error"] is not None for row in ROWS[:kept])
            for row in ROWS[kept:]:
                file.write([row])
        assert path.read_bytes() == whole, length
        assert json.loads(get_state_path(path).read_text())["bytes"] == len(whole)


def test_torn_line_is_cut_off_before_anything_is_written(path):
    whole = interrupted(path)
    path.write_bytes(whole[:-1])
    with opened(path, resume=True):
        assert path.read_bytes() == whole[: whole.rindex(b"\n", 0, -1) + 1]


def test_resume_without_an_output_starts_one(path):
    assert write(path, resume=True) == write(path.with_name("other" + path.suffix))


def test_resume_of_a_finished_file_changes_nothing(path):
    data = write(path)
    assert write(path, [], resume=True) == data


def test_names_that_look_alike_are_told_apart(path):
    """`a%0A` is a name of its own, and what the name "a, line feed" is shown as."""
    write(path, [answer("a%0A")])
    with opened(path, resume=True) as one:
        first = set(one.finished)
    write(path, [answer("a\n")], overwrite=True)
    with opened(path, resume=True) as other:
        assert first != other.finished


def test_killed_before_the_first_state(path):
    """An empty file that nothing is known of holds nothing to lose."""
    path.touch()
    assert write(path, resume=True).count(b"\n") == len(ROWS) + (path.suffix == ".csv")


def test_killed_in_the_header(tmp_path):
    path = tmp_path / "x.csv"
    with opened(path) as file:
        state = json.loads(get_state_path(path).read_text()) | {"bytes": 0}
        header = path.read_bytes()
        file.write([ROWS[0]])
    get_state_path(path).write_text(json.dumps(state))
    path.write_bytes(header[:7])
    assert write(path, resume=True).startswith(header)


def test_a_path_counts_as_often_as_it_has_a_row(path):
    write(path, [answer("a.png"), failure("\udcff.png"), answer("a.png")])
    with opened(path, resume=True) as file:
        assert file.finished == {"a.png": 2, "\udcff.png": 1}


# Refusals.


def refusal(path: Path, **options) -> str:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OutputError) as caught, opened(path, **options):
        pass
    assert before is None or path.read_bytes() == before, "a refused file is left as it was"
    assert path.name in str(caught.value)
    return str(caught.value)


def test_existing_file_is_refused(path):
    write(path)
    message = refusal(path)
    assert "--resume" in message
    assert "--overwrite" in message


def test_overwrite_begins_anew(path):
    write(path)
    assert write(path, ROWS[:1], overwrite=True) == write(path.with_name("other" + path.suffix), ROWS[:1])


@pytest.mark.parametrize("key", IDENTITY)
def test_other_model_or_options_are_refused(path, key):
    write(path)
    message = refusal(path, resume=True, identity=IDENTITY | {key: "another"})
    assert key in message
    assert "another" in message
    assert IDENTITY[key] in message


def test_missing_state_is_refused(path):
    write(path)
    get_state_path(path).unlink()
    assert "missing or damaged" in refusal(path, resume=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"bytes": null}', '{"bytes": "many"}', '{"bytes": 1e999}', "\xff"]
)
def test_damaged_state_is_refused(path, text):
    write(path)
    get_state_path(path).write_bytes(text.encode("latin-1"))
    assert "missing or damaged" in refusal(path, resume=True)


def test_file_shorter_than_its_state_is_refused(path):
    data = write(path)
    path.write_bytes(data[:-1])
    assert "shorter" in refusal(path, resume=True)


def test_any_changed_byte_is_refused(path):
    """What was known to be on the disk is what is continued."""
    data = write(path)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert "cannot resume" in refusal(path, resume=True)
    path.write_bytes(data.replace(b"a.png", b"b.png", 1))
    assert "its rows were changed since they were written" in refusal(path, resume=True)
    path.write_bytes(data.replace(b"a.png", b"longer.png", 1))
    assert "its rows were changed since they were written" in refusal(path, resume=True)


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "=\xff", "-\n", "'=1", "%3D"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(tmp_path, name):
    path = tmp_path / "x.csv"
    labels = ("=happy", "-")
    rows = [
        to_row(name, Prediction("=happy", 0.75, {"=happy": 0.75, "-": 0.25}, name)),
        failure(name, name),
    ]
    with claim(path) as target, open_output(target, labels, IDENTITY) as file:
        for row in rows:
            file.write([row])
        assert list(file.read_rows()) == rows
    cells = [cell for line in csv.reader(path.read_text().splitlines()) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


BAD_LINES = {
    "jsonl": [
        b"hello",
        b"",
        b"3",
        b"{}",
        b'{"path": "a"}',
        b'{"path": [], "error": null}',
        b"\xff",
        b"[" * 100_000,
    ],
    "csv": [b"hello", b"", b"a,happy,0.5,0.5,,,", b"a,happy,half,0.5,0.5,,,,", b"\xff", b"a\rb,happy,1,1,0,,,,"],
}


@pytest.mark.parametrize(
    ("suffix", "line"),
    [(suffix, line) for suffix, lines in BAD_LINES.items() for line in lines],
    ids=lambda value: str(value)[:24],
)
def test_line_that_is_no_row_is_refused(tmp_path, suffix, line):
    path = tmp_path / f"x.{suffix}"
    data = write(path)
    path.write_bytes(data + line + b"\n")
    number = data.count(b"\n") + 1
    assert f"line {number} " in refusal(path, resume=True)


def test_csv_without_its_header_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"path,", b"PATH,", 1))
    assert "line 1 is not its header" in refusal(path, resume=True)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.json", "x.jsonl.gz", ".jsonl"])
def test_other_suffixes_are_refused(tmp_path, name):
    assert "must end in .jsonl or .csv or .parquet" in refusal(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_what_is_no_file_is_refused(path):
    path.mkdir()
    assert "not a regular file" in refusal(path, overwrite=True)


@pytest.mark.parametrize("version", [2, 4, None, "3"])
def test_another_version_is_refused_in_words(path, version):
    write(path)
    state = json.loads(get_state_path(path).read_text()) | {"version": version}
    get_state_path(path).write_text(json.dumps(state))
    message = refusal(path, resume=True)
    assert f"its rows are of version {version!r}, this fmengine writes version 3" in message
    assert "finish it with the fmengine that began it, or begin anew with --overwrite" in message


@pytest.mark.parametrize("label", [*COLUMNS, "two\nlines", "\x1b[2J", "\ud800"])
def test_labels_that_cannot_be_columns_are_refused_before_anything_is_written(tmp_path, label):
    path = tmp_path / "x.csv"
    path.write_text("precious")
    with claim(path, overwrite=True) as target, pytest.raises(OutputError, match=r"choose \.jsonl"):
        open_output(target, ("happy", label), IDENTITY)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["x.csv"]


@pytest.mark.parametrize("label", [*COLUMNS, "two\nlines", "\ud800"])
def test_any_label_is_a_key_of_a_json_line(tmp_path, label):
    path, row = tmp_path / "x.jsonl", to_row("a", Prediction(label, 0.75, {label: 0.75, "sad": 0.25}, "a"))
    with claim(path) as target, open_output(target, (label, "sad"), IDENTITY) as file:
        file.write([row])
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [row]


def test_missing_folder_is_refused(path):
    refusal(path.parent / "missing" / path.name)


def test_name_that_is_too_long_is_refused(path):
    with pytest.raises(OutputError), opened(path.with_name("x" * 300 + path.suffix)):
        pass


# A full disk, which a limit on the size of a file imitates.

FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    from fmengine.errors import OutputError
    from fmengine.jobs.output import claim, open_output

    row = {"path": "a.png", "label": "happy", "confidence": 0.75, "probabilities": {"happy": 0.75, "sad": 0.25}}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        path, labels, identity = Path(sys.argv[1]), ("happy", "sad"), {"model": "m"}
        with claim(path) as target, open_output(target, labels, identity) as file:
            for _ in range(1000):
                file.write([row | {"reason": None, "error": None}])
    except OutputError as error:
        print(error)
"""


def test_full_disk_leaves_whole_rows(path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), path], capture_output=True, text=True, check=True
    )
    data = path.read_bytes()
    header = path.suffix == ".csv"
    kept = data.count(b"\n") - header
    assert kept > 3
    assert data.endswith(b"\n")
    assert len({len(line) for line in data.splitlines()[header:]}) == 1, "every row is whole"
    assert f"it keeps {kept} rows" in run.stdout
    assert "File too large" in run.stdout
    assert "--resume" in run.stdout
    with opened(path, resume=True, identity={"model": "m"}) as file:
        assert len(list(file.read_rows())) == kept
        file.write([answer("after.png")])
        assert list(file.read_rows())[-1] == answer("after.png")
