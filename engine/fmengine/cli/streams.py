"""The standard streams: closed ones, encodings that lack characters, libraries in C that write to stderr."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class LogStream(io.TextIOBase):
    """Stands for stderr and turns each line into a record, whoever writes it. It is no terminal."""

    encoding, errors = "utf-8", "backslashreplace"  # which click reads

    def __init__(self, below: TextIO, log: Callable[[str], None]) -> None:
        """Take the stream that records are written to, and what makes a record of a line."""
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

    A stream that the caller closed (`>&-`) leads nowhere: else the next file that is opened would get its number,
    and with it what libraries written in C complain of. A character that a stream's encoding lacks is escaped.
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
    """Let stdout lead nowhere, where nothing more can be written to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def silence_decoders() -> Iterator[None]:
    """Keep decoders written in C off stderr: they complain there, file by file, of what is answered with a row."""
    stderr = sys.stderr
    if isinstance(stderr, LogStream):  # whose descriptor leads nowhere already
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
    """Open a stream's file again for us alone; its descriptor, which libraries in C know, then leads nowhere.

    A stream that is closed, or none of the system's, is returned as it is.
    """
    try:
        stream.flush()
        kept = os.dup(stream.fileno())
    except (OSError, ValueError):
        return stream
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
    return open(kept, "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
