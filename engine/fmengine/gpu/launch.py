"""Describe a batch to the kernels of `preprocess.cu`: the structs that they read, and what a launch is.

Nothing here uses a GPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# `struct Picture` of preprocess.cu, field by field.
PICTURE = np.dtype(
    [
        ("pixels", np.int64),
        ("stride", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("left", np.int32),
        ("top", np.int32),
        ("crop_height", np.int32),
        ("crop_width", np.int32),
        ("channels", np.int32),
        ("bgr", np.int32),
    ]
)
# `struct Batch`.
BATCH = np.dtype(
    [("base", np.uint64), ("begin", np.int64), ("end", np.int64), ("count", np.int32), ("unused", np.int32)]
)
# `struct Shown`.
SHOWN = np.dtype([(name, np.int32) for name in ("refused", "top", "bottom", "left", "right")])

ANYWHERE = 2**61  # bytes from the base address: no bound
MAX_COORDINATE = 2**30  # sums of two stay in 32 bits


class Geometry(NamedTuple):
    """Where one picture is in memory, and which part of it is resized.

    Attributes:
        pixels: bytes from the batch's base address to the first pixel.
        height: rows.
        width: columns.
        stride: bytes from one row to the next.
        channels: bytes a pixel, 1, 3 or 4; the fourth is not read.
        bgr: whether blue comes first.
        box: left, top, right and bottom of the part to resize; what lies outside the picture is black.
    """

    pixels: int
    height: int
    width: int
    stride: int
    channels: int
    bgr: bool
    box: tuple[int, int, int, int]


class InputShape(NamedTuple):
    """The size of a network's input: `channels` are 1 for gray and 3 for RGB."""

    channels: int
    height: int
    width: int


class Launch(NamedTuple):
    """One kernel launch: `grid` blocks of `block` threads."""

    kernel: str
    grid: int
    block: tuple[int, int]
    arguments: tuple[np.generic, ...]


def describe_pictures(geometries: Sequence[Geometry], out: npt.NDArray[np.void]) -> None:
    """Write a `PICTURE`, or what begins as one, for each picture.

    Raises:
        ValueError: for a picture without pixels, or with another number of channels.
    """
    _check(geometries)
    for name in ("pixels", "height", "width", "stride", "channels", "bgr"):
        out[name] = [getattr(geometry, name) for geometry in geometries]
    left, top, right, bottom = np.array([geometry.box for geometry in geometries], np.int64).T
    out["left"], out["top"] = left, top
    out["crop_width"], out["crop_height"] = right - left, bottom - top


def _check(geometries: Sequence[Geometry]) -> None:
    for index, picture in enumerate(geometries):
        left, top, right, bottom = picture.box
        if not (1 <= picture.height < MAX_COORDINATE and 1 <= picture.width < MAX_COORDINATE):
            raise ValueError(
                f"picture {index} has {picture.height} rows of {picture.width} pixels; expected 1 or more"
            )
        if not (
            -MAX_COORDINATE < left < right < MAX_COORDINATE and -MAX_COORDINATE < top < bottom < MAX_COORDINATE
        ):
            raise ValueError(f"picture {index} has the box {picture.box}; expected left < right and top < bottom")
        if picture.channels not in (1, 3, 4):
            raise ValueError(f"picture {index} has {picture.channels} channels; expected 1, 3 or 4")
