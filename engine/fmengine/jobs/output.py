"""Claim and open the output of a run: checked and locked first, then opened in the format of its suffix."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..system.files import check_target
from ..system.lock import hold
from .journal import Journal, Target
from .state import get_journal_path

FORMATS = (".jsonl", ".csv", ".parquet")


@contextmanager
def claim(path: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Target]:
    """Check that an output file can be written, and keep other processes from writing it meanwhile.

    Args:
        path: ends in one of `FORMATS`.
        resume: continue the file, if there is one.
        overwrite: replace an old file.

    Raises:
        OutputError: if another process writes it, `files.check_target` refuses it, or it exists and is neither to
            be continued nor to be replaced.
        UnavailableError: if a library is missing that its format needs.
    """
    files = [path]
    if _choose_journal(path) is not Journal:
        files.append(get_journal_path(path))
    with hold(path):
        for file in files:
            check_target(file, FORMATS, overwrite=resume or overwrite, hint="go on with --resume, or ")
        yield Target(path, resume)


def open_output(
    target: Target, labels: Sequence[str], identity: dict[str, Any], *, retry_failed: bool = False
) -> Journal:
    """Open or make an output file in the format of its suffix; arguments and errors as of `Journal`."""
    return _choose_journal(target.path)(target, labels, identity, retry_failed=retry_failed)


def _choose_journal(path: Path) -> type[Journal]:
    if path.suffix != ".parquet":
        return Journal
    from .parquet import ParquetJournal  # here: it needs a library of its own

    return ParquetJournal
