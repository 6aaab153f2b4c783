"""Write results as a Parquet file: columns that data frames and query engines read.

A Parquet file can be read only once its last bytes are written, and nothing can be appended to it. So the rows
grow in a journal beside it, `x.parquet.rows.jsonl`, which can be resumed as any. At the end they
become `x.parquet`, as a whole or not at all, and the journal is removed. A kill at any moment leaves the journal,
which `--resume` continues. Of a finished run, `--resume` makes the journal again from the Parquet file, whose
metadata hold what made it.
"""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from ..errors import OutputError, UnavailableError, format_install_command
from ..system.files import open_atomic
from .formats import check_labels
from .journal import Journal, Target
from .state import VERSION, check_version, get_journal_path, get_restored_path, get_state_path

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    raise UnavailableError(
        f"a Parquet file needs pyarrow ({error}); install it with: {format_install_command('parquet')}"
    ) from error

ROW_GROUP = 10_000  # rows
MADE_BY = b"fmengine"  # the key of the file's metadata that holds the identity, as JSON


class ParquetJournal(Journal):
    """A Parquet file being written; see `Journal`. Its `path` is the journal's.

    Columns: those of a row of `rows.to_row`, or of `face_rows`; `probabilities` and `error` are structures.
    """

    def __init__(
        self, target: Target, labels: Sequence[str], identity: dict[str, Any], *, retry_failed: bool = False
    ) -> None:
        check_labels(labels)
        self.parquet_path, journal = target.path, get_journal_path(target.path)
        self._schema = _make_schema(labels, identity)
        if target.resume and target.path.exists() and not journal.exists():
            self._restore(labels)
        # A journal without its Parquet file was left by a killed run; without `resume` it is replaced.
        super().__init__(Target(journal, target.resume), labels, identity, retry_failed=retry_failed)

    def finish(self) -> None:
        """Turn the journal into the Parquet file, and remove the journal."""
        super().finish()
        rows = self.read_rows()
        try:
            with (
                open_atomic(self.parquet_path) as file,
                pyarrow.parquet.ParquetWriter(file, self._schema) as writer,
            ):
                while group := list(islice(rows, ROW_GROUP)):
                    writer.write_table(pyarrow.Table.from_pylist(group, self._schema))
            self.path.unlink()  # before its state, without which it could not be continued
            self.state_path.unlink()
        except OSError as error:
            raise OutputError(
                f"cannot write {self.parquet_path}: {error.strerror or error}; every row is in {self.path.name}, "
                "go on with --resume"
            ) from error

    def _restore(self, labels: Sequence[str]) -> None:
        """Restore the journal of a finished run from its Parquet file, as a whole or not at all."""
        journal, partial = get_journal_path(self.parquet_path), get_restored_path(self.parquet_path)
        try:
            with pyarrow.parquet.ParquetFile(self.parquet_path) as file:
                made_by = json.loads((file.schema_arrow.metadata or {})[MADE_BY])
                check_version(self.parquet_path, made_by.pop("version", None))
                with Journal(Target(partial, resume=False), labels, made_by) as restored:
                    for batch in file.iter_batches(ROW_GROUP):
                        rows = batch.to_pylist()
                        restored.write([{k: v for k, v in r.items() if k != "path_encoding" or v} for r in rows])
            get_state_path(partial).replace(get_state_path(journal))
            partial.replace(journal)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pyarrow.ArrowException) as error:
            raise OutputError(
                f"cannot resume {self.parquet_path}: it is no result of fmengine, or damaged ({error}); "
                "use --overwrite"
            ) from error


def make_fields(labels: Sequence[str], *, faces: bool = False) -> "dict[str, pyarrow.DataType]":
    """Make the columns of a row of `rows.to_row`, or of `face_rows`, and their types."""
    text, number, count = pyarrow.string(), pyarrow.float64(), pyarrow.int32()
    place = {
        "face": count,
        "faces": count,
        "box": pyarrow.list_(number),
        "score": number,
        "landmarks": pyarrow.list_(pyarrow.list_(number)),
    }
    return {
        "path": text,
        **(place if faces else {}),
        "label": text,
        "confidence": number,
        "probabilities": pyarrow.struct([(label, number) for label in labels]),
        "reason": text,
        "error": pyarrow.struct([("kind", text), ("message", text)]),
        "path_encoding": text,
    }


def _make_schema(labels: Sequence[str], identity: dict[str, Any]) -> "pyarrow.Schema":
    metadata = {MADE_BY: json.dumps({"version": VERSION, **identity})}
    return pyarrow.schema(make_fields(labels, faces=bool(identity.get("faces"))), metadata=metadata)
