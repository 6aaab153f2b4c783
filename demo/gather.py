"""Gather the demo's pictures out of the scikit-image wheel: a portrait's face, and a hundred small ones.

    python demo/gather.py FOLDER_OF_THE_UNPACKED_WHEEL TARGET_FOLDER

The portrait is NASA's of astronaut Eileen Collins, in the public domain (skimage/data/astronaut.png). The
small ones are the first 100 of `lfw_subset.npy`, 25×25 gray faces of Labeled Faces in the Wild.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FACE = (158, 44, 288, 204)  # left, top, right, bottom of the face in the portrait of 512×512 pixels
SMALL_FACES = 100  # the other half of the file are no faces


def gather(wheel: Path, target: Path) -> None:
    """Write the pictures into `target`, which appears whole or not at all."""
    data = wheel / "skimage" / "data"
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with Image.open(data / "astronaut.png") as portrait:
        portrait.convert("RGB").crop(FACE).save(partial / "astronaut.png")
    faces = np.load(data / "lfw_subset.npy")[:SMALL_FACES]
    for number, face in enumerate(faces):
        levels = np.rint(255 * np.clip(face, 0, 1)).astype(np.uint8)
        Image.fromarray(levels).save(partial / f"lfw-{number:03}.png")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python demo/gather.py FOLDER_OF_THE_UNPACKED_WHEEL TARGET_FOLDER")
    gather(Path(sys.argv[1]), Path(sys.argv[2]))
