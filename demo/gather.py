"""Gather the demo's pictures out of the scikit-image wheel: faces, and photographs with a face or without.

    python demo/gather.py FOLDER_OF_THE_UNPACKED_WHEEL FACES_FOLDER SCENES_FOLDER

The portrait is NASA's of astronaut Eileen Collins, in the public domain (skimage/data/astronaut.png). The
small faces are the first 100 of `lfw_subset.npy`, 25×25 gray faces of Labeled Faces in the Wild.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FACE = (158, 44, 288, 204)  # left, top, right, bottom of the face in the portrait of 512×512 pixels
SMALL_FACES = 100  # the other half of the file are no faces
SCENES = ("astronaut.png", "camera.png", "coffee.png", "rocket.jpg")  # a face each in the first two


def gather_faces(data: Path, target: Path) -> None:
    """Write pictures of a face each into a folder."""
    with Image.open(data / "astronaut.png") as portrait:
        portrait.convert("RGB").crop(FACE).save(target / "astronaut.png")
    faces = np.load(data / "lfw_subset.npy")[:SMALL_FACES]
    for number, face in enumerate(faces):
        levels = np.rint(255 * np.clip(face, 0, 1)).astype(np.uint8)
        Image.fromarray(levels).save(target / f"lfw-{number:03}.png")


def gather_scenes(data: Path, target: Path) -> None:
    """Copy photographs into a folder."""
    for name in SCENES:
        shutil.copy(data / name, target)


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder by a function that fills it; it appears whole or not at all."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python demo/gather.py FOLDER_OF_THE_UNPACKED_WHEEL FACES_FOLDER SCENES_FOLDER")
    data = Path(sys.argv[1]) / "skimage" / "data"
    make_folder(Path(sys.argv[3]), lambda folder: gather_scenes(data, folder))
    make_folder(Path(sys.argv[2]), lambda folder: gather_faces(data, folder))
