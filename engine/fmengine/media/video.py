"""Open a video, a stream or a camera with FFmpeg, and read its frames with their time stamps."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from ..errors import Kind, SourceError, UnavailableError, format_install_command
from ..options import VideoOptions
from ..types import DecodedImage
from .source import VideoSource

STEP = 1 / 25  # seconds between two frames of a stream that states neither time stamps nor a rate
MISSING = 0.05  # share of the frames, or of the seconds, without which a file counts as cut short
MISSING_SECONDS = 1.0  # that it lacks at least, where its duration alone is known
READ_AGAIN = 100  # errors of the demuxer in a row, after which it does not go on


class TimedFrame(NamedTuple):
    """A decoded frame.

    Attributes:
        number: of the frame in the stream, from 0.
        stamp: seconds by the stream's clock; None where it has none.
        step: seconds to the next frame, roughly.
        frame: FFmpeg's, an `av.VideoFrame`.
    """

    number: int
    stamp: float | None
    step: float
    frame: Any

    def to_image(self) -> DecodedImage:
        """Convert it to RGB, upright.

        The matrix and the range are those that the frame names (BT.601 and 16 to 235 where it names none); levels
        come out full, 0 to 255.
        """
        # In one thread: where the network and the decoder have the cores, more take longer.
        pixels = self.frame.to_ndarray(format="rgb24")
        return DecodedImage(np.ascontiguousarray(np.rot90(pixels, round(self.frame.rotation / 90))))


class Video:
    """An open source; a context manager.

    Attributes:
        start: of the stream, in seconds by its own clock; None where it is not known.
        is_live: whether its frames come by themselves.
        damaged: frames and packets so far that could not be decoded, or only in part.
    """

    def __init__(self, source: VideoSource, options: VideoOptions, max_pixels: int) -> None:
        """Open it.

        Args:
            source: to open.
            options: how long that may take.
            max_pixels: of a frame.

        Raises:
            SourceError: if it cannot be opened, holds no video, or its frames have more pixels.
            UnavailableError: if PyAV is missing.
        """
        self._av = import_av()
        self._source, self._max_pixels, self._timeouts = source, max_pixels, options.timeouts
        self.damaged, self._count = 0, 0
        self._last_is_corrupt = False
        self._packets, self._end = 0, 0.0
        self._begin_waiting()
        try:
            self._container = self._av.open(
                source.url,
                format=source.format,
                timeout=options.timeouts,
                options={"rtsp_flags": "prefer_tcp"} if source.url.lower().startswith("rtsp") else {},
            )
        except (self._av.error.FFmpegError, ValueError, OSError) as error:
            raise self._explain(error, self._timeouts[0]) from error
        try:
            self._stream = self._choose_stream()
        except SourceError:
            self._container.close()
            raise
        start, duration = self._container.start_time, self._container.duration
        self.start = None if start is None else start / 1e6
        self._promised = None if duration is None else (start or 0) / 1e6 + duration / 1e6
        live = source.live if options.live is None else options.live
        self.is_live = duration is None if live is None else live
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._step = float(1 / rate) if rate else STEP

    def read(self) -> Iterator[TimedFrame]:
        """Yield the frames that are whole; what is damaged is counted.

        Raises:
            SourceError: `truncated` after the last frame of a file that lacks what it promises, `empty` for one
                without frames, `too_large` for a frame over the limit, `timeout` where no data come any more, and
                `unreadable` where the connection is lost.
        """
        any_frame = False
        for packet in self._demux():
            for frame in self._decode(packet):
                number, self._count = self._count, self._count + 1
                if frame.is_corrupt:
                    self.damaged += 1
                    continue
                self._check_size(frame.width, frame.height)
                any_frame = True
                yield TimedFrame(number, frame.time, self._step, frame)
        if self._source.endless:
            return
        if not self.is_live and (lack := self._find_lack()):
            raise self._make_error(Kind.TRUNCATED, f"the file is cut short, or badly damaged: {lack}")
        if not any_frame:
            found = "none of its frames can be decoded" if self.damaged else "its video has no frames"
            raise self._make_error(Kind.CORRUPT if self.damaged else Kind.EMPTY, found)

    def close(self) -> None:
        """Close it. Twice is no error."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _demux(self) -> Iterator[Any]:
        """Yield the video's packets, and note what tells a whole file from one that is cut short."""
        errors = 0
        while True:
            self._begin_waiting()
            try:
                # Of all streams: the duration of a file is that of the longest.
                for packet in self._container.demux():
                    self._note(packet)
                    if packet.stream_index == self._stream.index:
                        errors = 0
                        yield packet
                    self._begin_waiting()
                return
            except self._av.error.EOFError:
                return
            except self._av.error.InvalidDataError as error:
                self.damaged, errors = self.damaged + 1, errors + 1
                if errors == READ_AGAIN or self._has_waited(self._timeouts[1]):
                    raise self._explain(error, self._timeouts[1]) from error
            except self._av.error.FFmpegError as error:
                raise self._explain(error, self._timeouts[1]) from error

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except self._av.error.EOFError:
            return []
        except (self._av.error.FFmpegError, ValueError):  # of a damaged packet; the next key frame mends it
            self.damaged, self._count = self.damaged + 1, self._count + 1
            return []

    def _note(self, packet: Any) -> None:
        if not packet.size:  # the last, which empties the decoder
            return
        self._last_is_corrupt = packet.is_corrupt
        self._packets += packet.stream_index == self._stream.index
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.time_base:
            self._end = max(self._end, float((stamp + (packet.duration or 0)) * packet.time_base))

    def _find_lack(self) -> str:
        """Say what a file lacks of what it promises; nothing for one that is whole.

        An MPEG transport stream promises nothing.
        """
        seconds = self._promised or 0.0
        missing = seconds - self._end
        if missing > MISSING * seconds:
            # An AVI counts frames that it repeats: their number alone proves nothing.
            if self._packets < self._stream.frames * (1 - MISSING):
                return f"it has {self._packets:,} of {self._stream.frames:,} frames"
            if missing > MISSING_SECONDS:
                return f"it ends after {self._end:.1f} of {seconds:.1f} seconds"
        return "its last data are not whole" if self._last_is_corrupt else ""

    def _choose_stream(self) -> Any:
        streams = self._container.streams
        if not streams.video:
            kinds = ", ".join(dict.fromkeys(stream.type for stream in streams)) or "no stream"
            raise self._make_error(Kind.UNSUPPORTED, f"it has {kinds}, and no video; expected a video stream")
        stream = streams.best("video") or streams.video[0]
        if stream.codec_context is None:
            raise self._make_error(Kind.UNSUPPORTED, "FFmpeg has no decoder for its video")
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        if not (self._source.live or self._source.remote):
            stream.thread_type = "AUTO"  # of a live source, each thread would hold a frame back
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise self._make_error(
                Kind.TOO_LARGE, f"frames of {width}×{height} are over the limit of {self._max_pixels:,} pixels"
            )

    def _begin_waiting(self) -> None:
        self._waiting_since = time.monotonic()

    def _has_waited(self, timeout: float) -> bool:
        """Return whether the time is up: of a server that is mute, FFmpeg may say that its data are invalid."""
        return self._source.remote and time.monotonic() - self._waiting_since >= timeout

    def _explain(self, error: Exception, timeout: float) -> SourceError:
        """Make the error of a source that cannot be opened or read any more."""
        av = self._av
        if self._has_waited(timeout) or isinstance(error, av.error.ExitError | av.error.TimeoutError):
            return self._make_error(
                Kind.TIMEOUT, f"no answer within {timeout:g} s; see that it sends, or give it more time (timeout)"
            )
        if isinstance(error, av.error.EOFError):
            return self._make_error(Kind.EMPTY, "it ends before its first frame")
        if isinstance(error, av.error.InvalidDataError):
            return self._make_error(
                Kind.CORRUPT,
                "FFmpeg finds no video in it: it is of another kind, damaged, or cut short (an MP4 may have its "
                "index at the end)",
            )
        if isinstance(error, av.error.FileNotFoundError):
            return self._make_error(Kind.NOT_FOUND, "there is no such file, camera or stream")
        if self._source.format == "lavfi":
            return self._make_error(Kind.UNSUPPORTED, "FFmpeg does not understand this filter graph")
        reason = getattr(error, "strerror", None) or str(error)
        return self._make_error(Kind.UNREADABLE, f"it cannot be read: {reason}")

    def _make_error(self, kind: Kind, message: str) -> SourceError:
        return SourceError(kind, message, self._source.name)


def import_av() -> Any:
    """Import PyAV.

    Raises:
        UnavailableError: if it is missing.
    """
    try:
        import av
    except ImportError as error:
        raise UnavailableError(
            f"videos and cameras need PyAV; install it with: {format_install_command('video')}"
        ) from error
    return av
