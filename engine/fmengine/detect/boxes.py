"""How far boxes of faces overlap."""

from typing import Any

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating[Any]]  # left, top, right and bottom, `[n, 4]`


def compute_ious(first: Boxes, second: Boxes) -> npt.NDArray[np.float64]:
    """Compute the intersection over union of each of the first boxes with each of the second, `[n, m]`."""
    corner = np.maximum(first[:, np.newaxis, :2], second[np.newaxis, :, :2])
    opposite = np.minimum(first[:, np.newaxis, 2:], second[np.newaxis, :, 2:])
    common = np.clip(opposite - corner, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, np.newaxis] + areas[1][np.newaxis] - common
    ious: npt.NDArray[np.float64] = common / np.maximum(union, 1e-9)
    return ious
