"""The weight tables of `preprocess`, made once for an input's size, and the launch that uses them.

Nothing here uses a GPU.
"""

from typing import NamedTuple

import numpy as np

from .arena import align
from .launch import InputShape, Launch

# As in preprocess.cu.
LONGEST = 1024  # pixels of a box's side
BETWEEN_BYTES = 16 * 1024  # of rows between the passes
BLOCK = 320  # threads, at most
MAX_COLUMNS = 256  # of a block
TABLE_THREADS = 128  # of a block that makes tables
MIN_BAND = 4  # output rows of a block: fewer would make the rows that two blocks share many


class Tables(NamedTuple):
    """The weights of every length from 1 to `longest` for both axes of an input.

    Attributes:
        shape: of the input.
        longest: side of a box that there are weights for, in pixels; 0 where `preprocess` does not fit the input.
    """

    shape: InputShape
    longest: int

    @classmethod
    def for_input(cls, shape: InputShape) -> "Tables":
        """Find the longest side: the rows that one output row needs must fit between the passes."""
        rows = BETWEEN_BYTES // (shape.width * shape.channels)
        return cls(shape, min(LONGEST, shape.height * ((rows - 1) // 2)) if rows >= 3 else 0)

    @property
    def size(self) -> int:
        """Bytes of both tables."""
        return align(4 * self._count_ints(self.shape.width)) + 4 * self._count_ints(self.shape.height)

    def list_launches(self, address: int) -> list[Launch]:
        """List the launches that fill the tables."""
        return [
            Launch(
                "precompute_tables",
                -(-self.longest * size // TABLE_THREADS),
                (TABLE_THREADS, 1),
                (np.int32(size), np.int32(self.longest), np.uint64(at)),
            )
            for size, at in zip((self.shape.width, self.shape.height), self._list_addresses(address), strict=True)
        ]

    def make_launch(
        self, address: int, batch: int, pictures: int, images: int, shown: int, *, most: int, bands: int
    ) -> Launch:
        """Make the launch of `preprocess` for device addresses.

        Args:
            address: of the tables.
            batch: of a `BATCH`.
            pictures: of `most` times a `PICTURE`.
            images: of the input, uint8 `[most, C, H, W]`.
            shown: of a `SHOWN` for each picture.
            most: pictures that there may be.
            bands: blocks a picture, as of `choose_bands`.
        """
        channels, height, width = self.shape
        columns = min(width, MAX_COLUMNS)
        numbers = [np.int32(number) for number in (bands, height, width, self.longest)]
        addresses = [np.uint64(at) for at in (*self._list_addresses(address), images, shown)]
        return Launch(
            "preprocess_gray" if channels == 1 else "preprocess_rgb",
            most * bands,
            (columns, max(1, BLOCK // columns)),
            (np.uint64(batch), np.uint64(pictures), *numbers, *addresses),
        )

    def choose_bands(self, most: int, blocks: int) -> int:
        """Choose into how many bands of output rows to cut a picture, so that a batch has so many blocks."""
        return max(1, min(-(-blocks // most), self.shape.height // MIN_BAND))

    def _count_ints(self, size: int) -> int:
        return self.longest * size * (2 + 2 * max(1, -(-self.longest // size)))

    def _list_addresses(self, address: int) -> tuple[int, int]:
        return address, address + align(4 * self._count_ints(self.shape.width))
