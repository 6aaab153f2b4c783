"""Draw the faces of a video's frames into them, and write them as an MP4 file."""

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from PIL import Image

from ..errors import OutputError, UnavailableError
from ..image.drawing import DrawnBox, draw_boxes
from ..jobs.rows import escape_text
from ..system.files import get_temporary_path
from ..types import DecodedImage, Frame, TrackedFace
from .video import import_av

Codec = Literal["mpeg4", "h264"]
ENCODERS = {"mpeg4": "mpeg4", "h264": "libx264"}  # FFmpeg's names; x264 is under the GPL
OPTIONS = {"mpeg4": {"flags": "+qscale", "global_quality": "472"}, "h264": {"crf": "20"}}  # 472: 4 × FF_QP2LAMBDA
TICKS = 60_000  # of the file's clock a second, the most that is a multiple of 30,000 and that MPEG-4 takes
COLORS = ("#ffc400", "#00c8ff", "#ff6eb4", "#78e650", "#be8cff", "#ff8c3c")  # by ids, which keep them
NEW_COLOR = "#c8c8c8"  # of a face without an id


def draw_faces(image: DecodedImage, faces: tuple[TrackedFace, ...]) -> Image.Image:
    """Draw boxes, ids and labels into a copy of an image `[H, W, 3]`; a face keeps its colour with its id."""
    return draw_boxes(image, [_describe(face) for face in faces])


def _describe(face: TrackedFace) -> DrawnBox:
    answer = f"{escape_text(face.prediction.label)} {face.prediction.confidence:.0%}"
    if face.id is None:
        return DrawnBox(face.box, answer, NEW_COLOR)
    return DrawnBox(face.box, f"{face.id} {answer}", COLORS[(face.id - 1) % len(COLORS)])


class AnnotatedVideo:
    """An MP4 file that frames are written to, with their time stamps; a context manager.

    It is written beside its path, and takes its name when it is closed, also after an error or Ctrl-C: what was
    written until then can be played. A file without a frame is none. All frames get the size of the first, made
    even.

    Args:
        path: of the file.
        codec: `mpeg4`, or `h264` for x264.

    Raises:
        OutputError: if it cannot be written.
        UnavailableError: if PyAV, or the encoder in it, is missing.
    """

    def __init__(self, path: Path, codec: Codec = "mpeg4") -> None:
        self._av = import_av()
        if ENCODERS[codec] not in self._av.codecs_available:
            raise UnavailableError(f"this PyAV has no encoder {ENCODERS[codec]}; leave --codec at mpeg4")
        self.path, self._codec = path, codec
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1

    def write(self, frame: Frame, image: DecodedImage) -> None:
        """Draw a frame's faces into its image, uint8 `[H, W, 3]`, and write it; OutputError if that fails."""
        picture = draw_faces(image, frame.faces)
        try:
            if self._container is None:
                self._open(picture.size)
            if picture.size != self._size:
                picture = picture.resize(self._size, Image.Resampling.BILINEAR)
            made = self._av.VideoFrame.from_image(picture)
            self._last = made.pts = max(self._last + 1, round(frame.time * TICKS))
            made.time_base = Fraction(1, TICKS)
            self._container.mux(self._stream.encode(made))
        except (OSError, ValueError) as error:
            raise self._make_error(error) from error

    def close(self) -> None:
        """Finish the file, and give it its name. Raises OutputError if that fails. Twice is no error."""
        container, self._container = self._container, None
        if container is None:
            return
        temporary = get_temporary_path(self.path)
        try:
            try:
                container.mux(self._stream.encode())
            finally:
                container.close()
            os.replace(temporary, self.path)
        except (OSError, ValueError) as error:
            with suppress(OSError):
                temporary.unlink()
            raise self._make_error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, size: tuple[int, int]) -> None:
        self._size = width, height = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._container = self._av.open(f"file:{get_temporary_path(self.path)}", "w", format="mp4")
        self._stream = self._container.add_stream(ENCODERS[self._codec], rate=30, options=OPTIONS[self._codec])
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)

    def _make_error(self, error: Exception) -> OutputError:
        return OutputError(f"cannot write {self.path}: {getattr(error, 'strerror', None) or error}")
