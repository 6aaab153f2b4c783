"""Distinguish what can be watched: a file, a stream, a camera, a filter graph."""

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import Kind, SourceError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
CAMERA = re.compile(r"/dev/video\d+")
GRAPH = "lavfi:"
REQUESTED = ("http", "https", "file")  # schemes of what may be a file as well as a camera


@dataclass(frozen=True, slots=True)
class VideoSource:
    """What can be watched.

    Attributes:
        url: what FFmpeg opens.
        name: for messages, on one line and without a password.
        format: FFmpeg's name of the input format; None where the data show it.
        live: whether frames come by themselves, and are lost when nobody takes them; None where only the open
            source shows it, by having no duration.
        endless: whether it is lost when it ends, as a camera is.
        remote: whether it is reached over a network, and can be reached again.
    """

    url: str
    name: str
    format: str | None = None
    live: bool | None = False
    endless: bool = False
    remote: bool = False


def parse_source(source: str | os.PathLike[str]) -> VideoSource:
    """Find out what a source is: a URL, `/dev/video0`, `lavfi:` with a filter graph, or else the path of a file.

    Raises:
        SourceError: of the kind `unsupported` for what is no text, `not_found`, `not_a_file` or `empty`.
    """
    if not isinstance(source, str | os.PathLike):
        raise SourceError(
            Kind.UNSUPPORTED, f"a {type(source).__name__} is no video; expected a path, a URL or a camera"
        )
    text = os.fsdecode(source)
    if text.startswith(GRAPH):
        graph = text.removeprefix(GRAPH)
        return VideoSource(graph, _as_line(text), "lavfi", live="realtime" in graph)
    if URL.match(text):
        endless = urlsplit(text).scheme.lower() not in REQUESTED
        return VideoSource(
            text, _as_line(_hide_password(text)), live=True if endless else None, endless=endless, remote=True
        )
    if CAMERA.fullmatch(text):
        return VideoSource(text, text, "v4l2", live=True, endless=True)
    _check_file(text)
    return VideoSource(f"file:{text}", _as_line(text))  # a name with a colon would be a protocol of FFmpeg's


def _check_file(path: str) -> None:
    """Raise SourceError for a path that leads to no file with content."""
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise SourceError(
                Kind.UNREADABLE, f"cannot read the file: {error.strerror}", _as_line(path)
            ) from error
        raise SourceError(Kind.NOT_FOUND, "no such file", _as_line(path)) from error
    if not os.path.isfile(path):
        raise SourceError(
            Kind.NOT_A_FILE, "expected a video file, a URL, or a camera such as /dev/video0", _as_line(path)
        )
    if not size:
        raise SourceError(Kind.EMPTY, "the file has no bytes", _as_line(path))


def _hide_password(url: str) -> str:
    """Replace the password of a URL, which would stand in messages and logs."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", url)


def _as_line(name: str) -> str:
    return name if name.isprintable() else ascii(name)
