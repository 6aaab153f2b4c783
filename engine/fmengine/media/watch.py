"""Watch a video: from its frames to faces that keep their ids, with answers that do not flicker."""

import os
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from ..detect.scenes import SceneStages
from ..image.scene import SceneImage
from ..options import FaceOptions, VideoOptions
from ..types import DecodedImage, Face, Frame, Reason, Scene, TrackedFace
from .reader import FrameReader, Taken
from .smoothing import ExponentialMean
from .source import parse_source
from .tracker import Track, Tracker

LOW = 0.5  # share of `min_score` that is enough for a face that is followed already
PATIENCE = 1.0  # seconds that a face may be hidden and keep its id
PATIENT_FRAMES = 3  # that it may be hidden for, where they are further apart


class Watch(Iterator[Frame]):
    """The frames of a video, a stream or a camera, as they come; a context manager. Made by `Engine.watch`.

    Attributes:
        name: of the source, without a password.
        image: pixels of the frame that was given last, uint8 `[H, W, 3]` in RGB order, upright; None before it.
        frames: given so far.
        faces: in them.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        make_stages: Callable[[FaceOptions], SceneStages],
        faces: FaceOptions,
        video: VideoOptions,
        max_pixels: int,
    ) -> None:
        """Open a source. Raises SourceError if it cannot be, and UnavailableError without PyAV."""
        parsed = parse_source(source)
        self.name = parsed.name
        self.image: DecodedImage | None = None
        self.frames = self.faces = 0
        low = FaceOptions(LOW * faces.min_score, faces.min_size, faces.max_faces, faces.search_size)
        self._stages = make_stages(low)
        self._size: tuple[int, int] | None = None
        self._tracker = Tracker(high=faces.min_score, patience=max(PATIENCE, PATIENT_FRAMES * video.every))
        self._means: weakref.WeakKeyDictionary[Track, ExponentialMean] = weakref.WeakKeyDictionary()
        self._reader = FrameReader(parsed, video, max_pixels)
        self._close = weakref.finalize(self, self._reader.close)

    @property
    def dropped(self) -> int:
        """Frames of a live source so far that came while others were worked on."""
        return self._reader.dropped

    @property
    def damaged(self) -> int:
        """Frames and packets so far that could not be decoded, or only in part."""
        return self._reader.damaged

    @property
    def tracks(self) -> int:
        """Ids that were given so far."""
        return self._tracker.count

    def __next__(self) -> Frame:
        """Return the next frame.

        Raises:
            StopIteration: at the end, and after `close`.
            SourceError: after the last frame, where the source did not end but broke off.
        """
        taken = self._reader.take()
        if taken is None:
            self.close()
            raise StopIteration
        self.image = image = taken.to_image()
        scene = self._stages.find(SceneImage(image, image), self.name)
        frame = Frame(taken.time, taken.number, scene.size, self._follow(scene, taken))
        self.frames += 1
        self.faces += len(frame.faces)
        return frame

    def close(self) -> None:
        """Stop reading. Twice is no error."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self, scene: Scene, taken: Taken) -> tuple[TrackedFace, ...]:
        """Give the faces of a frame their ids, and their answers over the last moments."""
        if self._size not in (None, scene.size):  # as of a stream that adapts to the network
            width, height = self._size
            self._tracker.rescale(scene.size[0] / width, scene.size[1] / height)
        self._size = scene.size
        boxes = np.array([face.box for face in scene.faces], np.float64).reshape(-1, 4)
        scores = np.array([face.score for face in scene.faces])
        tracks = self._tracker.update(boxes, scores, taken.time)
        return tuple(
            self._make_face(face, track, taken.time)
            for face, track in zip(scene.faces, tracks, strict=True)
            if track is not None
        )

    def _make_face(self, face: Face, track: Track, time: float) -> TrackedFace:
        answer = face.prediction
        mean = self._means.setdefault(track, ExponentialMean()).add(list(answer.probabilities.values()), time)
        flat = answer.reason is Reason.FLAT
        prediction = self._stages.make_prediction(mean.tolist(), flat, self.name)
        return TrackedFace(face.box, face.score, face.landmarks, face.crop, prediction, track.id)
