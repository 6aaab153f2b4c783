"""Read frames in a thread: all of a file, the newest of a live source, which is opened again when it is lost."""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import Kind, SourceError
from ..options import VideoOptions
from ..types import DecodedImage
from .source import VideoSource
from .video import TimedFrame, Video, import_av

LOST = (Kind.TIMEOUT, Kind.UNREADABLE, Kind.NOT_FOUND, Kind.CORRUPT, Kind.EMPTY)  # what another try may mend
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the first try to open a source again, and before any
ROUNDING = 1e-6  # seconds that a time stamp may be off
END_WAIT = 1.0  # seconds that closing waits for the thread, which may be in a decoder, or wait for a server


class Clock:
    """Turns a stream's time stamps into seconds from its beginning, which never go back."""

    def __init__(self) -> None:
        self._time: float | None = None
        self._offset: float | None = None
        self._step = 0.0

    def begin(self, start: float | None, gap: float = 0.0) -> None:
        """Begin a stream whose first time stamp may be known; so many seconds after the last frame, if any."""
        self._offset = -start if self._time is None and start is not None else None
        self._step = gap

    def read(self, stamp: float | None, step: float) -> float:
        """Return the seconds of a time stamp; a missing one, or one that goes back, is a step after the last."""
        last = self._time
        following = 0.0 if last is None else last + (self._step or step)
        if stamp is None:
            self._time = following
        elif self._offset is None or (last is not None and stamp + self._offset < last):
            self._time, self._offset = following, following - stamp
        else:
            self._time = stamp + self._offset
        self._step = 0.0
        return self._time


class Taken(NamedTuple):
    """A frame that the reader gives out: its number in the source, its seconds, and its pixels once asked for."""

    number: int
    time: float
    frame: TimedFrame

    def to_image(self) -> DecodedImage:
        """Convert it as `TimedFrame.to_image` does."""
        return self.frame.to_image()


class FrameReader:
    """Reads one source. `take` and `close` are for one thread at a time.

    Attributes:
        dropped: frames so far that a live source had, and that nobody took in time.
        damaged: frames and packets so far that could not be decoded.
    """

    def __init__(self, source: VideoSource, options: VideoOptions, max_pixels: int) -> None:
        """Open the source. Raises SourceError as `Video` does, and UnavailableError if PyAV is missing."""
        import_av()  # here: its error is no source's
        self._source, self._options, self._max_pixels = source, options, max_pixels
        self.dropped = 0
        self._damaged_before = 0
        self._video: Video | None = None
        self._changed = threading.Condition()
        self._frame: Taken | None = None
        self._error: BaseException | None = None
        self._is_open = self._is_live = self._has_ended = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="fmengine-video", daemon=True)
        self._thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._is_open or self._has_ended)
                if not self._is_open and self._error is not None:
                    raise self._error
        except BaseException:  # Ctrl-C among them, while a server is waited for
            self.close()
            raise

    @property
    def damaged(self) -> int:
        """Frames and packets so far that could not be decoded."""
        video = self._video  # which the thread replaces
        return self._damaged_before + (video.damaged if video else 0)

    def take(self) -> Taken | None:
        """Wait for the next frame; None at the end. Raises, once, what ended the source, as `Video.read` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._has_ended or self._is_closed)
            frame, self._frame = self._frame, None
            self._changed.notify_all()
            if frame is None and self._error is not None:
                error, self._error = self._error, None
                raise error
            return frame

    def close(self) -> None:
        """Stop reading. Twice is no error."""
        with self._changed:
            self._is_closed, self._frame, self._error = True, None, None
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_WAIT)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for frame in self._read():
                if not self._offer(frame):
                    break
        except BaseException as raised:  # for whoever takes the frames
            error = raised
        with self._changed:
            self._error = None if self._is_closed else error
            self._has_ended = True
            self._changed.notify_all()

    def _read(self) -> Iterator[Taken]:
        """Yield the frames that are due, and open a source again that is lost."""
        clock, due, next_number = Clock(), 0.0, 0
        tries, seen = 0, time.monotonic()
        while True:
            lost: SourceError
            try:
                with Video(self._source, self._options, self._max_pixels) as video:
                    self._announce(video)
                    clock.begin(None if video.is_live else video.start, gap=time.monotonic() - seen)
                    begin = next_number
                    for frame in video.read():
                        tries, seen = 0, time.monotonic()
                        now, next_number = clock.read(frame.stamp, frame.step), begin + frame.number + 1
                        if now >= due:
                            due = self._find_next_due(now)
                            yield Taken(begin + frame.number, now, frame)
                if not self._source.endless or not self._options.reconnect:
                    return
                lost = SourceError(Kind.UNREADABLE, "its stream ended", self._source.name)
            except SourceError as error:
                if not self._may_try_again(error):
                    raise
                lost = error
            if tries >= self._options.reconnect:
                failed = f"lost; {tries} of {tries} tries to open it again failed: {lost.message}"
                raise SourceError(lost.kind, failed, lost.source) from lost
            tries += 1
            self._damaged_before, self._video = self.damaged, None
            if not self._pause(min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)):
                return

    def _find_next_due(self, now: float) -> float:
        """Return from when on the next frame is looked at: on a grid, however far apart frames are."""
        every = self._options.every
        return every * ((now + ROUNDING) // every + 1) - ROUNDING if every else 0.0

    def _may_try_again(self, error: SourceError) -> bool:
        """Return whether a source that was open is lost, and not at its end, or not to be had at all."""
        can = self._source.endless or (self._source.remote and self._is_live)
        return can and self._is_open and self._options.reconnect > 0 and error.kind in LOST

    def _announce(self, video: Video) -> None:
        """Have the constructor return."""
        with self._changed:
            self._is_open, self._is_live, self._video = True, video.is_live, video
            self._changed.notify_all()

    def _offer(self, frame: Taken) -> bool:
        """Hand a frame over, or replace one that waits still; False where nobody takes any more."""
        with self._changed:
            if self._is_live:
                self.dropped += self._frame is not None
            else:
                self._changed.wait_for(lambda: self._frame is None or self._is_closed)
            if not self._is_closed:
                self._frame = frame
            self._changed.notify_all()
            return not self._is_closed

    def _pause(self, seconds: float) -> bool:
        """Wait; False where nobody takes any more."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._is_closed, seconds)
