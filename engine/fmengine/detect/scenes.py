"""The way of a photograph: read, decode, find faces, cut each out, and answer for it as for a picture."""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..backend.protocol import Backend
from ..errors import Kind, SourceError
from ..image.geometry import Box, Size
from ..image.scene import (
    SEARCH,
    SceneImage,
    choose_search_size,
    decode_scene,
    resize_for_search,
    turn,
    turn_back,
)
from ..image.source import is_file_like, is_on_device, read_file_like
from ..model.detector import DetectorOutputs, DetectorSpec
from ..model.spec import ModelSpec
from ..options import FaceOptions, Limits
from ..pipeline.batch import Batch, Task
from ..pipeline.executor import HELD_BYTES, ThreadExecutor
from ..pipeline.stages import Stages, make_failure
from ..types import Channels, DecodedImage, Face, Failure, Prediction, Scene, Source
from .yunet import Detections, compute_tilts, decode_outputs, merge

TURNS = (45.0, -45.0)  # degrees that a photograph is turned by where no face is found in it
TURNED_SCORE = (
    0.75  # of a face there, at least: two more looks at a picture without any are two more chances to err
)
MAX_TILT = 60.0  # degrees: the crop is upright, and the classifier does not know faces that lie on their side
CAPACITY = 64  # faces that the classifier is given at once


class SceneStages(Stages):
    """The stages of photographs, whose faces go through those of pictures. Thread-safe."""

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        network: Backend,
        *,
        unsure_below: float,
        detector: Backend,
        detector_spec: DetectorSpec,
        options: FaceOptions,
    ) -> None:
        """Set them up.

        Args:
            spec: of the classifier.
            limits: of what a picture may cost.
            network: runs the classifier.
            unsure_below: as of `Stages`.
            detector: runs the network that finds faces.
            detector_spec: of its file.
            options: which faces are wanted.
        """
        super().__init__(spec, limits, network, unsure_below=unsure_below)
        self._network, self._detector, self._detector_spec = network, detector, detector_spec
        self._options = options

    def find(self, image: SceneImage, source: Source) -> Scene:
        """Find the faces of a decoded photograph, and answer for each; raises whatever is raised on the way."""
        height, width = image.picture.shape[:2]
        begin = time.perf_counter()
        found = self._search(image, self._options.search_size or choose_search_size((width, height)))
        # From the pixels that were searched to those of the picture at full size.
        scale = np.array([width / image.colors.shape[1], height / image.colors.shape[0]])
        boxes, landmarks = found.boxes * np.tile(scale, 2), found.landmarks * scale
        wanted = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= self._options.min_size)
        wanted = wanted[: self._options.max_faces]
        if self.observer is not None:
            self.observer("detect", begin, time.perf_counter())
        crops = [compute_crop(box, (width, height)) for box in boxes[wanted].tolist()]
        parts = [DecodedImage(image.picture[top:bottom, left:right]) for left, top, right, bottom in crops]
        clipped = clip_boxes(boxes[wanted], (width, height)).tolist()
        columns = clipped, found.scores[wanted].tolist(), landmarks[wanted].tolist(), crops
        faces = [
            Face(tuple(box), score, tuple(map(tuple, points)), crop, prediction)
            for box, score, points, crop, prediction in zip(*columns, self._classify(parts, source), strict=True)
        ]
        return Scene(source, (width, height), tuple(faces))

    def _search(self, image: SceneImage, size: int) -> Detections:
        """Search a photograph, and once more turned where nothing is found: the detector knows upright faces."""
        found = self._detect(image.colors, size, self._options.min_score)
        if len(found.scores):
            return found
        height, width = image.colors.shape[:2]
        parts = []
        for degrees in TURNS:
            turned = turn(image.colors, degrees)
            back = partial(turn_back, degrees=degrees, size=(width, height), turned=turned.shape[1::-1])
            there = self._detect(turned, size, max(TURNED_SCORE, self._options.min_score))
            half = (there.boxes[:, 2:] - there.boxes[:, :2]) / 2
            centres = back(there.boxes[:, :2] + half)
            boxes = np.concatenate([centres - half, centres + half], axis=1)
            parts.append(Detections(boxes, there.scores, back(there.landmarks)))
        found = merge(parts, self._detector_spec.max_iou)
        return found.select(np.flatnonzero(np.abs(compute_tilts(found)) <= MAX_TILT))

    def _detect(self, colors: npt.NDArray[np.uint8], size: int, min_score: float) -> Detections:
        """Run the detector on RGB, uint8 `[h, w, 3]`; coordinates are those of its pixels."""
        pixels, scale = resize_for_search(colors, size, self._detector_spec.multiple)
        outputs = cast(DetectorOutputs, self._detector.run(pixels))
        found = decode_outputs(outputs, 0, pixels.shape[3], self._detector_spec, min_score)
        return Detections(found.boxes * np.tile(scale, 2), found.scores, found.landmarks * np.array(scale))

    def make_prediction(self, probabilities: Sequence[float], flat: bool, source: Source) -> Prediction:
        """Say what probabilities mean that a face has over several frames, as of those of one picture."""
        row = tuple(probabilities)
        _, (label,), (reason,) = self._decide([row], [flat])
        return Prediction(label, max(row), dict(zip(self.spec.labels, row, strict=True)), source, reason)

    def prepare(self, tasks: Iterable[Task], batch: Batch) -> None:
        """Give each of the tasks its `Scene`, or its `Failure`: none takes a row of the batch."""
        for task in tasks:
            if task.result is None:
                try:
                    task.result = self.find(self._decode_content(task.content), task.source)
                except Exception as error:
                    task.result = make_failure(error, task.source)
            task.content = None

    def _get_content(self, source: Source, channels: Channels, copy: bool) -> Any:
        if isinstance(source, str | bytes):
            return source
        if is_on_device(source):
            raise SourceError(
                Kind.UNSUPPORTED,
                "the picture lies in a GPU's memory, where no faces are found: copy it to the host",
            )
        if is_file_like(source) and not hasattr(source, "__dlpack_device__"):
            return read_file_like(source, self.limits)
        image = self._decode_scene(source, channels)
        if copy and isinstance(source, np.ndarray):
            picture = DecodedImage(image.picture.copy())
            image = SceneImage(picture, picture if picture.ndim == 3 else image.colors)
        return image

    def _decode_content(self, content: Any) -> SceneImage:
        return content if isinstance(content, SceneImage) else self._decode_scene(content, "rgb")

    def _decode_scene(self, source: Source, channels: Channels) -> SceneImage:
        if isinstance(source, str):
            source = self._read(source, self.limits.max_bytes)  # once, for both of its decodings
        begin = time.perf_counter()
        image = decode_scene(source, self.spec.color, self.limits, channels, self._options.search_size or SEARCH)
        if self.observer is not None:
            self.observer("decode", begin, time.perf_counter())
        return image

    def _classify(self, parts: Sequence[DecodedImage], source: Source) -> list[Prediction]:
        tasks = [Task(source, part) for part in parts]
        for begin in range(0, len(tasks), CAPACITY):
            chunk = tasks[begin : begin + CAPACITY]
            batch = Batch(self.spec, len(chunk))
            super().prepare(chunk, batch)
            self.answer(batch, self._network)
        for task in tasks:
            if isinstance(task.result, Failure):
                raise SourceError(task.result.kind, task.result.message)
        return [cast(Prediction, task.result) for task in tasks]


