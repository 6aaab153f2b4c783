"""The `fer` package in its fastest mode: TensorFlow Lite, the whole crop as the face, a process a core."""

import os
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from typing import Any

from serve import UNREAD, Answer, Opened, main

detector: Any = None


def begin() -> None:
    """Load it in a worker. Its default offsets of 10 pixels would widen the box over the crop's edge."""
    global detector
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from fer.fer import FER

    detector = FER(offsets=(0, 0))


def look(path: str) -> Answer:
    import cv2

    image = cv2.imread(path)
    if image is None:
        return UNREAD
    height, width = image.shape[:2]
    scores = detector.detect_emotions(image, [(0, 0, width, height)])[0]["emotions"]
    label = "happy" if scores["happy"] >= scores["sad"] else "sad"
    return Answer(label, float(scores[label]))


def look_at_scene(path: str) -> Answer:
    """Find the faces by the package's own detector, OpenCV's Haar cascade."""
    import cv2

    image = cv2.imread(path)
    if image is None:
        return UNREAD
    faces = []
    for found in detector.detect_emotions(image):
        left, top, width, height = map(float, found["box"])
        scores = found["emotions"]
        label = "happy" if scores["happy"] >= scores["sad"] else "sad"
        faces.append((left, top, left + width, top + height, label))
    return Answer(None, 0.0, faces)


def open_peer(options: dict[str, Any]) -> Opened:
    pool = ProcessPoolExecutor(options["threads"], initializer=begin)

    def answer(paths: list[str]) -> list[Answer]:
        if options.get("scenes"):
            return list(pool.map(look_at_scene, paths))
        return list(pool.map(look, paths, chunksize=32))

    versions = {"fer": version("fer"), "tensorflow": version("tensorflow")}
    return Opened(answer, f"its TensorFlow Lite network, {options['threads']} processes", True, versions)


if __name__ == "__main__":
    main(open_peer)
