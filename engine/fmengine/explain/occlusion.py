"""Explain an answer by occlusion: cover a part of the picture, and see how much less probable the answer is.

Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014, section 4.2. It needs nothing but
the network's answers, so it works with every backend and every model file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import Kind, SourceError
from ..image.source import is_file_like, read_file_like
from ..types import Channels, NetworkInput, Outputs, Prediction, Source

if TYPE_CHECKING:
    from ..engine import Engine

PATCHES = 4  # that fit into the shorter side of the network's input
STEPS = 4  # in which a patch moves by its own width

Run = Callable[[npt.NDArray[np.uint8]], Outputs]
EffectMap = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What an answer rests on.

    Attributes:
        prediction: the answer.
        label: that is explained: the most probable one, also where the answer is `unsure`.
        effect: float32 `[H, W]` of the network's input: how much less probable the label is where this pixel is
            covered, from -1 to 1, the mean over all patches that cover it. Negative: it speaks against the label.
    """

    prediction: Prediction
    label: str
    effect: EffectMap


def explain(
    engine: "Engine",
    source: Source,
    *,
    channels: Channels = "rgb",
    patch: int | None = None,
    stride: int | None = None,
) -> Explanation:
    """Answer for one picture, and measure which parts of it the answer rests on.

    Takes some 360 runs of the network.

    Args:
        engine: that answers.
        source: as for `Engine.predict`.
        channels: as for `Engine.predict`.
        patch: rows and columns of the network's input that are covered at a time; None for a quarter of its
            shorter side.
        stride: pixels from one patch to the next, no more than `patch`; None for a quarter of it.

    Raises:
        SourceError: as `Engine.predict`; of the kind `not_finite` also where the network has no number for the
            picture with a part covered.
        ValueError: for a patch or a stride that cannot be.
    """
    if is_file_like(source):
        source = read_file_like(source, engine.limits)  # once, for what follows reads it twice
    prediction = engine.predict(source, channels=channels)
    image = engine.preprocess(source, channels=channels)
    label = max(prediction.probabilities, key=lambda name: prediction.probabilities[name])
    patch = max(1, min(image.shape[1:]) // PATCHES) if patch is None else patch
    stride = max(1, patch // STEPS) if stride is None else stride
    index = engine.spec.labels.index(label)
    effect = compute_effect(engine.backend.run, image, index, patch, stride, engine.max_batch)
    return Explanation(prediction, label, effect)


def compute_effect(
    run: Run, image: NetworkInput, label: int, patch: int, stride: int, batch_size: int = 64
) -> EffectMap:
    """Measure how much less probable a label is where a square patch of the input has its mean level.

    Args:
        run: the network, uint8 `[N, C, H, W]` to `Outputs`.
        image: uint8 `[C, H, W]`.
        label: index of the label.
        patch: rows and columns of a patch; those at the borders reach beyond, so that a corner is covered as often
            as the centre.
        stride: pixels from one patch to the next.
        batch_size: pictures a run at most.

    Returns:
        float32 `[H, W]`, as of `Explanation.effect`.

    Raises:
        SourceError: of the kind `not_finite`.
        ValueError: for a patch or a stride that cannot be.
    """
    _, height, width = image.shape
    if not 1 <= stride <= patch <= max(height, width):
        raise ValueError(
            f"patch {patch}, stride {stride}; expected a patch of 1 to {max(height, width)} pixels, and a stride "
            "of 1 to as many as the patch has"
        )
    level = np.rint(image.mean(axis=(1, 2), keepdims=True)).astype(np.uint8)
    whole = _get_probabilities(run, image[np.newaxis], label)[0]
    total, count = np.zeros((height, width)), np.zeros((height, width))
    listed = list(_list_windows(height, width, patch, stride))
    for begin in range(0, len(listed), batch_size):
        windows = listed[begin : begin + batch_size]
        covered = np.repeat(image[np.newaxis], len(windows), axis=0)
        for row, window in zip(covered, windows, strict=True):
            row[:, *window] = level
        for window, probability in zip(windows, _get_probabilities(run, covered, label), strict=True):
            total[window] += whole - probability
            count[window] += 1
    return (total / count).astype(np.float32)


def _list_windows(height: int, width: int, patch: int, stride: int) -> Iterator[tuple[slice, slice]]:
    tops, lefts = (range(stride - patch, side, stride) for side in (height, width))
    for top, left in product(tops, lefts):
        yield slice(max(0, top), top + patch), slice(max(0, left), left + patch)


def _get_probabilities(run: Run, images: npt.NDArray[np.uint8], label: int) -> list[float]:
    probabilities: list[float] = run(images).probabilities[:, label].tolist()
    if not np.isfinite(probabilities).all():
        raise SourceError(
            Kind.NOT_FINITE,
            "the model has no number for the picture with a part covered; export it in a higher precision",
        )
    return probabilities
