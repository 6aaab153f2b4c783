"""Measures the classifier on faces that were found and cut out, beside the same pictures as they are given.

    python -m fmengine_bench.crops fer2013/val --enlarge 4
    python -m fmengine_bench.crops effectnet --held-out 0.1

A folder for each label. Each picture is put onto a canvas of 640×480, found there, cut out and answered; the face
of the largest box counts, and one that is not found is wrong.
"""

import os
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from fmengine.cli import main
from fmengine.cli.console import print_data
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.types import Failure, Scene
from fmengine_train.data import is_held_out

from .metrics import compute_wilson_interval

CANVAS, GROUND = (640, 480), (114, 114, 114)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--enlarge", type=click.IntRange(1), default=1, show_default=True, help="Times.")
@click.option("--held-out", type=click.FloatRange(0, 1), default=1.0, help="Share, by a hash of the file name.")
@click.option("--list", "listed", is_flag=True, help="The pictures whose answers differ.")
def crops(folder: Path, enlarge: int, held_out: float, listed: bool) -> None:
    paths = [path for path in sorted(folder.rglob("*.jpg")) if held_out == 1 or is_held_out(path.name, held_out)]
    if not paths:
        raise DataError(f"no jpg files in {folder}; expected a folder for each label")
    labels = [path.parent.name for path in paths]
    with Engine.load() as engine:
        given = [None if isinstance(r, Failure) else r.label for r in engine.predict_many(list(map(str, paths)))]
        scenes = list(engine.predict_scenes(_paste(path, enlarge) for path in paths))
    found = [_get_label(scene) for scene in scenes]
    right, cut = (np.array([a == b for a, b in zip(each, labels, strict=True)]) for each in (given, found))
    seen = np.array([label is not None for label in found])
    for name, which in (("all", np.ones(len(paths), bool)), ("found", seen)):
        shares = []
        for each in (right, cut):
            low, high = compute_wilson_interval(int(each[which].sum()), int(which.sum()))
            shares.append(f"{each[which].mean():.2%} [{low:.1%}, {high:.1%}]")
        print_data(f"{name}: {which.sum()} pictures; as given {shares[0]}, found and cut out {shares[1]}")
    print_data(f"right as given alone {(right & ~cut).sum()}, cut out alone {(cut & ~right).sum()}")
    if listed:
        for index in np.flatnonzero(right != cut):
            print_data(f"{os.fspath(paths[index])}  given {given[index]}, cut out {found[index]}")


def _paste(path: Path, enlarge: int) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        face = image.convert("RGB")
    if enlarge > 1:
        face = face.resize((enlarge * face.width, enlarge * face.height), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", CANVAS, GROUND)
    canvas.paste(face, ((CANVAS[0] - face.width) // 2, (CANVAS[1] - face.height) // 2))
    return np.asarray(canvas)


def _get_label(scene: Scene | Failure) -> str | None:
    if isinstance(scene, Failure) or not scene.faces:
        return None
    return max(
        scene.faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1])
    ).prediction.label


if __name__ == "__main__":
    main(crops, "python -m fmengine_bench.crops")
