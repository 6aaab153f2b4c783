"""Read files in few system calls, check names before the work begins, and replace files as a whole."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, overload

from ..errors import Kind, OutputError, SourceError


def read_file(path: str, max_bytes: int) -> bytes:
    """Read a regular file whole. Pipes, devices and folders are never opened.

    Each system call releases the interpreter's lock, and waits for it again where other threads decode: hence four
    calls, where a file object makes eight.

    Raises:
        SourceError: of the kind `not_found`, `not_a_file`, `unreadable` or `file_too_large`.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a device or a socket"
            raise SourceError(Kind.NOT_A_FILE, f"it is {found}; expected a regular file")
        if status.st_size > max_bytes:
            raise make_size_error(max_bytes)
        file = os.open(path, os.O_RDONLY)
        try:
            # One byte more than the size: fewer show that this was all, more that the file grew since `stat`.
            data = os.read(file, status.st_size + 1)
            if len(data) != status.st_size:
                data += _read_rest(file, max_bytes + 1 - len(data))
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise make_read_error(error) from error
    if len(data) > max_bytes:
        raise make_size_error(max_bytes)
    return data


def make_read_error(error: OSError | ValueError) -> SourceError:
    """Make the error of a file that cannot be read, from what the system says.

    A ValueError is a name with a null byte, which no file has.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR) or isinstance(error, ValueError):
        return SourceError(Kind.NOT_FOUND, "no such file")
    return SourceError(Kind.UNREADABLE, f"cannot read the file: {os.strerror(number) if number else error}")


def make_size_error(max_bytes: int) -> SourceError:
    """Make the error of a file that has more bytes than it may."""
    return SourceError(Kind.FILE_TOO_LARGE, f"over {max_bytes:,} bytes, the limit for one file")


def _read_rest(file: int, max_bytes: int) -> bytes:
    """Read from a file's position, up to a number of bytes."""
    parts = []
    while max_bytes > 0 and (part := os.read(file, min(max_bytes, 1 << 20))):
        parts.append(part)
        max_bytes -= len(part)
    return b"".join(parts)


def get_temporary_path(path: Path) -> Path:
    """Return where a file is written before it takes its name; a killed run may leave that file behind."""
    return path.parent / f".{path.name}.tmp"


def check_target(path: Path, suffixes: Sequence[str], *, overwrite: bool, hint: str = "") -> bool:
    """Check that a file can be written, before the work whose result it is to hold.

    Args:
        path: of the file.
        suffixes: that its name may end in.
        overwrite: whether one that exists may be replaced.
        hint: another advice for the message where one exists.

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
    try:
        with open_atomic(path) as file:
            file.write(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


@overload
def open_atomic(
    path: Path, mode: Literal["wb"] = "wb", *, folder: int | None = None, private: bool = False
) -> AbstractContextManager[IO[bytes]]: ...


@overload
def open_atomic(
    path: Path, mode: Literal["w"], *, folder: int | None = None, private: bool = False
) -> AbstractContextManager[IO[str]]: ...


@contextmanager
def open_atomic(
    path: Path, mode: Literal["w", "wb"] = "wb", *, folder: int | None = None, private: bool = False
) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces the one at `path` once it is whole and on the disk.

    Until then it is at `get_temporary_path(path)`. Where anything fails, also by Ctrl-C, it is removed, and an old
    file stays.

    Args:
        path: of the file.
        mode: `wb`, or `w` for text as UTF-8.
        folder: descriptor of the folder that `path` starts from; the current one by default.
        private: only its owner may read and write it, and the temporary name is a random one.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}") if private else get_temporary_path(path)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL | os.O_NOFOLLOW if private else os.O_TRUNC)
    permissions = 0o600 if private else 0o666
    descriptor = os.open(temporary, flags, permissions, dir_fd=folder)
    try:
        with open(descriptor, mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _try_to_write(path: Path) -> None:
    """Make the temporary file, and remove it: permissions alone do not show that a drive is read-only."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    temporary = get_temporary_path(path)
    try:
        temporary.open("ab").close()
        temporary.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
