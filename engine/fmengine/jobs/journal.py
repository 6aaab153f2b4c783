"""The journal of `fmengine infer`: rows appended whole, and enough beside them to continue after any interruption.

`x.jsonl` (or `x.csv`) grows as results arrive; its state (`state.py`) lies beside it. `--resume` verifies the rows
by their sha256, drops a torn last line and continues with the pictures that have no row yet. `--retry-failed`
removes the rows of failed pictures first; until they have new ones, `.x.jsonl.retry.json` lists them. A photograph
has a row for each face: where the last of them is missing all are dropped, and it is answered again.
"""

import csv
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..errors import OutputError
from ..system.files import open_atomic
from ..wording import pluralise
from .face_formats import make_face_format
from .face_rows import ends_picture
from .formats import make_format
from .rows import Row, decode_path
from .sources import skip_finished
from .state import get_retry_path, get_state_path, read_retries, read_state, write_retries, write_state

SYNC_SECONDS = 1.0  # of work at most is lost when the machine loses power


class Target(NamedTuple):
    """An output file that can be written, and that no other process writes; made by `output.claim`.

    Attributes:
        path: of the file.
        resume: whether to continue it, if it exists.
    """

    path: Path
    resume: bool


class Journal:
    """An output file being written; a context manager.

    Attributes:
        finished: how often each path was answered when the file was opened: a list may hold a path twice. Paths
            are those of the file system, for two names may look alike in their rows.
        failed: how many of those answers are errors.
    """

    def __init__(
        self, target: Target, labels: Sequence[str], identity: dict[str, Any], *, retry_failed: bool = False
    ) -> None:
        """Open or make the file.

        Args:
            target: of `output.claim`; a `.jsonl` or `.csv` file.
            labels: the model's.
            identity: what made the rows (model digest, options); rows of another are not continued. With a true
                `faces` they are those of `face_rows`.
            retry_failed: remove failed rows from a file that is continued, so that their pictures run again.

        Raises:
            OutputError: if the file cannot be continued or written, or its format cannot hold such labels.
        """
        self.path, self.state_path = target.path, get_state_path(target.path)
        make = make_face_format if identity.get("faces") else make_format
        self._format = make(self.path.suffix, labels)
        self._identity = identity
        self._synced_at = time.monotonic()
        self._retries: list[str] = []  # pictures whose failed rows were removed
        self._reset()
        try:
            if target.resume and self._holds_rows():
                self._resume(retry_failed)
            else:
                self._start()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def select_unfinished(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield the paths to answer: those whose failed rows were removed, then those of `paths` without a row."""
        return chain(self._retries, skip_finished(paths, self.finished + Counter(self._retries)))

    def write(self, rows: Sequence[Row]) -> None:
        """Append the rows of whole pictures, all of them or none."""
        try:
            self._append(self._format.encode(rows))
            self._rows += len(rows)
            if time.monotonic() - self._synced_at > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; it keeps {pluralise(self._rows, 'row')}, "
                "go on with --resume once that is mended"
            ) from error

    def read_rows(self) -> Iterator[Row]:
        """Read the rows back from the file."""
        return (row for _, row in self._read_lines() if row is not None)

    def close(self) -> None:
        """Close the file as it is; it can be continued."""
        try:
            self._sync()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; go on with --resume") from error
        finally:
            os.close(self._file)

    def finish(self) -> None:
        """Close the file, now that every picture has its row."""
        self.close()
        get_retry_path(self.path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            with suppress(OutputError):  # the first error is the one to report
                self.close()

    def _reset(self) -> None:
        """Set the counters of an empty file."""
        self.finished: Counter[str] = Counter()
        self.failed = self._rows = self._size = 0
        self._digest = hashlib.sha256()  # of the bytes so far

    def _holds_rows(self) -> bool:
        """Return whether there is anything to continue: a run that was killed early leaves an empty file."""
        if not self.path.exists():
            return False
        return self.path.stat().st_size > 0 or get_retry_path(self.path).exists()

    def _start(self) -> None:
        """Make the file, or empty it."""
        get_retry_path(self.path).unlink(missing_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._sync()  # first, so that no row is without a state
        if self._format.header:
            self._append(self._format.header)
            self._sync()

    def _resume(self, retry_failed: bool) -> None:
        """Read the file's rows, open it, and cut off a torn last line."""
        self._count_rows(*read_state(self.path, self._identity))
        self._retries = list(skip_finished(read_retries(self.path), self.finished))
        retried = retry_failed and self.failed > 0
        if retried:
            self._remove_failed_rows()
            self._count_rows(0, "")
        self._file = os.open(self.path, os.O_RDWR)
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)
        if not self._size:
            self._append(self._format.header)
        if retried:
            self._sync()

    def _append(self, text: str) -> None:
        # Half a surrogate pair, which a model's label may hold, becomes the escape that JSON has for it.
        data = memoryview(text.encode(errors="backslashreplace"))
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)  # also on a full disk no torn row stays behind
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)
        self._digest.update(data)

    def _sync(self) -> None:
        os.fsync(self._file)
        write_state(self.path, self._identity, self._rows, self._size, self._digest.hexdigest())
        self._synced_at = time.monotonic()

    def _count_rows(self, synced: int, digest: str) -> None:
        """Count the file's rows.

        Args:
            synced: bytes of the file when its state was written; rows may follow.
            digest: sha256 of these bytes.

        Raises:
            OutputError: if they were changed.
        """
        self._reset()
        unchanged = synced == 0
        for raw, row in self._read_lines():
            if row is not None:
                self.finished[decode_path(row)] += ends_picture(row)
                self.failed += row["error"] is not None
                self._rows += 1
            self._size += len(raw)
            self._digest.update(raw)
            unchanged |= self._size == synced and self._digest.hexdigest() == digest
        if not unchanged:
            raise OutputError(
                f"cannot resume {self.path}: its rows were changed since they were written; use --overwrite"
            )

    def _read_lines(self) -> Iterator[tuple[bytes, Row | None]]:
        """Yield each line of the header and of whole pictures, and its row; the header has none."""
        held: list[tuple[bytes, Row]] = []  # of a picture whose last row is still to come
        with self.path.open("rb") as file:
            for number, raw in enumerate(file):
                if not raw.endswith(b"\n"):
                    return
                if number or not self._format.header:
                    held.append((raw, self._decode(raw, number + 1)))
                    if ends_picture(held[-1][1]):
                        yield from held
                        held.clear()
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

    def _remove_failed_rows(self) -> None:
        """Replace the file by one without its failed rows, and list their pictures beside it.

        A kill at any moment leaves the file with all its rows, or without these and with the list.
        """
        real = Path(os.path.realpath(self.path))  # a link stays one
        with open_atomic(real) as kept:
            for raw, row in self._read_lines():
                if row is not None and row["error"]:
                    self._retries.append(decode_path(row))
                else:
                    kept.write(raw)
            write_retries(self.path, self._retries)
            # A state of no bytes holds for the old and for the new file.
            write_state(self.path, self._identity, 0, 0, "")
        _sync_folder(real.parent)


def _sync_folder(folder: Path) -> None:
    """Write a file's new name to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
