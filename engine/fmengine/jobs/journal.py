"""The output file of `fmengine infer`: rows appended whole, and enough beside them to go on.

`x.jsonl` (or `x.csv`) grows as results arrive. `x.jsonl.state.json` says which model and options made it, how far
it is known to be on the disk, and the sha256 of that much. `--resume` verifies it, drops a torn last line and goes
on with the pictures that have no row yet. `--retry-failed` takes the rows of failed pictures out first; until they
have new ones, `.x.jsonl.retry.json` lists them.
"""

import csv
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..errors import OutputError
from ..system.files import check_target, temporary_of, write_file
from ..system.lock import hold, lock_of
from ..wording import pluralise
from .formats import Csv, Format, Jsonl
from .rows import Row, file_of
from .sources import skip_finished

SYNC_SECONDS = 1.0  # at most this much work is lost when the machine loses power
FORMATS = (".jsonl", ".csv", ".parquet")
VERSION = 3  # of the rows and their state


def state_of(path: Path) -> Path:
    """Where the state of an output file is."""
    return path.parent / f"{path.name}.state.json"


def retry_of(path: Path) -> Path:
    """Where the pictures are listed whose failed rows were taken out of an output file."""
    return path.parent / f".{path.name}.retry.json"


def journal_of(path: Path) -> Path:
    """Where the rows of a Parquet file are until they are all there."""
    return path.parent / f"{path.name}.rows.jsonl"


def restored_of(path: Path) -> Path:
    """Where the journal of a finished Parquet file is made again."""
    return path.parent / f".{path.name}.rows.jsonl"


def files_of(path: Path) -> list[Path]:
    """An output file, and what may lie beside it: its state, its lock, and what a killed run leaves behind."""
    own = [path, state_of(path), retry_of(path)]
    own += [temporary_of(file) for file in own] + [lock_of(path)]
    if path.suffix == ".parquet":
        own += files_of(journal_of(path)) + files_of(restored_of(path))
    return own


class Target(NamedTuple):
    """An output file that can be written, and that nobody else writes; made by `claim`.

    Attributes:
        path: of the file.
        resume: whether to go on with it, if it is there.
    """

    path: Path
    resume: bool


@contextmanager
def claim(path: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Target]:
    """Hold an output file against other processes, once it is sure that it can be written.

    Args:
        path: ends in one of `FORMATS`.
        resume: go on with the file, if there is one.
        overwrite: throw an old file away.

    Raises:
        OutputError: if another process writes it, `files.check_target` refuses it, or it exists and neither was
            asked for.
        UnavailableError: if a library is missing that its format needs.
    """
    files = [path]
    if _class_of(path) is not OutputFile:
        files.append(journal_of(path))
    with hold(path):
        for file in files:
            check_target(file, FORMATS, overwrite=resume or overwrite, hint="go on with --resume, or ")
        yield Target(path, resume)


def open_output(
    target: Target, labels: Sequence[str], identity: dict[str, Any], *, retry_failed: bool = False
) -> "OutputFile":
    """Open or make an output file in the format that its name says; see `OutputFile`."""
    return _class_of(target.path)(target, labels, identity, retry_failed=retry_failed)


def _class_of(path: Path) -> "type[OutputFile]":
    if path.suffix != ".parquet":
        return OutputFile
    from .parquet import ParquetFile  # needs a library of its own

    return ParquetFile


