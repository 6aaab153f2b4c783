"""Measures how well labels of one's own are learned from few pictures, and how long it takes.

    python -m fmengine_bench.own_labels fer2013-other --classes angry,fear,surprise --pictures 50,300 --draws 5

DATA has a folder a class below `train`, from which so many pictures of each are drawn, and below `val`, on all of
which the model is scored, as it is exported in FP32. Ways are run in turn: from scratch, the last layer alone, and
all layers, both from the shipped network.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from fmengine.cli.console import print_data, track
from fmengine.engine import Engine

from .evaluate import evaluate

WAYS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "linear": ("--from", "alexnet-slim", "--kind", "linear"),
    "all layers": ("--from", "alexnet-slim"),
}


class Run(NamedTuple):
    """What one training took and gave.

    Attributes:
        accuracy: on the validation pictures.
        seconds: of the whole command.
        cpu_seconds: of all its processes.
    """

    accuracy: float
    seconds: float
    cpu_seconds: float


def draw_pictures(root: Path, classes: Sequence[str], count: int, seed: int, folder: Path) -> None:
    """Link so many pictures of each class, chosen by a seed, into a folder with one folder a class."""
    for name in classes:
        files = sorted((root / "train" / name).iterdir())
        (folder / name).mkdir(parents=True)
        for file in random.Random(f"{seed} {name}").sample(files, count):
            (folder / name / file.name).symlink_to(file.resolve())


def run_way(way: str, pictures: Path, validation: Path, seed: int, folder: Path) -> Run:
    """Train in one way, export, and score."""
    began, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "fmengine"]
    run = str(folder / "run")
    _call([*command, "train", str(pictures), "--run", run, "--seed", str(seed), *WAYS[way]])
    seconds, after = time.perf_counter() - began, os.times()
    spent = sum(after[2:4]) - sum(before[2:4])  # of children
    _call([*command, "export", run, "--name", "own", "--precision", "fp32", "--output", str(folder)])
    with Engine.load(folder / "own.fp32.onnx", "onnxruntime") as engine:
        return Run(evaluate(engine, validation).report.accuracy, seconds, spent)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--classes", required=True, help="With commas.")
@click.option("--pictures", default="50,300", show_default=True, help="Of each class, with commas.")
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True)
@click.option("--ways", default=",".join(WAYS), show_default=True, help="With commas.")
def main(data: Path, classes: str, pictures: str, draws: int, ways: str) -> None:
    """Measure on DATA/train and DATA/val."""
    names = classes.split(",")
    with tempfile.TemporaryDirectory() as root:
        validation = Path(root, "validation")
        validation.mkdir()
        for name in names:
            (validation / name).symlink_to((data / "val" / name).resolve())
        for count in map(int, pictures.split(",")):
            runs: dict[str, list[Run]] = {way: [] for way in ways.split(",")}
            for seed in track(range(draws), draws, "draws", caption=f"{count} of each"):
                drawn = Path(root, f"{count}-{seed}")
                draw_pictures(data, names, count, seed, drawn / "faces")
                for way, done in runs.items():
                    done.append(run_way(way, drawn / "faces", validation, seed, drawn / way.replace(" ", "-")))
            for way, done in runs.items():
                accuracy, seconds, spent = np.array(done).T
                shown = " ".join(f"{100 * value:.1f}" for value in accuracy)
                print_data(
                    f"{count:5} of each  {way:10}  {100 * accuracy.mean():5.1f} %  ({shown})  "
                    f"{seconds.mean():6.1f} s, {spent.mean():6.1f} s of a core"
                )


if __name__ == "__main__":
    main()
