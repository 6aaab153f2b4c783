"""Keep what is built and measured on this machine in a private folder, such as cubins and TensorRT engines.

Nobody but the user can have written it (`trust.py`). A file begins with its manifest (`manifest.py`); it is read
once, checked, and those very bytes are used.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BackendError
from .files import open_atomic
from .manifest import Key, StaleError, make_file_name, pack, unpack
from .trust import TrustError, open_private_folder, read_private

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
            content = read_private(name, folder, path)
        except FileNotFoundError:
            return None
        except TrustError as error:
            raise CacheError(f"{error}; or remove it, or set FMENGINE_CACHE") from error
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
            descriptor = open_private_folder(self.folder)
        except TrustError as error:
            raise CacheError(f"{error}; or set FMENGINE_CACHE to a folder of your own") from error
        except OSError as error:
            raise CacheError(
                f"cannot use the cache folder {self.folder}: {error.strerror}; set FMENGINE_CACHE to a folder of "
                "your own that is no symbolic link"
            ) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def write_private_file(path: Path, data: bytes) -> None:
    """Write a built file outside the cache: whole or not at all, and nobody but its owner may read or write it.

    Raises:
        OSError: if it cannot be written.
    """
    with open_atomic(path, private=True) as file:
        file.write(data)


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
