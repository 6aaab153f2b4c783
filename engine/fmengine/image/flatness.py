"""Detect pictures that show nothing at all: a black frame, a white page and a single pixel are flat.

A network answers for them too, and often with confidence; `Prediction.reason` is then `flat`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..model.spec import InputSpec
from ..types import InputBatch
from .geometry import Size, compute_pad_box

# Levels of standard deviation, of each channel: JPEG's noise on one colour has less, every face has more.
FLAT = 2


def is_flat(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return whether every channel's standard deviation is under `FLAT` levels, from exact integer sums.

    Args:
        images: uint8 `[N, C, H, W]`, any size.

    Returns:
        bool `[N]`.
    """
    count, channels, height, width = images.shape
    if count == 1 and _varies(images[0, 0]):
        return np.zeros(1, np.bool_)
    levels = images.reshape(count * channels, height * width).astype(np.uint16)
    total = levels.sum(axis=1, dtype=np.uint64)
    squares = np.multiply(levels, levels, out=levels).sum(axis=1, dtype=np.uint64)  # 255² fits 16 bits
    pixels = np.uint64(height * width)
    # The variance times the squared number of pixels, as a GPU computes it too.
    flat = pixels * squares - total * total < np.uint64(FLAT**2) * pixels * pixels
    of_all: npt.NDArray[np.bool_] = flat.reshape(count, channels).all(axis=1)
    return of_all


def _varies(channel: npt.NDArray[np.uint8]) -> bool:
    """Return whether some 64 pixels show that a channel is not flat, in a third of the time that all would take.

    True is exact: the squared deviations of some pixels from their mean add up to no more than those of all.
    """
    height, width = channel.shape
    sample = channel[:: height // 8 or 1, :: width // 8 or 1].tobytes()
    # Squared, times the number of levels.
    deviations = len(sample) * sum([level * level for level in sample]) - sum(sample) ** 2
    return deviations >= FLAT**2 * len(sample) * channel.size


def is_flat_input(inputs: InputBatch, sizes: Sequence[Size], spec: InputSpec) -> npt.NDArray[np.bool_]:
    """Return whether each picture's part of the network's input is flat; borders of `pad` do not count.

    Args:
        inputs: uint8 `[N, C, H, W]`.
        sizes: width and height of each picture that they were made from.
        spec: of the inputs.

    Returns:
        bool `[N]`.
    """
    if spec.fit != "pad":
        return is_flat(inputs)
    shown = (image[:, *_find_inner(size, spec.size)] for image, size in zip(inputs, sizes, strict=True))
    return np.array([is_flat(part[np.newaxis])[0] for part in shown], np.bool_)


def _find_inner(size: Size, target: Size) -> tuple[slice, slice]:
    """Find the rows and columns of a padded input that no black border was blended into, or else the middle ones.

    Args:
        size: width and height of the picture.
        target: width and height of the input.
    """
    left, top, right, bottom = compute_pad_box(size, target)
    across = _find_unblended(size[0], left, right - left, target[0])
    down = _find_unblended(size[1], top, bottom - top, target[1])
    return down, across


def _find_unblended(length: int, start: int, padded: int, target: int) -> slice:
    """Find the outputs of a triangle filter from `padded` to `target` whose support lies inside the picture.

    Args:
        length: of the picture, in pixels.
        start: of the padded picture in the picture's coordinates, zero or negative.
        padded: its length.
        target: that it is resized to.
    """
    if padded == length:
        return slice(0, target)
    scale = padded / target
    support = max(scale, 1.0)
    first = int(np.ceil((support - start) / scale - 0.5))
    last = int(np.floor((length - start - support) / scale - 0.5))
    return slice(first, last + 1) if first <= last else slice(target // 2, target // 2 + 1)
