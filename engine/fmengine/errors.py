"""Errors: what happened, what was expected and what to do.

Every error that fmengine raises on purpose is an `FmengineError`; anything else is a bug of ours.
"""

from enum import StrEnum
from typing import Any


def format_install_command(extras: str) -> str:
    """Format the command that installs extras, in a checkout: the package index has another `fmengine`."""
    return f"pip install '.[{extras}]' in a checkout of fmengine"


class FmengineError(Exception):
    """Base class of every error that fmengine raises on purpose.

    Attributes:
        exit_code: that the command line exits with.
    """

    exit_code = 2


class ModelError(FmengineError):
    """A model file cannot be used: damaged, not ONNX, without metadata, or not of the kind that is needed."""


class DataError(FmengineError):
    """Training or evaluation data cannot be used as a whole."""


class OutputError(FmengineError):
    """A result cannot be written, or must not be overwritten."""


class BackendError(FmengineError):
    """A backend does not work on this machine. `auto` tries the next one; a backend chosen by name raises this."""


class RefusedModelError(BackendError, ModelError):
    """A backend does not run this model file; another may."""


class UnavailableError(BackendError):
    """This machine lacks a library, a device or a driver that is needed."""

    exit_code = 4


class DeviceError(BackendError):
    """A GPU failed, or has no room for a batch."""

    exit_code = 4


class NoRoomError(DeviceError):
    """A GPU, or the host, has no room for a buffer. A smaller batch may fit."""


class ClosedError(FmengineError):
    """An engine, or an iterator of its results, is used after `close`."""

    def __init__(self, message: str = "this engine is closed; load another with Engine.load()") -> None:
        super().__init__(message)


class BusyError(FmengineError):
    """An engine has as many pictures in flight as it accepts; try again later."""


class DeadlineError(FmengineError):
    """An answer did not come in time."""


class Kind(StrEnum):
    """Why one picture has no label. The list is closed: a row's `error.kind` is one of these."""

    NOT_FOUND = "not_found"  # no file of that name
    NOT_A_FILE = "not_a_file"  # a folder, a pipe, a device
    UNREADABLE = "unreadable"  # the file exists, the system refuses to read it
    EMPTY = "empty"  # zero bytes, or an array without pixels
    NOT_AN_IMAGE = "not_an_image"  # no known image format
    TRUNCATED = "truncated"  # the file ends before the picture does
    CORRUPT = "corrupt"  # a known format whose content cannot be decoded
    FILE_TOO_LARGE = "file_too_large"  # over the limit of encoded bytes
    TOO_LARGE = "too_large"  # over the limit of pixels
    OUT_OF_MEMORY = "out_of_memory"  # within the limits, but there was no memory for it
    TIMEOUT = "timeout"  # took longer than a file may, where decoding is isolated; a stream that is mute
    CRASHED = "crashed"  # its decoder died, where decoding is isolated
    UNSUPPORTED = "unsupported"  # a source, dtype, shape or format that fmengine does not take
    NOT_FINITE = "not_finite"  # the model's probabilities are NaN or infinite
    INTERNAL = "internal"  # an unexpected exception of a library; `--debug` logs its traceback


class SourceError(FmengineError):
    """One picture cannot be read. Other pictures are not affected.

    Attributes:
        kind: what went wrong, one of `Kind`.
        message: the same for a person, on one line, without the source.
        source: the picture's name, as `face.jpg`; None where it is not known.
    """

    exit_code = 3

    def __init__(self, kind: Kind, message: str, source: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = " ".join(message.split())
        self.source = source

    def __str__(self) -> str:
        return super().__str__() if self.source is None else f"{self.source}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all arguments: by default it is the message alone, on which a process pool would hang."""
        return type(self), (self.kind, self.message, self.source)
