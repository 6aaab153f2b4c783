"""Let one process at a time write a file: by a lock that the system releases when its process ends."""

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

TRIES = 100  # each fails where another run removes its lock just then

log = logging.getLogger(__name__)


def get_lock_path(path: Path) -> Path:
    """Return the path of a file's lock: beside the file itself, whatever link leads to it."""
    real = Path(os.path.realpath(path))
    return real.parent / f".{real.name}.lock"


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file at the same time.

    The lock is a file of its own, for the file may be replaced as a whole. It is removed at the end; a killed
    process leaves it behind, empty and not held. Where the system or the drive has no locks, or the folder takes
    no files, nothing is held.

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
                lock.unlink(missing_ok=True)  # while it is held: a moment later it may be another process's
            os.close(descriptor)


def _acquire(lock: Path, path: Path) -> int | None:
    """Acquire the lock, and return its descriptor; None where there can be none.

    Raises:
        OutputError: if another process holds it.
    """
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
        os.close(descriptor)  # of a file that its former holder has removed
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
