"""Set up the standard streams: closed ones, encodings that lack characters, libraries in C that use stderr."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class LogStream(io.TextIOBase):
    """Replaces stderr and logs each line, whoever writes it. It is no terminal."""

    encoding, errors = "utf-8", "backslashreplace"  # which click reads

    def __init__(self, below: TextIO, log: Callable[[str], None]) -> None:
        """Take the stream that log records are written to, and the function that logs a line."""
        self.below = below
        self._log = log
        self._unfinished = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            self._log(line)
        return len(text)


def open_streams() -> None:
    """Make stdout and stderr take whatever is written there.

    A stream that the caller closed (`>&-`) becomes the null device: otherwise the next file that is opened would
    get its number, and the messages of libraries in C. A character that a stream's encoding lacks is escaped.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Redirect stdout to the null device, once nothing more can be written to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def silence_decoders() -> Iterator[None]:
    """Keep decoders written in C off stderr, where they complain of each picture that becomes an error row."""
    stderr = sys.stderr
    if isinstance(stderr, LogStream):  # whose descriptor is the null device already
        yield
        return
    ours = take_descriptor(stderr)
    sys.stderr = ours
    try:
        yield
    finally:
        sys.stderr = stderr
        if ours is not stderr:
            os.dup2(ours.fileno(), stderr.fileno())
            with suppress(OSError):  # it may hold what could not be written
                ours.close()


def take_descriptor(stream: TextIO) -> TextIO:
    """Reopen a stream's file under another descriptor; its own, which libraries in C use, becomes the null device.

    A stream that is closed, or has no descriptor, is returned as it is.
    """
    try:
        stream.flush()
        kept = os.dup(stream.fileno())
    except (OSError, ValueError):
        return stream
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
    return open(kept, "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
