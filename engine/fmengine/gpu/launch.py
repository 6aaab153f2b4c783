"""What the preprocessing kernel is told of a batch: a descriptor a picture, and how much memory it takes.

Nothing here touches a GPU. `preprocess.cu` says what the three launches do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# `struct Picture` of preprocess.cu, field by field.
PICTURE = np.dtype(
    [
        ("pixels", np.int64),
        ("stride", np.int64),
        ("squeezed", np.int64),
        ("columns", np.int64),
        ("rows", np.int64),
        ("first_group", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("channels", np.int32),
        ("bgr", np.int32),
        ("left", np.int32),
        ("top", np.int32),
        ("crop_height", np.int32),
        ("crop_width", np.int32),
    ]
)

LANES, ROWS = 32, 8  # threads a block, as in preprocess.cu: 32 columns of 8 rows
TABULATE_THREADS = 128
LARGEST = 2**30  # of a coordinate: sums of two stay in 32 bits
MAX_BLOCKS = 2**31 - 1  # of a launch, in CUDA's x dimension


class Geometry(NamedTuple):
    """Where one picture lies and what of it is wanted.

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


class Launch(NamedTuple):
    """One kernel launch: `grid` blocks of `block` threads."""

    kernel: str
    grid: int
    block: tuple[int, int]
    arguments: tuple[np.generic, ...]


@dataclass(frozen=True)
class Plan:
    """A batch, ready to launch.

    Attributes:
        pictures: descriptors, to be copied to the device.
        shape: of the input that the launches fill, `[N, C, H, W]`.
        tables_size: bytes of the weight tables, which the first launch fills.
        workspace_size: bytes between the two passes.
        groups: of `ROWS` source rows in the whole batch.
    """

    pictures: npt.NDArray[np.void]
    shape: tuple[int, int, int, int]
    tables_size: int
    workspace_size: int
    groups: int

    @classmethod
    def make(cls, geometries: Sequence[Geometry], color_channels: int, height: int, width: int) -> "Plan":
        """Lay out a batch of at least one picture.

        Args:
            geometries: of the pictures, in order.
            color_channels: of the input, 1 for gray and 3 for RGB.
            height: rows of the input.
            width: columns of the input.

        Raises:
            ValueError: for a picture without pixels, or with another number of channels.
        """
        _check(geometries)
        pictures = np.zeros(len(geometries), PICTURE)
        for name in ("pixels", "height", "width", "stride", "channels", "bgr"):
            pictures[name] = [getattr(geometry, name) for geometry in geometries]
        left, top, right, bottom = np.array([geometry.box for geometry in geometries], np.int64).T
        pictures["left"], pictures["top"] = left, top
        pictures["crop_width"], pictures["crop_height"] = right - left, bottom - top
        column_ints = _table_ints(pictures["crop_width"], width)
        table_ints = np.stack([column_ints, _table_ints(pictures["crop_height"], height)], axis=1).ravel()
        begins = np.cumsum(table_ints) - table_ints
        pictures["columns"], pictures["rows"] = begins[0::2], begins[1::2]
        squeezed = pictures["crop_height"].astype(np.int64) * width * color_channels
        pictures["squeezed"] = np.cumsum(squeezed) - squeezed
        groups = -(-pictures["crop_height"].astype(np.int64) // ROWS)
        pictures["first_group"] = np.cumsum(groups) - groups
        shape = (len(pictures), color_channels, height, width)
        return cls(pictures, shape, 4 * int(table_ints.sum()), int(squeezed.sum()), int(groups.sum()))

    def launches(self, base: int, pictures: int, tables: int, workspace: int, images: int) -> list[Launch]:
        """The launches, in order, for these device addresses.

        Args:
            base: what `Geometry.pixels` counts from.
            pictures: of the copied descriptors.
            tables: of `tables_size` bytes.
            workspace: of `workspace_size` bytes.
            images: of the input, uint8 `[N, C, H, W]`.

        Raises:
            ValueError: for a batch with more rows than one launch holds.
        """
        count, channels, height, width = self.shape
        warps = -(-width // LANES)
        squeeze_blocks = warps * self.groups
        stack_blocks = warps * -(-height // ROWS) * channels * count
        if max(squeeze_blocks, stack_blocks) > MAX_BLOCKS:
            raise ValueError(f"{count} pictures of {self.groups * ROWS:,} rows; launch them in two batches")

        def pointer(address: int) -> np.generic:
            return np.uint64(address)

        n, c, h, w = (np.int32(value) for value in self.shape)
        return [
            Launch(
                "tabulate",
                -(-count * (height + width) // TABULATE_THREADS),
                (TABULATE_THREADS, 1),
                (pointer(pictures), n, h, w, pointer(tables)),
            ),
            Launch(
                "squeeze_gray" if channels == 1 else "squeeze_rgb",
                squeeze_blocks,
                (LANES, ROWS),
                (pointer(base), pointer(pictures), n, w, pointer(tables), pointer(workspace)),
            ),
            Launch(
                "stack",
                stack_blocks,
                (LANES, ROWS),
                (pointer(pictures), c, h, w, pointer(tables), pointer(workspace), pointer(images)),
            ),
        ]


def _table_ints(lengths: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Ints of the tables that resize `lengths` pixels to `size`: first tap, taps, and Pillow's most weights."""
    support = np.maximum(lengths / size, 1.0)
    most: npt.NDArray[np.int64] = size * (2 + 2 * np.ceil(support).astype(np.int64) + 1)
    return most


def _check(geometries: Sequence[Geometry]) -> None:
    for index, picture in enumerate(geometries):
        left, top, right, bottom = picture.box
        if not (1 <= picture.height < LARGEST and 1 <= picture.width < LARGEST):
            raise ValueError(
                f"picture {index} has {picture.height} rows of {picture.width} pixels; expected 1 or more"
            )
        if not (-LARGEST < left < right < LARGEST and -LARGEST < top < bottom < LARGEST):
            raise ValueError(f"picture {index} has the box {picture.box}; expected left < right and top < bottom")
        if picture.channels not in (1, 3, 4):
            raise ValueError(f"picture {index} has {picture.channels} channels; expected 1, 3 or 4")
