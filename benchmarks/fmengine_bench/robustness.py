"""Measures accuracy under corruptions, through the runtime as users run it."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fmengine.cli.console import track
from fmengine.engine import Engine
from fmengine.errors import SourceError
from fmengine.image.decode import try_decode
from fmengine.types import Prediction

from .corruptions import CORRUPTIONS, SEVERITIES


@dataclass(frozen=True)
class Robustness:
    """Accuracy on one set of pictures, corrupted.

    Attributes:
        clean: accuracy on the pictures as they are, decoded in the same way.
        accuracy: by corruption, at severities 1 to 5.
        mean: over all corruptions and severities.
    """

    clean: float
    accuracy: dict[str, list[float]]
    mean: float


def measure_robustness(engine: Engine, files: list[tuple[str, int]]) -> Robustness:
    """Score an engine on every corruption of labelled pictures.

    Files that are no pictures are left out; a picture that the model has no answer for is not answered right.
    """
    clean = _measure_accuracy(engine, files, "clean", 0)
    accuracy = {
        name: [_measure_accuracy(engine, files, name, severity) for severity in range(1, SEVERITIES + 1)]
        for name in CORRUPTIONS
    }
    return Robustness(clean, accuracy, float(np.mean(list(accuracy.values()))))


def _measure_accuracy(engine: Engine, files: list[tuple[str, int]], name: str, severity: int) -> float:
    targets: list[int] = []
    pictures = _corrupt_all(engine, files, targets, name, severity)
    caption = f"{name} {severity}"
    results = list(engine.predict_many(track(pictures, len(files), "pictures", caption=caption)))
    labels = engine.spec.labels
    right = [
        isinstance(result, Prediction) and result.label == labels[target]
        for result, target in zip(results, targets, strict=True)
    ]
    return float(np.mean(right))


def _corrupt_all(
    engine: Engine, files: list[tuple[str, int]], targets: list[int], name: str, severity: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield corrupted pixels of the files that are pictures; append the target of each to `targets`."""
    for path, target in files:
        made = try_decode(path, engine.spec.color, partial(_corrupt, path, name, severity), engine.limits)
        if not isinstance(made, SourceError):
            targets.append(target)
            yield made


def _corrupt(path: str, name: str, severity: int, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if not severity:
        return pixels
    # The same draw for a file whatever else is in the set.
    rng = np.random.default_rng(zlib.crc32(f"{path.rsplit('/', 2)[-2:]}{name}{severity}".encode()))
    return CORRUPTIONS[name](pixels, severity, rng)


def as_text(found: Robustness) -> str:
    """Format the figures as a table for a terminal."""
    lines = [f"  corruptions        {'':12}" + "".join(f"{severity:8}" for severity in range(1, SEVERITIES + 1))]
    for name, row in found.accuracy.items():
        lines.append(f"    {name:<29}" + "".join(f"{accuracy:8.1%}" for accuracy in row))
    lines.append(
        f"    mean {found.mean:.2%}, {100 * (found.clean - found.mean):.1f} points below {found.clean:.2%} clean"
    )
    return "\n".join(lines)
