"""Writes a row for each labelled picture: what `fmengine infer --output` writes, and whether it is right.

A row is that of `fmengine.jobs.rows`, and has `expected`, the label whose folder the picture lies in, `right`,
which is null where there is no answer, and `data`, the folder that was given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fmengine.errors import OutputError
from fmengine.jobs.formats import COLUMNS, Csv, Jsonl, escape_formula
from fmengine.jobs.output import FORMATS
from fmengine.jobs.rows import KEYS, Row, escape_path, to_row
from fmengine.system.files import check_target, open_atomic
from fmengine.types import Prediction, Result

MORE = ("expected", "right", "data")  # columns beside those of every row
BUFFERED = 1000  # rows, after which text is encoded and written
CELLS = {True: "true", False: "false", None: None}

Write = Callable[[Row], None]


def check_rows_file(path: Path, *, overwrite: bool) -> None:
    """Check that a file of rows can be written, before the work.

    Raises:
        OutputError: as `check_target`.
        UnavailableError: for Parquet without pyarrow.
    """
    check_target(path, FORMATS, overwrite=overwrite)
    if path.suffix == ".parquet":
        import fmengine.jobs.parquet  # noqa: F401  says what is missing


def make_labelled_row(path: str, result: Result, expected: str, data: str) -> Row:
    """Make the row of a labelled picture.

    Args:
        path: of the picture.
        result: its answer, or why there is none.
        expected: its label.
        data: the folder that was given.
    """
    right = result.label == expected if isinstance(result, Prediction) else None
    return to_row(path, result) | {"expected": expected, "right": right, "data": escape_path(data)}


@contextmanager
def open_rows(path: Path, labels: Sequence[str]) -> Iterator[Write]:
    """Open a file of rows, which is written as a whole or not at all, and whose name is checked already.

    Args:
        path: ends in `.jsonl`, `.csv` or `.parquet`.
        labels: the model's.

    Raises:
        OutputError: if it cannot be written, or its format cannot hold such labels.
    """
    open_buffer = _open_parquet if path.suffix == ".parquet" else _open_text
    try:
        with open_atomic(path) as file, open_buffer(file, path.suffix, labels) as write:
            yield write
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


class LabelledJsonl(Jsonl):
    """One JSON object a line."""

    keys = KEYS | {*MORE}


class LabelledCsv(Csv):
    """`path,label,confidence,…,path_encoding,expected,right,data`; `right` is `true`, `false` or empty."""

    columns = (*COLUMNS, *MORE)

    def _list_columns(self) -> list[str | None]:
        return [*super()._list_columns(), *MORE]

    def _list_values(self, row: Row) -> list[Any]:
        more = [escape_formula(row["expected"]), CELLS[row["right"]], escape_formula(row["data"])]
        return [*super()._list_values(row), *more]

    def _parse_values(self, values: Sequence[str]) -> Row:
        *plain, expected, right, data = values
        more = {
            "expected": expected.removeprefix("'"),
            "right": {"true": True, "false": False}.get(right),
            "data": data.removeprefix("'"),
        }
        return super()._parse_values(plain) | more


@contextmanager
def _open_text(file: IO[bytes], suffix: str, labels: Sequence[str]) -> Iterator[Write]:
    lines = LabelledCsv(labels) if suffix == ".csv" else LabelledJsonl()
    file.write(lines.header.encode())
    # Half a surrogate pair, which a model's label may hold, becomes the escape that JSON has for it.
    with _buffer(lambda rows: file.write(lines.encode(rows).encode(errors="backslashreplace"))) as write:
        yield write


@contextmanager
def _open_parquet(file: IO[bytes], suffix: str, labels: Sequence[str]) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    from fmengine.jobs.formats import check_labels
    from fmengine.jobs.parquet import ROW_GROUP, make_fields

    check_labels(labels)
    text = pyarrow.string()
    schema = pyarrow.schema(make_fields(labels) | {"expected": text, "right": pyarrow.bool_(), "data": text})
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:

        def write_group(rows: list[Row]) -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))

        with _buffer(write_group, ROW_GROUP) as write:
            yield write


@contextmanager
def _buffer(write_rows: Callable[[list[Row]], object], size: int = BUFFERED) -> Iterator[Write]:
    """Give a function that takes one row, and write many of them at a time."""
    held: list[Row] = []

    def add(row: Row) -> None:
        held.append(row)
        if len(held) == size:
            write_rows(held)
            held.clear()

    yield add
    if held:
        write_rows(held)
