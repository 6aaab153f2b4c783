"""Plan a batch for the preprocessing kernels: a descriptor a picture, sizes of memory, and launches.

Nothing here uses a GPU. `preprocess.cu` describes what the three launches do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# `struct Descriptor` of preprocess.cu, field by field.
DESCRIPTOR = np.dtype(
    [
        ("pixels", np.int64),
        ("stride", np.int64),
        ("intermediate", np.int64),
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

WARP, ROWS = 32, 8  # threads a block, as in preprocess.cu: 32 columns of 8 rows
COEFFS_THREADS = 128  # a block of `precompute_coeffs`
MAX_COORDINATE = 2**30  # sums of two stay in 32 bits
MAX_BLOCKS = 2**31 - 1  # of a launch, in CUDA's x dimension


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
        descriptors: of the pictures, to be copied to the device.
        shape: of the input that the launches fill, `[N, C, H, W]`.
        tables_size: bytes of the coefficient tables, which the first launch fills.
        workspace_size: bytes between the two passes.
        groups: of `ROWS` source rows in the whole batch.
    """

    descriptors: npt.NDArray[np.void]
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
        descriptors = np.zeros(len(geometries), DESCRIPTOR)
        for name in ("pixels", "height", "width", "stride", "channels", "bgr"):
            descriptors[name] = [getattr(geometry, name) for geometry in geometries]
        left, top, right, bottom = np.array([geometry.box for geometry in geometries], np.int64).T
        descriptors["left"], descriptors["top"] = left, top
        descriptors["crop_width"], descriptors["crop_height"] = right - left, bottom - top
        column_ints = _count_table_ints(descriptors["crop_width"], width)
        row_ints = _count_table_ints(descriptors["crop_height"], height)
        table_ints = np.stack([column_ints, row_ints], axis=1).ravel()
        begins = np.cumsum(table_ints) - table_ints
        descriptors["columns"], descriptors["rows"] = begins[0::2], begins[1::2]
        intermediate = descriptors["crop_height"].astype(np.int64) * width * color_channels
        descriptors["intermediate"] = np.cumsum(intermediate) - intermediate
        groups = -(-descriptors["crop_height"].astype(np.int64) // ROWS)
        descriptors["first_group"] = np.cumsum(groups) - groups
        shape = (len(descriptors), color_channels, height, width)
        return cls(descriptors, shape, 4 * int(table_ints.sum()), int(intermediate.sum()), int(groups.sum()))

    def list_launches(self, base: int, descriptors: int, tables: int, workspace: int, images: int) -> list[Launch]:
        """Return the launches, in order, for these device addresses.

        Args:
            base: what `Geometry.pixels` counts from.
            descriptors: of the copied descriptors.
            tables: of `tables_size` bytes.
            workspace: of `workspace_size` bytes.
            images: of the input, uint8 `[N, C, H, W]`.

        Raises:
            ValueError: for a batch with more rows than one launch holds.
        """
        count, channels, height, width = self.shape
        warps = -(-width // WARP)
        horizontal_blocks = warps * self.groups
        vertical_blocks = warps * -(-height // ROWS) * channels * count
        if max(horizontal_blocks, vertical_blocks) > MAX_BLOCKS:
            raise ValueError(f"{count} pictures of {self.groups * ROWS:,} rows; launch them in two batches")

        def pointer(address: int) -> np.generic:
            return np.uint64(address)

        n, c, h, w = (np.int32(value) for value in self.shape)
        return [
            Launch(
                "precompute_coeffs",
                -(-count * (height + width) // COEFFS_THREADS),
                (COEFFS_THREADS, 1),
                (pointer(descriptors), n, h, w, pointer(tables)),
            ),
            Launch(
                "resize_horizontal_gray" if channels == 1 else "resize_horizontal_rgb",
                horizontal_blocks,
                (WARP, ROWS),
                (pointer(base), pointer(descriptors), n, w, pointer(tables), pointer(workspace)),
            ),
            Launch(
                "resize_vertical",
                vertical_blocks,
                (WARP, ROWS),
                (pointer(descriptors), c, h, w, pointer(tables), pointer(workspace), pointer(images)),
            ),
        ]


def _count_table_ints(lengths: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Count the ints of the tables that resize `lengths` pixels to `size`.

    For each output: the first tap, the number of taps, and room for as many weights as Pillow has at most.
    """
    support = np.maximum(lengths / size, 1.0)
    ints: npt.NDArray[np.int64] = size * (2 + 2 * np.ceil(support).astype(np.int64) + 1)
    return ints


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
