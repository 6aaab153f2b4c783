"""Files that a command writes: checked before the work begins, and replaced as a whole when it is done."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError


def temporary_of(path: Path) -> Path:
    """Where a file that is replaced as a whole is until then; what a killed run may leave behind."""
    return path.parent / f".{path.name}.tmp"


def check_target(path: Path, suffixes: Sequence[str], *, overwrite: bool, hint: str = "") -> bool:
    """See that a file can be written, so that no work is lost for a wrong name at its end.

    Args:
        path: of the file.
        suffixes: that its name may end in.
        overwrite: whether one that exists may be replaced.
        hint: what else could be done where one exists, for the message.

    Returns:
        Whether it exists.

    Raises:
        OutputError: for another suffix, a folder that is missing or may not be written, a name that is taken by
            something else than a file, or a file that exists and must not be replaced.
    """
    if path.suffix not in suffixes:
        raise OutputError(f"cannot write {path}; the name must end in {' or '.join(suffixes)}")
    # `os.path` answers that a name too long for the file system does not exist; `pathlib` raises.
    exists = os.path.lexists(path)
    if exists and not os.path.isfile(path):
        raise OutputError(f"cannot write {path}: it is not a regular file; choose another name")
    if exists and not overwrite:
        raise OutputError(f"{path} exists; {hint}replace it with --overwrite")
    _try_to_write(path)
    return exists


def write_file(path: Path, data: str | bytes) -> None:
    """Write a file as a whole or not at all; text as UTF-8.

    Raises:
        OutputError: if it cannot be written.
    """
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        raise


def _try_to_write(path: Path) -> None:
    """Make the temporary file, and remove it: permissions alone do not tell of a read-only or foreign drive."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    temporary = temporary_of(path)
    try:
        temporary.open("ab").close()
        temporary.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
