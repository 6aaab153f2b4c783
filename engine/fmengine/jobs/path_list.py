"""Read a list of paths as it arrives, such as that of `fmengine infer -` on stdin."""

import codecs
import io
import os
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, cast

READ_BYTES = 1 << 16
# Byte order marks, which programs such as PowerShell's `>` write, and their encodings.
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class PathReader(Iterator[str]):
    """Reads paths, separated by NUL if the first line holds one, else one a line; empty ones are left out.

    It reads the descriptor and not the stream's buffer: a thread that waits in there holds a lock that the
    interpreter needs at its exit.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Take an open stream of which nothing was read, such as `sys.stdin.buffer`, or an `io.BytesIO`."""
        self._stream = cast(io.BufferedReader, stream)
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, AttributeError):  # such as an `io.BytesIO`
            self._descriptor = None
        self._separator = b""  # until the first line is read
        self._text = b""  # the part of a path that is read so far
        self._decoder: codecs.IncrementalDecoder | None = None  # of UTF-16
        self._knows_encoding = self._ended = False
        self._paths: deque[str] = deque()

    def read(self) -> list[str] | None:
        """Read once, and return the paths that are complete, perhaps none; None at the end of the list."""
        if self._ended:
            return None
        if self._descriptor is None:
            part = self._stream.read1(READ_BYTES)
        else:
            part = os.read(self._descriptor, READ_BYTES)
        self._ended = not part
        text = self._decode(part)
        self._text += text
        return [os.fsdecode(name) for name in self._take_names() if name]

    def __next__(self) -> str:
        """Wait for the next path and return it; StopIteration at the end."""
        while not self._paths:
            if (paths := self.read()) is None:
                raise StopIteration
            self._paths.extend(paths)
        return self._paths.popleft()

    def _decode(self, part: bytes) -> bytes:
        """Return the part in UTF-8, without a mark at the beginning of the list.

        Where no mark names UTF-16, bytes stay as they are, for names are bytes.
        """
        if not self._knows_encoding:
            part, self._text = self._text + part, b""
            if not self._ended and any(mark.startswith(part) and mark != part for mark in MARKS):
                return part  # perhaps the beginning of a mark
            self._knows_encoding = True
            for mark, encoding in MARKS.items():
                if part.startswith(mark):
                    part = part[len(mark) :]
                    if encoding.startswith("utf-16"):
                        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        return self._decoder.decode(part).encode() if self._decoder else part

    def _take_names(self) -> list[bytes]:
        """Take the complete names from the text."""
        if not self._knows_encoding:
            return []
        if not self._separator:
            if not (self._ended or b"\n" in self._text or b"\0" in self._text):
                return []
            self._separator = b"\0" if b"\0" in self._text.partition(b"\n")[0] else b"\n"
        *names, self._text = self._text.split(self._separator)
        if self._ended:
            names.append(self._text)
        return names if self._separator == b"\0" else [name.rstrip(b"\r") for name in names]
