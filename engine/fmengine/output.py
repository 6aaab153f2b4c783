"""The output file of `fmengine infer`: rows appended whole, and enough beside them to go on.

`x.jsonl` (or `x.csv`) grows as results arrive. `x.jsonl.state.json` says which model and options made it, how far
it is known to be on the disk, and the sha256 of that much. `--resume` verifies it, drops a torn last line and goes
on with the pictures that have no row yet.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from .errors import OutputError
from .rows import KEYS, Row, begun, file_of

SYNC_SECONDS = 1.0  # at most this much work is lost when the machine loses power
FORMATS = (".jsonl", ".csv", ".parquet")
VERSION = 3  # of the rows and their state
FORMULA = ("=", "+", "-", "@")  # a spreadsheet takes a cell that begins like this for a program


def state_of(path: Path) -> Path:
    """Where the state of an output file is."""
    return path.parent / f"{path.name}.state.json"


def temporary_of(path: Path) -> Path:
    """Where a file that is replaced as a whole is until then; what a killed run may leave behind."""
    return path.parent / f".{path.name}.tmp"


def files_of(path: Path) -> list[Path]:
    """An output file, and what may lie beside it: its state, and what a killed run leaves behind."""
    own = [path, state_of(path)]
    if path.suffix == ".parquet":
        own += [*files_of(journal_of(path)), *files_of(restored_of(path))]
    return own + [temporary_of(file) for file in own]


def journal_of(path: Path) -> Path:
    """Where the rows of a Parquet file are until they are all there."""
    return path.parent / f"{path.name}.rows.jsonl"


def restored_of(path: Path) -> Path:
    """Where the journal of a finished Parquet file is made again."""
    return path.parent / f".{path.name}.rows.jsonl"


def check_target(path: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether there is an output file already. Raises OutputError if there must not be, or it is none."""
    # `os.path` answers that a name too long for the file system does not exist; `pathlib` raises.
    exists = os.path.exists(path)
    if exists and not os.path.isfile(path):
        raise OutputError(f"{path} is not a regular file; choose another --output")
    if exists and not (resume or overwrite):
        raise OutputError(f"{path} exists; go on with --resume, or replace it with --overwrite")
    return exists


def open_output(
    path: Path, labels: Sequence[str], identity: dict[str, Any], *, resume: bool, overwrite: bool
) -> "OutputFile":
    """Open or make an output file in the format that its name says; see `OutputFile`."""
    if path.suffix not in FORMATS:
        raise OutputError(f"cannot write {path.name}; the name must end in {', '.join(FORMATS)}")
    kind = OutputFile
    if path.suffix == ".parquet":
        from .parquet import ParquetFile  # needs a library of its own

        kind = ParquetFile
    return kind(path, labels, identity, resume=resume, overwrite=overwrite)


