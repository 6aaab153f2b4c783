"""Plan the three launches of `preprocess.cu` for a batch with boxes of any length: tables, workspace, launches.

Nothing here uses a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .launch import PICTURE, Geometry, InputShape, Launch, describe_pictures

# `struct Descriptor` of preprocess.cu: a picture, and where its tables and its rows between the passes are.
DESCRIPTOR = np.dtype(
    [(name, PICTURE[name]) for name in PICTURE.names or ()]
    + [(name, np.dtype(np.int64)) for name in ("intermediate", "columns", "rows", "first_group")]
)

WARP, ROWS = 32, 8  # threads a block, as in preprocess.cu: 32 columns of 8 rows
COEFFS_THREADS = 128  # a block of `precompute_coeffs`
MAX_BLOCKS = 2**31 - 1  # of a launch, in CUDA's x dimension


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
    def make(cls, geometries: Sequence[Geometry], input_shape: InputShape) -> "Plan":
        """Lay out a batch of at least one picture.

        Raises:
            ValueError: as of `describe_pictures`.
        """
        color_channels, height, width = input_shape
        descriptors = np.zeros(len(geometries), DESCRIPTOR)
        describe_pictures(geometries, descriptors)
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

    def list_launches(
        self, base: int, descriptors: int, tables: int, workspace: int, images: int, shown: int
    ) -> list[Launch]:
        """Return the launches, in order, for these device addresses.

        Args:
            base: what `Geometry.pixels` counts from.
            descriptors: of the copied descriptors.
            tables: of `tables_size` bytes.
            workspace: of `workspace_size` bytes.
            images: of the input, uint8 `[N, C, H, W]`.
            shown: of a `SHOWN` for each picture.

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
                (pointer(descriptors), n, h, w, pointer(tables), pointer(shown)),
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