class SceneExecutor(ThreadExecutor):
    """Answers for photographs in threads, one at a time each: a scene is known as soon as it is done."""

    def _compute(self, first: Task, batch: Batch) -> None:
        try:
            self._stages.prepare([first], batch)
        except BaseException as error:  # for whoever takes the results
            first.result = first.result or error
        self._announce()

    def _admit(self, source: Source, channels: Channels) -> Task:
        task = super()._admit(source, channels)
        if isinstance(content := task.content, SceneImage):
            task.weight = min(1 + content.nbytes // HELD_BYTES, self._max_in_flight)
        return task


def compute_crop(box: Sequence[float], size: Size) -> Box:
    """Compute what is cut out for a face: a square of side √(w·h) on the box's centre, clipped to the picture.

    Of the crops that were tried on faces in photographs it gives the classifier what it was trained on: wider ones
    lose 2 to 5 points of accuracy.

    Args:
        box: left, top, right and bottom of the face.
        size: width and height of the picture.

    Returns:
        Whole pixels, one or more wide and high.
    """
    left, top, right, bottom = box
    side = max(1, round(((right - left) * (bottom - top)) ** 0.5))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    width, height = size
    x0, y0 = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    return x0, y0, max(min(x + side, width), x0 + 1), max(min(y + side, height), y0 + 1)


def clip_boxes(boxes: npt.NDArray[np.floating[Any]], size: Size) -> npt.NDArray[np.floating[Any]]:
    """Clip boxes, `[n, 4]`, to a picture of this width and height."""
    clipped: npt.NDArray[np.floating[Any]] = np.clip(boxes, 0, np.array([*size, *size], np.float64))
    return clipped
