"""What the engine and a worker process say to each other: one message for a chunk of pictures, one back.

A message is a head of fixed size, numbers and bytes. Nothing in it is ever unpickled. Where memory is shared it
holds what is large; see `arena.py`.
"""

import json
import select
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import Kind

MAX_ANSWER = 4 * 1024 * 1024  # bytes; far above any, and below what a broken worker could claim
MAX_MESSAGE = 4096  # characters of a failure

_REQUEST = struct.Struct("<IBBHIQ")  # generation, slot, flags, pictures, bytes of the folder, of all that follows
_ANSWER = struct.Struct("<IBHI")  # generation, slot, pictures, bytes that follow
_NETWORK, _OBSERVE, _PATHS = 1, 2, 4  # flags; of the last, contents are paths alone, with NUL between them


class Request(NamedTuple):
    """What a worker is to do.

    Attributes:
        generation: a number that the answer repeats.
        slot: of the arena, for what comes of it.
        network: whether to run the network too.
        observe: whether to report how long each stage took.
        folder: the engine's current folder, from which relative paths start.
        contents: paths, and bytes of encoded pictures.
    """

    generation: int
    slot: int
    network: bool
    observe: bool
    folder: bytes
    contents: Sequence[str | bytes]

    def pack(self) -> list[bytes]:
        """Return the message, in parts."""
        flags = _NETWORK * self.network | _OBSERVE * self.observe
        if joined := _join_paths(self.contents):
            flags, parts = flags | _PATHS, [joined]
        else:
            blobs = [_encode(content) if isinstance(content, str) else content for content in self.contents]
            # The lowest bit of each says that it is a path.
            sizes = [2 * len(blob) + (type(c) is str) for blob, c in zip(blobs, self.contents, strict=True)]
            parts = [array("Q", sizes).tobytes(), *blobs]
        numbers = self.generation, self.slot, flags, len(self.contents), len(self.folder)
        return [_REQUEST.pack(*numbers, len(self.folder) + sum(map(len, parts))), self.folder, *parts]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker did.

    Attributes:
        generation: of the request.
        slot: of the request.
        pictures: how many it had.
        failures: index, kind and message of each picture that has no row.
        unplaced: indices of pictures that there was no room for; to be asked for again.
        observed: stage, begin and end of what was observed.
        error: why there is no answer for any of them, where that is no picture's fault.
    """

    generation: int
    slot: int
    pictures: int
    failures: list[tuple[int, Kind, str]] = field(default_factory=list)
    unplaced: list[int] = field(default_factory=list)
    observed: list[tuple[Any, float, float]] = field(default_factory=list)
    error: str = ""

    def pack(self) -> bytes:
        """Return the message."""
        body = b""
        if self.failures or self.unplaced or self.observed or self.error:
            parts = self.failures, self.unplaced, self.observed, self.error
            body = json.dumps(parts).encode()
        return _ANSWER.pack(self.generation, self.slot, self.pictures, len(body)) + body


class NonsenseError(Exception):
    """A message makes no sense: whoever sent it was taken over, or its memory is broken."""


def send(connection: socket.socket, parts: list[bytes], wait: Callable[[], None]) -> None:
    """Send a message through a socket that does not block; large parts are not copied together.

    Args:
        connection: to send it through.
        parts: of the message.
        wait: waits until more is taken; to raise ends it.

    Raises:
        OSError: if the other end is closed.
    """
    if sum(map(len, parts)) <= 1 << 20:
        parts = [b"".join(parts)]
    for part in parts:
        rest = memoryview(part)
        while rest:
            try:  # without SIGPIPE, which ends a program that does not ignore it
                rest = rest[connection.send(rest, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                wait()


def wait_for(connection: socket.socket, event: int, seconds: float) -> None:
    """Wait until a socket can be read or written. Raises TimeoutError."""
    poll = select.poll()
    poll.register(connection, event)
    if not poll.poll(1000 * seconds):
        raise TimeoutError(f"nothing for {seconds:g} seconds")


def receive_request(connection: socket.socket) -> Request | None:
    """Wait for a request; None once the engine is gone."""
    try:
        generation, slot, flags, pictures, name, following = _REQUEST.unpack(_receive(connection, _REQUEST.size))
        data = memoryview(_receive(connection, following))
    except ConnectionError:
        return None
    folder, data = bytes(data[:name]), data[name:]
    if flags & _PATHS:
        contents: list[str | bytes] = [*_decode(data).split("\0")]
    else:
        contents = _split(data, pictures)
    return Request(generation, slot, bool(flags & _NETWORK), bool(flags & _OBSERVE), folder, contents)


def _join_paths(contents: Sequence[str | bytes]) -> bytes:
    """Join paths, which takes a tenth of the time that each of them would take alone; empty for others."""
    try:
        joined = "\0".join(contents)  # type: ignore[arg-type]  # some are bytes, perhaps
    except TypeError:
        return b""
    # A path that holds NUL is none that a file has; `open` says so of each.
    return _encode(joined) if joined.count("\0") == len(contents) - 1 else b""


def _encode(path: str) -> bytes:
    """Encode a path so that the other end has the same text, also where it is no name that a file can have."""
    return path.encode("utf-8", "surrogatepass")


def _decode(data: bytes | memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")


def _split(data: memoryview, pictures: int) -> list[str | bytes]:
    contents: list[str | bytes] = []
    at = 8 * pictures
    for size in data[:at].cast("Q"):
        blob, at = bytes(data[at : at + size // 2]), at + size // 2
        contents.append(_decode(blob) if size % 2 else blob)
    return contents


def _receive(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise ConnectionError("closed")
        view = view[got:]
    return data


class AnswerReader:
    """Reads answers from a socket that does not block, and goes on where it was."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = bytearray()

    def read(self) -> Answer | None:
        """Read an answer; None where not all of it is there yet.

        Raises:
            ConnectionError: if the socket is closed.
            NonsenseError: for what is no answer.
        """
        if not self._fill(_ANSWER.size):
            return None
        generation, slot, pictures, following = _ANSWER.unpack_from(self._data)
        if following > MAX_ANSWER:
            raise NonsenseError(f"an answer of {following} bytes")
        if not self._fill(_ANSWER.size + following):
            return None
        body = bytes(self._data[_ANSWER.size :])
        self._data = bytearray()
        answer = Answer(generation, slot, pictures)
        return _parse_body(answer, body) if body else answer

    def _fill(self, size: int) -> bool:
        while len(self._data) < size:
            try:
                part = self._connection.recv(size - len(self._data))
            except BlockingIOError:
                return False
            if not part:
                raise ConnectionError("closed")
            self._data += part
        return True


def _parse_body(answer: Answer, body: bytes) -> Answer:
    try:
        failures, unplaced, observed, error = json.loads(body)
        return Answer(
            answer.generation,
            answer.slot,
            answer.pictures,
            [(_check(index, int), Kind(kind), _check(text, str)[:MAX_MESSAGE]) for index, kind, text in failures],
            [_check(index, int) for index in unplaced],
            [(_check(stage, str), _check(begin, float), _check(end, float)) for stage, begin, end in observed],
            _check(error, str)[:MAX_MESSAGE],
        )
    except (ValueError, TypeError, RecursionError) as problem:
        raise NonsenseError(f"{type(problem).__name__}: {problem}") from problem


def _check(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value