class OutputFile:
    """An output file being written; a context manager.

    Attributes:
        finished: the paths that had a row when the file was opened, with how many: a list may hold a path
            twice. As the file system knows them, for two names may look alike in their rows.
        failed: how many of those rows are errors.
    """

    def __init__(
        self, target: Target, labels: Sequence[str], identity: dict[str, Any], *, retry_failed: bool = False
    ) -> None:
        """Open or make the file.

        Args:
            target: of `claim`; a `.jsonl` or `.csv` file.
            labels: the model's.
            identity: what made the rows (model digest, options); to go on with rows of another is refused.
            retry_failed: take failed rows out of a file that is gone on with, so that their pictures run again.

        Raises:
            OutputError: if the file cannot be continued or written, or has no room for such labels.
        """
        self.path, self.state_path = target.path, state_of(target.path)
        self._format: Format = Jsonl() if self.path.suffix == ".jsonl" else Csv(labels)
        self._identity = identity
        self._synced_at = time.monotonic()
        self._waiting: list[str] = []  # pictures whose failed rows were taken out
        self._forget()
        try:
            if target.resume and self._holds_rows():
                self._go_on(retry_failed)
            else:
                self._begin()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def unfinished(self, paths: Iterable[str]) -> Iterator[str]:
        """The pictures to answer: those whose failed rows were taken out, then the given ones without a row."""
        return chain(self._waiting, skip_finished(paths, self.finished + Counter(self._waiting)))

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows, all of them whole or none."""
        try:
            self._append("".join(map(self._format.encode, rows)))
            self._rows += len(rows)
            if time.monotonic() - self._synced_at > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; it keeps {pluralise(self._rows, 'row')}, "
                "go on with --resume once that is mended"
            ) from error

    def rows(self) -> Iterator[Row]:
        """Read the rows back from the file."""
        return (row for _, row in self._lines() if row is not None)

    def close(self) -> None:
        """Leave the file as it is; it can be gone on with."""
        try:
            self._sync()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; go on with --resume") from error
        finally:
            os.close(self._file)

    def finish(self) -> None:
        """Close the file, now that every picture has its row."""
        self.close()
        retry_of(self.path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            with suppress(OutputError):  # the first error is the one to hear of
                self.close()

    def _forget(self) -> None:
        """Know of no rows."""
        self.finished: Counter[str] = Counter()
        self.failed = self._rows = self._size = 0
        self._digest = hashlib.sha256()  # of the bytes so far

    def _holds_rows(self) -> bool:
        """Whether there is anything to go on with: a run that was killed as it began leaves an empty file."""
        if not self.path.exists():
            return False
        return self.path.stat().st_size > 0 or retry_of(self.path).exists()

    def _begin(self) -> None:
        retry_of(self.path).unlink(missing_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._sync()  # first, so that there is a state wherever there is a row
        self._append(self._format.header)
        self._sync()

    def _go_on(self, retry_failed: bool) -> None:
        """Read the rows that are there, open the file, and cut off a torn last line."""
        self._read_rows(*self._read_state())
        self._waiting = list(skip_finished(self._listed_to_retry(), self.finished))
        retried = retry_failed and self.failed > 0
        if retried:
            self._take_out_failed()
            self._read_rows(0, "")
        self._file = os.open(self.path, os.O_RDWR)
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)
        if not self._size:
            self._append(self._format.header)
        if retried:
            self._sync()

    def _append(self, text: str) -> None:
        # Half a character, which a model's label may hold, becomes the escape that JSON has for it.
        data = memoryview(text.encode(errors="backslashreplace"))
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
        self._write_state(self._rows, self._size, self._digest.hexdigest())
        self._synced_at = time.monotonic()

    def _write_state(self, rows: int, size: int, digest: str) -> None:
        state = {"version": VERSION, **self._identity, "rows": rows, "bytes": size, "sha256": digest}
        temporary = temporary_of(self.state_path)
        temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.state_path)

    def _read_state(self) -> tuple[int, str]:
        """Check that this model and these options made the file; its bytes when last synced, and their sha256."""
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            size, digest = int(state["bytes"]), str(state["sha256"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise OutputError(
                f"cannot resume {self.path}: {self.state_path.name} is missing or damaged; use --overwrite"
            ) from error
        check_version(self.path, state.get("version"))
        for key, value in self._identity.items():
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

    def _read_rows(self, known: int, digest: str) -> None:
        """Count the rows that are there.

        The first `known` bytes must have the digest of the state; what came after it is rows that can be read.
        """
        self._forget()
        unchanged = known == 0
        for raw, row in self._lines():
            if row is not None:
                self.finished[file_of(row)] += 1
                self.failed += row["error"] is not None
                self._rows += 1
            self._size += len(raw)
            self._digest.update(raw)
            unchanged |= self._size == known and self._digest.hexdigest() == digest
        if not unchanged:
            raise OutputError(
                f"cannot resume {self.path}: its rows were changed since they were written; use --overwrite"
            )

    def _lines(self) -> Iterator[tuple[bytes, Row | None]]:
        """Each whole line of the file, and its row; the header has none."""
        with self.path.open("rb") as file:
            for number, raw in enumerate(file):
                if not raw.endswith(b"\n"):
                    return
                if number or not self._format.header:
                    yield raw, self._decode(raw, number + 1)
                elif raw == self._format.header.encode():
                    yield raw, None
                else:
                    raise OutputError(f"cannot resume {self.path}: line 1 is not its header; use --overwrite")

    def _decode(self, raw: bytes, number: int) -> Row:
        try:
            return self._format.decode(raw.decode())
        except (ValueError, StopIteration, RecursionError, csv.Error) as error:
            raise OutputError(
                f"cannot resume {self.path}: line {number} is not a result row; use --overwrite"
            ) from error

    def _take_out_failed(self) -> None:
        """Replace the file by one without its failed rows, and list their pictures beside it.

        A kill at any moment leaves the file with all its rows, or without these and with the list.
        """
        real = Path(os.path.realpath(self.path))  # a link stays one
        with temporary_of(real).open("wb") as kept:
            for raw, row in self._lines():
                if row is not None and row["error"]:
                    self._waiting.append(file_of(row))
                else:
                    kept.write(raw)
            kept.flush()
            os.fsync(kept.fileno())
        write_file(retry_of(self.path), json.dumps(self._waiting))
        self._write_state(0, 0, "")  # which vouches for no byte, and so is true before and after the next line
        temporary_of(real).replace(real)
        _sync_folder(real.parent)

    def _listed_to_retry(self) -> list[str]:
        """Pictures whose failed rows a run before this one took out; it may have been killed since."""
        try:
            listed = json.loads(retry_of(self.path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError):
            listed = None
        if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
            raise OutputError(f"cannot resume {self.path}: {retry_of(self.path).name} is damaged; use --overwrite")
        return listed


def check_version(path: Path, found: object) -> None:
    """Raise OutputError for an output file whose rows another version of fmengine wrote in another form."""
    if found != VERSION:
        raise OutputError(
            f"cannot resume {path}: its rows are of version {found!r}, this fmengine writes version {VERSION}; "
            "finish it with the fmengine that began it, or begin anew with --overwrite"
        )


def _sync_folder(folder: Path) -> None:
    """Put a file's new name on the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
