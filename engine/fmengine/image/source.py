"""Distinguish kinds of sources, read their bytes, and name them in messages."""

import io
import os
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from ..errors import Kind, SourceError
from ..options import Limits
from ..system.files import make_size_error
from ..types import BinaryFile, Encoded, Source
from .faults import describe_exception

DLPACK_CPU = 1  # DLPack's kDLCPU
MAX_READ = 1 << 20  # bytes to request of a file-like at once: some allocate all that is requested


def is_encoded(source: object) -> TypeGuard[Encoded]:
    """Return whether a source is a path or a file's bytes, which are yet to be decoded."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)


def is_on_device(source: object) -> bool:
    """Return whether a source lies in a GPU's memory."""
    if isinstance(source, np.ndarray | str | bytes):
        return False
    try:
        device = getattr(source, "__dlpack_device__", None)
        if device is not None:
            return bool(device()[0] != DLPACK_CPU)
        return hasattr(source, "__cuda_array_interface__")
    except Exception:  # of the library that holds it; `decode` raises what is wrong
        return False


def is_file_like(source: object) -> TypeGuard[BinaryFile]:
    """Return whether a source is an open file, or another object with a method `read`, and of no other kind."""
    if is_encoded(source) or isinstance(source, np.ndarray | Image.Image):
        return False
    try:
        return callable(getattr(source, "read", None))
    except Exception:  # an attribute may be code
        return False


def get_bytes(source: bytes | bytearray | memoryview) -> bytes:
    """Return an encoded picture's bytes. Raises SourceError for a view that gives none, as when it is released."""
    try:
        return bytes(source)
    except (ValueError, BufferError, TypeError) as error:
        raise SourceError(Kind.UNSUPPORTED, f"its bytes cannot be read: {error}") from error


def get_path(source: str | os.PathLike[str]) -> str:
    """Return a path as text. Raises SourceError where its `__fspath__` fails."""
    try:
        return str.__str__(os.fsdecode(source))  # also of a subclass of `str`, which `fsdecode` returns as it is
    except Exception as error:
        raise SourceError(
            Kind.UNSUPPORTED,
            f"its path cannot be read: {describe_exception(error)}; expected text, or a pathlib.Path",
        ) from error


def read_file_like(file: BinaryFile, limits: Limits) -> bytes:
    """Read a file-like from its current position to its end, at most one byte more than `limits.max_bytes`.

    Raises:
        SourceError: of the kind `unsupported` for one that is open as text, `unreadable` for one that is closed or
            fails, `file_too_large`.
    """
    if isinstance(file, io.TextIOBase):
        raise SourceError(Kind.UNSUPPORTED, "the file is open as text; expected one that is open in binary mode")
    parts: list[bytes] = []
    size = 0
    while part := _read_part(file, min(MAX_READ, limits.max_bytes + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > limits.max_bytes:
            raise make_size_error(limits.max_bytes)
    return b"".join(parts)


def _read_part(file: BinaryFile, size: int) -> bytes:
    """Read up to `size` bytes; none at the end."""
    try:
        part: Any = file.read(size)
    except (SourceError, MemoryError):
        raise
    except UnicodeError as error:
        raise SourceError(Kind.UNSUPPORTED, f"the file is read as text: {error}; expected bytes") from error
    except Exception as error:  # such as ValueError, where it is closed, or anything of whatever library it is
        raise SourceError(Kind.UNREADABLE, f"cannot read the file: {describe_exception(error)}") from error
    if isinstance(part, bytes):
        return part
    if isinstance(part, bytearray | memoryview):
        return get_bytes(part)
    if part is None:
        raise SourceError(Kind.UNREADABLE, "cannot read the file: it has no bytes yet, and does not wait for them")
    raise SourceError(Kind.UNSUPPORTED, f"its read() gives {type(part).__name__}; expected bytes")


def describe_source(source: Source) -> str:
    """Name a source for a message, on one line: a path as it is, anything else by its type. Never raises."""
    try:
        return _describe(source)
    except Exception:  # a source's attributes may be code
        return f"<{type(source).__name__}>"


def with_source(error: SourceError, source: Source) -> SourceError:
    """Make the same error, with its source named in its text.

    Raise it `from error.__cause__`: the two are one error.
    """
    if error.source is not None:
        return error
    named = SourceError(error.kind, error.message, describe_source(source))
    named.__cause__ = error.__cause__
    return named.with_traceback(error.__traceback__)


def _describe(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return _as_line(get_path(source))
    if isinstance(source, bytes | bytearray):
        return f"<{len(source)} bytes>"
    if isinstance(source, memoryview):
        return f"<{source.nbytes} bytes>"
    if isinstance(source, np.ndarray):
        return f"array of {source.shape} {source.dtype}"
    if isinstance(source, Image.Image):
        return f"PIL image of {source.width}×{source.height}, mode {source.mode}"
    if is_file_like(source):
        name = getattr(source, "name", None)
        return f"file {_as_line(name)}" if isinstance(name, str) else f"<{type(source).__name__}>"
    if (shape := getattr(source, "shape", None)) is not None:
        return _as_line(f"{type(source).__name__} of {tuple(shape)}")
    return f"<{type(source).__name__}>"


def _as_line(name: str) -> str:
    """Escape what of a name cannot be printed, so that it is one line."""
    return name if name.isprintable() else ascii(name)
