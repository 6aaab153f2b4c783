"""Turn what YuNet answers into faces: boxes, scores and landmarks, of each face once.

Formulas: libfacedetection, and `FaceDetectorYN` of OpenCV, whose boxes these are on the same input. W. Wu,
H. Peng, S. Yu, YuNet: A Tiny Millisecond-level Face Detector, Machine Intelligence Research 2023.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..model.detector import DetectorOutputs, DetectorSpec

LANDMARKS = 5  # the subject's right eye, left eye, nose, right and left corner of the mouth


class Detections(NamedTuple):
    """Faces in one picture, the highest score first.

    Attributes:
        boxes: left, top, right and bottom in pixels of the network's input, float32 `[n, 4]`; they may lead out.
        scores: from 0 to 1, float32 `[n]`.
        landmarks: x and y of each, in the same pixels, float32 `[n, 5, 2]`.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]

    def select(self, rows: npt.NDArray[np.intp]) -> "Detections":
        """Return some of them."""
        return Detections(self.boxes[rows], self.scores[rows], self.landmarks[rows])


def decode_outputs(
    outputs: DetectorOutputs, row: int, width: int, spec: DetectorSpec, min_score: float
) -> Detections:
    """Decode what the network answers for one picture of a batch.

    Args:
        outputs: of the batch.
        row: of the picture.
        width: of the network's input, in pixels.
        spec: of the detector.
        min_score: of a face.
    """
    cls, obj = outputs.cls[row, :, 0], outputs.obj[row, :, 0]
    scores = np.sqrt(np.clip(cls, 0, 1) * np.clip(obj, 0, 1))
    found = np.flatnonzero(scores >= min_score)  # few: all that follows is about them alone
    strides, columns, rows = _find_anchors(found, len(scores), width, spec)
    box, offsets = outputs.bbox[row, found], outputs.kps[row, found].reshape(-1, LANDMARKS, 2)
    corner = np.stack([columns, rows], axis=1)
    centre = (corner + box[:, :2]) * strides[:, np.newaxis]
    half = np.exp(box[:, 2:]) * strides[:, np.newaxis] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    landmarks = (corner[:, np.newaxis] + offsets) * strides[:, np.newaxis, np.newaxis]
    detections = Detections(boxes, scores[found], landmarks)
    return detections.select(suppress_overlaps(detections, spec.max_iou))


def compute_tilts(detections: Detections) -> npt.NDArray[np.floating[Any]]:
    """Compute by how many degrees the line from eye to eye of each face is turned, clockwise, -180 to 180."""
    x, y = (detections.landmarks[:, 1] - detections.landmarks[:, 0]).T
    tilts: npt.NDArray[np.floating[Any]] = np.degrees(np.arctan2(y, x))
    return tilts


def merge(parts: Sequence[Detections], max_iou: float) -> Detections:
    """Make one of what was found in several searches of a picture, each face once."""
    found = Detections(*map(np.concatenate, zip(*parts, strict=True)))
    return found.select(suppress_overlaps(found, max_iou))


def suppress_overlaps(detections: Detections, max_iou: float) -> npt.NDArray[np.intp]:
    """Choose of boxes that overlap the one of the highest score, greedily; return their rows, highest score first.

    Args:
        detections: of one picture.
        max_iou: intersection over union that two of them may have.
    """
    boxes = detections.boxes
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    rest = np.argsort(-detections.scores, kind="stable")
    kept: list[int] = []
    while len(rest):
        first, rest = int(rest[0]), rest[1:]
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        rest = rest[shared <= max_iou * (areas[first] + areas[rest] - shared)]
    return np.array(kept, np.intp)


def _find_anchors(
    found: npt.NDArray[np.intp], count: int, width: int, spec: DetectorSpec
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Find stride, column and row of anchors by their number: finest stride first, row by row.

    Args:
        found: numbers.
        count: of all anchors, from which the input's height follows.
        width: of the input.
        spec: of the detector.
    """
    # Anchors a pixel of height, over all strides.
    height = count / sum(width // stride / stride for stride in spec.strides)
    ends = np.cumsum([round(height / stride) * (width // stride) for stride in spec.strides])
    level = np.searchsorted(ends, found, side="right")
    strides = np.array(spec.strides)[level]
    number, columns = found - np.concatenate([[0], ends])[level], width // strides
    parts = strides, number % columns, number // columns
    return parts[0].astype(np.float32), parts[1].astype(np.float32), parts[2].astype(np.float32)
