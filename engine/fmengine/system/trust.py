"""Read a file of code only where nobody but the user can have written it.

Such a file runs with the user's rights, so the trust boundary is the user: the folder and the file belong to the
effective user, nobody else may write them, and neither is a symbolic link. The file is read once, and those very
bytes are used.
"""

import os
import stat
from pathlib import Path

from ..errors import FmengineError


class TrustError(FmengineError):
    """A folder or a file could have been written by somebody else."""


def open_private_folder(folder: Path) -> int:
    """Open a folder as a descriptor, so that the folder that was checked is the one that is used.

    Raises:
        TrustError: if somebody else may write it.
        OSError: if it cannot be opened; a symbolic link is not followed.
    """
    if not hasattr(os, "geteuid"):  # as on Windows
        raise TrustError(f"cannot trust {folder}: this system has no owners of files as POSIX has")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_owner(os.fstat(descriptor), folder)
    except TrustError:
        os.close(descriptor)
        raise
    return descriptor


def read_private(name: str, folder: int, path: Path) -> bytes:
    """Read a regular file in a folder that `open_private_folder` opened; `path` is its name in messages.

    Raises:
        FileNotFoundError: if there is none.
        TrustError: if it is none, a symbolic link, or somebody else may write it.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP: a symbolic link
        raise TrustError(f"cannot trust {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TrustError(f"cannot trust {path}: it is no regular file")
        _check_owner(status, path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_private_file(path: Path) -> bytes:
    """Read a file that nobody else could have written, in a folder of which the same is true.

    Raises:
        TrustError: if somebody else could have, or it cannot be found out.
    """
    try:
        folder = open_private_folder(path.parent)
    except OSError as error:  # ENOTDIR: a symbolic link
        raise TrustError(f"cannot trust the folder {path.parent}: {error.strerror}") from error
    try:
        return read_private(path.name, folder, path)
    except FileNotFoundError as error:
        raise TrustError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(folder)


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise TrustError(
            f"cannot trust {path}: it belongs to user {status.st_uid}, and this process runs as {os.geteuid()}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        shared = status.st_mode & stat.S_ISVTX  # as /tmp, which is to stay so
        remedy = "use a folder of your own" if shared else f"run: chmod go-w {path}"
        raise TrustError(f"cannot trust {path}: others may write it; {remedy}")