class Jsonl:
    """One JSON object a line."""

    header = ""
    _encoder = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` would make one for every row

    def encode(self, row: Row) -> str:
        return self._encoder.encode(row) + "\n"

    def decode(self, line: str) -> Row:
        row = json.loads(line)
        if not isinstance(row, dict) or not row.keys() >= KEYS or not isinstance(row["path"], str):
            raise ValueError("not a result row")
        return row


COLUMNS = ("path", "label", "confidence", "reason", "error_kind", "error_message", "path_encoding")


class Csv:
    """`path,label,confidence,<a column a label>,reason,error_kind,error_message,path_encoding`.

    No cell is a formula to a spreadsheet: such a path is percent-encoded, other text gets an apostrophe in front.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.header = self._line([*COLUMNS[:3], *map(_text, labels), *COLUMNS[3:]])

    def encode(self, row: Row) -> str:
        probabilities, error = row["probabilities"] or {}, row["error"] or {}
        path, encoding = row["path"], row.get("path_encoding")
        if path.startswith(FORMULA):
            path, encoding = path if encoding else quote(path, safe="/"), "percent"
            path = path.replace("-", "%2D", 1) if path.startswith("-") else path  # which `quote` leaves
        values = [path, _text(row["label"]), row["confidence"], *map(probabilities.get, self.labels)]
        return self._line([*values, row["reason"], error.get("kind"), _text(error.get("message")), encoding])

    def decode(self, line: str) -> Row:
        path, label, confidence, *probabilities, reason, kind, message, encoding = next(csv.reader([line]))
        if len(probabilities) != len(self.labels):
            raise ValueError("wrong number of columns")
        row: Row = {"path": path}
        if encoding:  # perhaps only here, because it would have been a formula
            row = begun(file_of({"path": path, "path_encoding": encoding}))
        if kind:
            error = {"kind": kind, "message": _bare(message)}
            return row | {"label": None, "confidence": None, "probabilities": None, "reason": None, "error": error}
        return row | {
            "label": _bare(label),
            "confidence": float(confidence),
            "probabilities": {k: float(p) for k, p in zip(self.labels, probabilities, strict=True)},
            "reason": reason or None,
            "error": None,
        }

    def _line(self, values: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()


def _text(value: str | None) -> str | None:
    return f"'{value}" if value and value.startswith((*FORMULA, "'")) else value


def _bare(cell: str) -> str:
    return cell.removeprefix("'")


class OutputFile:
    """An output file being written; a context manager.

    Attributes:
        finished: the paths that had a row when the file was opened, with how many: a list may hold a path
            twice. As the file system knows them, for two names may look alike in their rows.
        failed: how many of those rows are errors.
    """

    def __init__(
        self, path: Path, labels: Sequence[str], identity: dict[str, Any], *, resume: bool, overwrite: bool
    ) -> None:
        """Open or make the file.

        Args:
            path: ends in `.jsonl` or `.csv`.
            labels: the model's.
            identity: what made the rows (model digest, options); `resume` refuses another.
            resume: go on with the file, if there is one.
            overwrite: throw an old file away.

        Raises:
            OutputError: if the file exists and neither was asked for, or cannot be continued.
        """
        exists = check_target(path, resume=resume, overwrite=overwrite)
        self.path, self.state_path = path, state_of(path)
        self._format = Jsonl() if path.suffix == ".jsonl" else Csv(labels)
        self._identity = identity
        self._rows, self._size, self._synced_at = 0, 0, time.monotonic()
        self._digest = hashlib.sha256()  # of the bytes written so far
        self.finished: Counter[str] = Counter()
        self.failed = 0
        try:
            # An empty file holds nothing to lose: its run was killed before it wrote anything.
            if exists and resume and path.stat().st_size:
                self._recover(*self._read_state())
            else:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
                self._sync()  # first, so that there is a state wherever there is a row
                self._append(self._format.header)
                self._sync()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows, all of them whole or none."""
        try:
            self._append("".join(map(self._format.encode, rows)))
            self._rows += len(rows)
            if time.monotonic() - self._synced_at > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; {self._rows} rows are kept, "
                "go on with --resume once that is mended"
            ) from error

    def rows(self) -> Iterator[Row]:
        """Read the rows back from the file."""
        with self.path.open(encoding="utf-8", newline="\n") as file:
            if self._format.header:
                next(file, None)
            for line in file:
                yield self._format.decode(line)

    def close(self) -> None:
        try:
            self._sync()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; go on with --resume") from error
        finally:
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OutputError:
            if error is None:  # else the first error is the one to hear of
                raise

    def _append(self, text: str) -> None:
        data = memoryview(text.encode())
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)  # no torn row stays behind, also on a full disk
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)
        self._digest.update(data)

    def _sync(self) -> None:
        os.fsync(self._file)
        known = {"rows": self._rows, "bytes": self._size, "sha256": self._digest.hexdigest()}
        state = {"version": VERSION, **self._identity, **known}
        temporary = temporary_of(self.state_path)
        temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.state_path)
        self._synced_at = time.monotonic()

    def _read_state(self) -> tuple[int, str]:
        """Check that this model and these options made the file; its bytes when last synced, and their sha256."""
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            size, digest = int(state["bytes"]), str(state["sha256"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise OutputError(
                f"cannot resume {self.path}: {self.state_path.name} is missing or damaged; use --overwrite"
            ) from error
        for key, value in {"version": VERSION, **self._identity}.items():
            if state.get(key) != value:
                raise OutputError(
                    f"cannot resume {self.path}: it was made with {key} {state.get(key)!r}, now it is {value!r}; "
                    "use the same, or --overwrite"
                )
        if self.path.stat().st_size < size:
            raise OutputError(
                f"cannot resume {self.path}: it is shorter than when it was written; use --overwrite"
            )
        return size, digest

    def _recover(self, known: int, digest: str) -> None:
        """Read the rows that are there, open the file, and cut off a torn last line.

        The first `known` bytes must have the digest of the state; what came after it is rows that can be read.
        """
        unchanged = known == 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file):
                if not raw.endswith(b"\n"):
                    break
                if number or not self._format.header:
                    self._count(raw, number + 1)
                elif raw != self._format.header.encode():
                    raise OutputError(f"cannot resume {self.path}: line 1 is not its header; use --overwrite")
                self._size += len(raw)
                self._digest.update(raw)
                unchanged |= self._size == known and self._digest.hexdigest() == digest
        if not unchanged:
            raise OutputError(
                f"cannot resume {self.path}: its rows were changed since they were written; use --overwrite"
            )
        self._file = os.open(self.path, os.O_RDWR)
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)
        if not self._size:
            self._append(self._format.header)

    def _count(self, raw: bytes, number: int) -> None:
        try:
            row = self._format.decode(raw.decode())
        except (ValueError, StopIteration, RecursionError, csv.Error) as error:
            raise OutputError(
                f"cannot resume {self.path}: line {number} is not a result row; use --overwrite"
            ) from error
        self.finished[file_of(row)] += 1
        self.failed += row["error"] is not None
        self._rows += 1
