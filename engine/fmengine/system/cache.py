"""Keep what is built and measured on this machine in a private folder, such as cubins and TensorRT engines.

A file of code runs with the user's rights, so the trust boundary is the user: the folder and its files belong to
the effective user, nobody else may write them, and no symbolic link is followed. A file begins with its manifest
(`manifest.py`). It is read once, checked, and those very bytes are used.
"""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BackendError
from .files import open_atomic
from .manifest import Key, StaleError, make_file_name, pack, unpack

try:
    import fcntl
except ImportError:  # as on Windows, where a file has no owner that this could check
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


class CacheError(BackendError):
    """The cache folder, or a file in it, cannot be used or trusted."""


def find_cache_folder() -> Path:
    """Find the cache folder: `$FMENGINE_CACHE`, or `fmengine` in the user's cache folder.

    Raises:
        CacheError: if there is none: a container's user may have neither a name nor `$HOME`.
    """
    if folder := os.environ.get("FMENGINE_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmengine"
    except RuntimeError as error:
        raise CacheError(
            "there is no home folder to keep a cache in; set FMENGINE_CACHE to a folder of your own"
        ) from error


class Cache:
    """Keeps built files by key. Processes that need the same one build it once."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take a folder, by default that of `find_cache_folder`, whose errors are raised."""
        self.folder = find_cache_folder() if folder is None else folder

    def get(self, kind: str, key: Key, build: Callable[[], bytes]) -> bytes:
        """Return the file for `key` from the cache, or build and keep it.

        Args:
            kind: ending of the file's name, such as `cubin`.
            key: everything that the bytes depend on.
            build: makes the bytes; called at most once.

        Raises:
            CacheError: if the folder cannot be made, locked or trusted. A full disk costs a warning alone.
        """
        name = make_file_name(kind, key)
        with self._open_folder() as folder:
            if (data := self._read(folder, name, key)) is not None:
                return data
            with _hold_lock(folder, f"{name}.lock", self.folder):
                if (data := self._read(folder, name, key)) is not None:  # another process built it meanwhile
                    return data
                data = build()
                self._keep(folder, name, pack(key, data))
                return data

    def load(self, kind: str, key: Key) -> bytes | None:
        """Return the file for `key`, or None where the cache has none; errors as for `get`."""
        with self._open_folder() as folder:
            return self._read(folder, make_file_name(kind, key), key)

    def store(self, kind: str, key: Key, data: bytes) -> None:
        """Keep the file for `key`, and replace an old one; errors as for `get`."""
        with self._open_folder() as folder:
            self._keep(folder, make_file_name(kind, key), pack(key, data))

    def _keep(self, folder: int, name: str, content: bytes) -> None:
        try:
            with open_atomic(Path(name), folder=folder, private=True) as file:
                file.write(content)
        except OSError as error:
            log.warning(
                "cannot keep %s (%s bytes): %s; it will be built again. Make room, or set FMENGINE_CACHE",
                self.folder / name,
                f"{len(content):,}",
                error.strerror,
            )

    def _read(self, folder: int, name: str, key: Key) -> bytes | None:
        """Read a file's bytes; None where there is none, or it is stale."""
        path = self.folder / name
        try:
            content = _read_private(name, path, folder)
        except FileNotFoundError:
            return None
        try:
            return unpack(content, key)
        except StaleError as error:
            log.warning("building %s again: %s", path, error)
            return None

    @contextmanager
    def _open_folder(self) -> Iterator[int]:
        """Open the folder as a descriptor, so that the folder that was checked is the one that is used."""
        if fcntl is None:
            raise CacheError("nothing is kept in a cache: this system has no owners of files as POSIX has")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise CacheError(
                f"cannot use the cache folder {self.folder}: {error.strerror}; set FMENGINE_CACHE to a folder of "
                "your own that is no symbolic link"
            ) from error
        try:
            _check_owner(os.fstat(descriptor), self.folder)
            yield descriptor
        finally:
            os.close(descriptor)


def read_file(path: Path, key: Key | None = None) -> bytes:
    """Read a built file outside the cache, under the same rules.

    Args:
        path: of the file.
        key: what it must have been built from and for; None takes any.

    Raises:
        CacheError: if the file cannot be read or trusted.
        StaleError: if it is not what fmengine wrote.
    """
    try:
        content = _read_private(str(path), path)
    except FileNotFoundError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}") from error
    try:
        return unpack(content, key)
    except StaleError as error:
        raise StaleError(f"{path} is refused: {error}") from error


def write_private_file(path: Path, data: bytes) -> None:
    """Write a built file outside the cache: whole or not at all, and nobody but its owner may read or write it.

    Raises:
        OSError: if it cannot be written.
    """
    with open_atomic(path, private=True) as file:
        file.write(data)


def _read_private(name: str, path: Path, folder: int | None = None) -> bytes:
    """Read a regular file that only its owner may write; `path` is its name in messages."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP: a symbolic link
        raise CacheError(f"cannot trust {path}: {error.strerror}; remove it, or set FMENGINE_CACHE") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CacheError(f"cannot trust {path}: it is no regular file; remove it, or set FMENGINE_CACHE")
        _check_owner(status, path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise CacheError(
            f"cannot trust {path}: it belongs to user {status.st_uid}, and this process runs as {os.geteuid()}; "
            "set FMENGINE_CACHE to a folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(f"cannot trust {path}: others may write it; run: chmod go-w {path}")


@contextmanager
def _hold_lock(folder: int, name: str, path: Path) -> Iterator[None]:
    """Hold a lock that one process can hold at a time; the system releases it when its process ends."""
    descriptor = -1
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process that builds %s", path / name.removesuffix(".lock"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise CacheError(
            f"cannot lock a file in the cache folder {path}: {error.strerror}; set FMENGINE_CACHE to a folder "
            "on a local disk"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)
