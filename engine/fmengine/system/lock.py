"""Allow one writer for each file: a lock that the system releases when its process ends, however it ends."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

try:
    import fcntl
except ImportError:  # as on Windows, where two writers go unnoticed
    fcntl = None  # type: ignore[assignment]

TRIES = 100  # in each of which another run ends as we begin

log = logging.getLogger(__name__)


def get_lock_path(path: Path) -> Path:
    """Return where the lock of a file is: beside the file itself, whatever link leads to it."""
    real = Path(os.path.realpath(path))
    return real.parent / f".{real.name}.lock"


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file at the same time.

    The lock is a file of its own, for the file may be replaced as a whole. It is removed at the end; what a
    killed process leaves behind is empty, and held by nobody. Where the system or the drive has no locks, or
    the folder takes no files, nothing is held.

    Raises:
        OutputError: if another process holds it.
    """
    lock = get_lock_path(path)
    descriptor = _acquire(lock, path)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                lock.unlink(missing_ok=True)  # while it is ours: a moment later it may be another's
            os.close(descriptor)


def _acquire(lock: Path, path: Path) -> int | None:
    """Return the descriptor of a lock that is ours; None where there can be none."""
    for _ in range(TRIES if fcntl else 0):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # whoever writes the file itself reports what is wrong with its folder
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, descriptor):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"another process writes {path}; wait until it is done, or choose another name"
            ) from error
        except OSError as error:
            os.close(descriptor)
            log.warning("cannot lock %s: %s; start no other run that writes it", path, error.strerror)
            return None
        os.close(descriptor)  # of a file that was removed by whoever held it before us
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
