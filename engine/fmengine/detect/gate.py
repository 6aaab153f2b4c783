"""The gate of detectors: what one must find on a GPU, as on the CPU, before it may search photographs there."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..check.compare import PARITY, compare
from ..check.gate import SEED, GateError, load_portrait
from ..model.detector import DetectorOutputs, DetectorSpec
from .boxes import compute_ious
from .yunet import decode_outputs

# Rows and columns of the pictures, and the rows of the faces in each.
PICTURES = (
    ((64, 96), (48,)),
    ((320, 320), (160, 60)),
    ((480, 640), (320, 120, 40)),
    ((640, 352), (200, 32)),
    ((960, 1280), (640, 400)),
)
MIN_IOU = 0.9  # of a face's two boxes: half precision moves an edge by a hundredth of the box at most

Detect = Callable[[npt.NDArray[np.uint8]], DetectorOutputs]


class Agreement(NamedTuple):
    """How far a detector's answers are from the reference's.

    Attributes:
        faces: that were compared.
        largest: difference of any anchor's score.
        iou: intersection over union of a face's two boxes, at least.
    """

    faces: int
    largest: float
    iou: float


def check_detector(run: Detect, reference: Detect, spec: DetectorSpec) -> Agreement:
    """Compare a detector's answers with the CPU's: the score of every anchor, and the boxes of the faces.

    Args:
        run: the network on the GPU.
        reference: the same weights on the CPU.
        spec: of the model.

    Raises:
        GateError: where a score differs by more than half precision may, a face is missed or found besides, or
            its box is another.
    """
    faces, largest, iou = 0, 0.0, 1.0
    for pixels in draw_scenes(spec):
        where = f"{pixels.shape[2]} rows of {pixels.shape[3]} pixels"
        found, expected = run(pixels), reference(pixels)
        scores = compare(_list_probabilities(found), _list_probabilities(expected), PARITY["fp16"])
        if scores.breaches:
            raise GateError(f"the detector is refused. {where}: {scores.breaches[0]}")
        ours, theirs = (
            decode_outputs(each, 0, pixels.shape[3], spec, spec.min_score) for each in (found, expected)
        )
        # Of each face with the box that is nearest to its own; 0 where there is none.
        overlap = float(compute_ious(theirs.boxes, ours.boxes).max(axis=1, initial=0).min(initial=1))
        if len(ours.scores) != len(theirs.scores) or not overlap >= MIN_IOU:
            raise GateError(
                f"the detector is refused. {where}: it finds {ours.boxes.tolist()}, on the CPU "
                f"{theirs.boxes.tolist()}. Update the driver or the library, and report it"
            )
        faces, largest, iou = faces + len(ours.scores), max(largest, scores.largest), min(iou, overlap)
    return Agreement(faces, largest, iou)


def draw_scenes(spec: DetectorSpec) -> list[npt.NDArray[np.uint8]]:
    """Draw noise with a portrait in it, small and large, as the network takes it, uint8 `[1, 3, H, W]`."""
    rng = np.random.default_rng(SEED)
    portrait = load_portrait()
    scenes = []
    for (height, width), faces in PICTURES:
        assert height % spec.multiple == width % spec.multiple == 0
        scene = Image.fromarray(rng.normal(110, 40, (height, width, 3)).clip(0, 255).astype(np.uint8))
        left = 0
        for rows in faces:
            columns = rows * portrait.width // portrait.height
            scene.paste(portrait.resize((columns, rows)), (left, (height - rows) // 2))
            left += columns + 8
        scenes.append(np.ascontiguousarray(np.asarray(scene).transpose(2, 0, 1)[np.newaxis]))
    return scenes


def _list_probabilities(outputs: DetectorOutputs) -> npt.NDArray[np.float32]:
    """List what each anchor answers, float32 `[2 A, 2]`: how likely a face, an object, and none."""
    ones = np.concatenate([outputs.cls, outputs.obj]).reshape(-1, 1)
    return np.concatenate([ones, 1 - ones], axis=1)
