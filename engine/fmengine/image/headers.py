"""How files are coded, read from their headers as their decoders will read those.

Which part of a file its decoder will use is not always clear from headers. Then more is found than it would use,
never less.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

# JPEG.

JPEG_MAGIC = b"\xff\xd8\xff"  # that a file begins with
SOS, EOI = 0xDA, 0xD9
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
MIN_SCAN_BYTES = 10  # a scan's header
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)  # neither stuffed bytes nor restarts
_NO_BASELINE = re.compile(rb"\xff[\xc2\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]")


class Frame(NamedTuple):
    """How a JPEG is coded.

    Attributes:
        marker: of its frame header, 0xC0 for baseline.
        samples: of all components a pixel: 3 for 4:4:4, 1.5 for 4:2:0.
        in_scans: whether it has several scans, so that a decoder holds all coefficients until the last.
    """

    marker: int
    samples: float
    in_scans: bool

    @property
    def arithmetic(self) -> bool:
        """Whether its entropy coding is arithmetic instead of Huffman's."""
        return self.marker > 0xC8


def read_frame(data: bytes) -> Frame | None:
    """Read a JPEG's header up to its first scan; None where it is damaged, which its decoder reports."""
    marker, sampling = 0, b""
    with suppress(IndexError, ValueError, ZeroDivisionError):
        for kind, at in _walk_segments(data):
            if kind in FRAMES:
                marker, components = kind, data[at + 7]
                sampling = data[at + 9 : at + 8 + 3 * components : 3]
            elif kind == SOS:
                factors = [(byte >> 4, byte & 15) for byte in sampling]
                blocks = sum(across * down for across, down in factors)
                largest = max(across for across, _ in factors) * max(down for _, down in factors)
                return Frame(marker, blocks / largest, marker & 3 == 2 or data[at + 2] < len(factors))
    return None


def count_scans(data: bytes) -> int:
    """Count the scans of a JPEG; those of a thumbnail inside it are not among them."""
    return sum(kind == SOS for kind, _ in _walk_segments(data))


def holds_no_baseline(data: bytes) -> bool:
    """Return whether a file may hold a JPEG that is progressive, lossless or arithmetically coded."""
    return _NO_BASELINE.search(data) is not None


def _walk_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield a JPEG's markers, each with the position of its segment's length.

    They are read as libjpeg does: up to the end marker, over whatever lies between two segments.
    """
    position = 2
    while (match := _MARKER.search(data, position)) and match[1][0] != EOI:
        at = match.end()
        yield match[1][0], at
        position = at + max(2, int.from_bytes(data[at : at + 2]))


# JPEG 2000.


def read_codestream_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Read width and height from each header of a JPEG 2000 codestream (SIZ) in a file."""
    for match in re.finditer(rb"\xff\x51", data):
        with suppress(struct.error):
            length, _, right, bottom, left, top, *_, components = struct.unpack_from(">2H8IH", data, match.end())
            if length == 38 + 3 * components:
                yield max(0, right - left), max(0, bottom - top)


def find_smallest_cell(data: bytes) -> int:
    """Find the smallest code-block or precinct, in pixels, of a JPEG 2000's coding styles (COD, COC)."""
    return min(_walk_cells(data), default=64 * 64)


def _walk_cells(data: bytes) -> Iterator[int]:
    """Yield the pixels of each coding style's code-blocks and precincts."""
    for match in re.finditer(rb"\xff[\x52\x53]", data):
        at = match.end()
        first = at + (7 if data[at - 1] == 0x52 else 4)  # of what both hold: levels, two exponents and two flags
        with suppress(IndexError):
            flags = data[at + 2 if data[at - 1] == 0x52 else at + 3]
            precincts = data[first + 5 : first + 6 + data[first]] if flags & 1 else b""
            if int.from_bytes(data[at : at + 2]) == first + 5 - at + len(precincts):
                block = data[first + 1] + data[first + 2] + 4
                # A precinct has a cell in each of three bands, of half its sides.
                yield 2 ** max(0, min([block, *((sides & 15) + (sides >> 4) - 2 for sides in precincts)]))


# Icons.


def read_png_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Read width and height of each PNG in a file."""
    for match in re.finditer(rb"IHDR(.{4})(.{4})", data, re.DOTALL):
        yield int.from_bytes(match[1]), int.from_bytes(match[2])


def read_bitmap_sizes(icon: bytes) -> Iterator[tuple[int, int]]:
    """Read width and height of each bitmap in a Windows icon; its mask adds to the height."""
    for entry in range(int.from_bytes(icon[4:6], "little")):
        with suppress(struct.error):
            (at,) = struct.unpack_from("<I", icon, 6 + 16 * entry + 12)
            (header,) = struct.unpack_from("<I", icon, at)  # its size in bytes, by which versions differ
            if 12 <= header <= 124:
                width, height = struct.unpack_from("<2h" if header == 12 else "<2i", icon, at + 4)
                yield abs(width), abs(height)
