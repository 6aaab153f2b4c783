"""Measures how many faces of photographs are found: as they are, turned, dark, small, in twelve megapixels.

    python -m fmengine_bench.detection scenes/

The folder has a `faces.json`, as for `fmengine_bench.scenes`. Where OpenCV is installed, its `FaceDetectorYN` is
asked with the same weights for the same pixels, at the size of our search.
"""

import json
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from fmengine.cli import main
from fmengine.cli.console import print_data
from fmengine.engine import Engine
from fmengine.image.scene import choose_search_size, resize_for_search
from fmengine_export.detector import make_opencv_model

from .scenes import COVERED, Box, compute_iou

Pixels = npt.NDArray[np.uint8]
Boxes = Sequence[Box]

GROUND = (110, 120, 100)
LARGE = (4000, 3000)
SMALLEST = 0.03  # of the long side: the side of a face that counts in a large photograph
SMALL = (16, 24)  # pixels
MIN_SCORE, MAX_IOU, MAX_FACES = 0.6, 0.3, 5000


class Changed(NamedTuple):
    """A photograph that was changed.

    Attributes:
        pixels: uint8 `[H, W, 3]`.
        move: finds where a box of the photograph is now.
        counts: whether a face of such a box counts; it is no fault to find others.
    """

    pixels: Pixels
    move: Callable[[Box], Box] = lambda box: box
    counts: Callable[[Box], bool] = lambda box: True


Change = Callable[[Pixels, Boxes], Changed]  # of a photograph, and the boxes of its faces


def turn(degrees: float) -> Change:
    """Turn pictures counterclockwise; a turned face has its box on the turned centre."""

    def change(pixels: Pixels, faces: Boxes) -> Changed:
        image = Image.fromarray(pixels)
        turned = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

        def move(box: Box) -> Box:
            left, top, right, bottom = box
            x, y = (left + right - image.width) / 2, (top + bottom - image.height) / 2
            x, y = x * cosine + y * sine + turned.width / 2, y * cosine - x * sine + turned.height / 2
            half = (right - left) / 2, (bottom - top) / 2
            return x - half[0], y - half[1], x + half[0], y + half[1]

        return Changed(np.asarray(turned), move)

    return change


def darken(pixels: Pixels, faces: Boxes) -> Changed:
    """Take 0.3 of the light, and add noise of 8 levels."""
    noise = np.random.default_rng(0).normal(0, 8, pixels.shape)
    return Changed(np.clip(pixels * 0.3 + noise, 0, 255).astype(np.uint8))


def shrink(pixels: Pixels, faces: Boxes) -> Changed:
    """Make the median face 20 pixels small, on a ground of 640 at least; faces of other sizes do not count."""
    scale = 20 / float(np.median([_side(box) for box in faces])) if faces else 1.0
    image = Image.fromarray(pixels)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (max(640, size[0]), max(640, size[1])))
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR))
    return Changed(
        np.asarray(canvas),
        lambda box: [scale * side for side in box],
        lambda box: SMALL[0] <= _side(box) <= SMALL[1],
    )


def enlarge(pixels: Pixels, faces: Boxes) -> Changed:
    """Put it into twelve megapixels, the median face 3 % of the long side or more; smaller ones do not count."""
    image = Image.fromarray(pixels)
    scale = min(LARGE[0] / image.width, LARGE[1] / image.height)
    if faces:
        scale = min(scale, 1.05 * SMALLEST * LARGE[0] / float(np.median([_side(box) for box in faces])))
    size = round(image.width * scale), round(image.height * scale)
    corner = (LARGE[0] - size[0]) // 3, (LARGE[1] - size[1]) // 2
    canvas = Image.new("RGB", LARGE, GROUND)
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return Changed(
        np.asarray(canvas),
        lambda box: [scale * side + corner[index % 2] for index, side in enumerate(box)],
        lambda box: _side(box) >= SMALLEST * LARGE[0],
    )


CHANGES: dict[str, Change] = {
    "as they are": lambda pixels, faces: Changed(pixels),
    **{f"turned by {degrees:+}°": turn(degrees) for degrees in (15, -15, 30, -30, 45, -45)},
    "0.3 × the light, with noise": darken,
    "faces of 16 to 24 pixels": shrink,
    "12 megapixels, faces of 3 % and more": enlarge,
}


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def detection(folder: Path) -> None:
    known = json.loads((folder / "faces.json").read_text(encoding="utf-8"))
    opencv = _OpenCv() if find_spec("cv2") else None
    print_data(
        f"{'photographs':<40}{'faces':>7}{'found':>7}{'others':>7}"
        + ("   OpenCV: found, others" if opencv else "")
    )
    with Engine.load() as engine:
        for name, change in CHANGES.items():
            counts = np.zeros(5, int)
            for file, boxes in known.items():
                changed = change(_read(folder / file), boxes["faces"])
                faces = [face for face in map(changed.move, boxes["faces"]) if changed.counts(face)]
                places = [changed.move(box) for box in (*boxes["faces"], *boxes["ignore"])]
                found = [face.box for face in engine.find_faces(changed.pixels).faces]
                theirs = opencv.find(changed.pixels) if opencv else []
                counts += [len(faces), *_count(found, faces, places), *_count(theirs, faces, places)]
            count, right, other, their_right, their_other = counts.tolist()
            more = f"{their_right:>17}{their_other:>8}" if opencv else ""
            print_data(f"{name:<40}{count:>7}{right:>7}{other:>7}{more}")


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _count(found: Boxes, faces: Boxes, places: Boxes) -> tuple[int, int]:
    """Count faces that are found, and boxes that are of none."""
    right = sum(any(compute_iou(box, other) >= COVERED for other in found) for box in faces)
    return right, sum(not any(compute_iou(box, other) >= COVERED / 2 for other in places) for box in found)


class _OpenCv:
    """`FaceDetectorYN` for pictures of any size, with our weights."""

    def __init__(self) -> None:
        self._detectors: dict[tuple[int, int], Any] = {}

    def find(self, pixels: Pixels) -> Boxes:
        import cv2

        size = choose_search_size((pixels.shape[1], pixels.shape[0]))
        resized, scale = resize_for_search(pixels, size, 32)
        height, width = resized.shape[2:]
        if (height, width) not in self._detectors:
            model = np.frombuffer(make_opencv_model(height, width), np.uint8)
            empty = np.array([], np.uint8)
            self._detectors[height, width] = cv2.FaceDetectorYN.create(
                "onnx", model, empty, (width, height), MIN_SCORE, MAX_IOU, MAX_FACES
            )
        found = self._detectors[height, width].detect(np.ascontiguousarray(resized[0, ::-1].transpose(1, 2, 0)))[1]
        across, down = scale
        return [
            (left * across, top * down, (left + wide) * across, (top + high) * down)
            for left, top, wide, high in ([] if found is None else found[:, :4].tolist())
        ]


def _side(box: Box) -> float:
    return min(box[2] - box[0], box[3] - box[1])


if __name__ == "__main__":
    main(detection, "python -m fmengine_bench.detection")
