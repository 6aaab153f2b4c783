"""JPEGs that no encoder at hand writes, built byte by byte: of any sampling factors, scans and codes."""

import struct
from collections.abc import Sequence

import numpy as np

BASELINE, PROGRESSIVE, LOSSLESS, ARITHMETIC = 0xC0, 0xC2, 0xC3, 0xC9


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def frame(marker: int, width: int, height: int, factors: Sequence[tuple[int, int]]) -> bytes:
    """The frame header, of components with these horizontal and vertical sampling factors."""
    parts = b"".join(bytes([i, across << 4 | down, 0]) for i, (across, down) in enumerate(factors, 1))
    return segment(marker, struct.pack(">BHHB", 8, height, width, len(factors)) + parts)


def scan(components: Sequence[int], first: int = 0, last: int = 63, bits: int = 0) -> bytes:
    """A scan's header: of these components (from 1), a band of coefficients, and what is refined."""
    return segment(0xDA, bytes([len(components), *(x for i in components for x in (i, 0)), first, last, bits]))


def codes(kind: int, symbols: bytes, length: int) -> bytes:
    """A Huffman table, of DC (0) or AC (1), whose codes all have one length."""
    return segment(0xC4, bytes([kind << 4, *(len(symbols) * (bits == length) for bits in range(1, 17))]) + symbols)


def whole(*parts: bytes, quantum: int = 1) -> bytes:
    return b"\xff\xd8" + segment(0xDB, bytes([0] + [quantum] * 64)) + b"".join(parts) + b"\xff\xd9"


def sampled(
    width: int, height: int, factors: Sequence[tuple[int, int]], seed: int = 0
) -> tuple[bytes, np.ndarray]:
    """A baseline JPEG of blocks of one level each, and its first component's plane, as large as it is stored."""
    header = frame(BASELINE, width, height, factors)
    if len(factors) == 1:  # a single component's blocks lie one after the other
        factors = [(1, 1)]
    across, down = (max(column) for column in zip(*factors, strict=True))
    columns, rows = -(-width // (8 * across)), -(-height // (8 * down))
    rng = np.random.default_rng(seed)
    planes = [rng.integers(-100, 101, (rows * v, columns * h)) for h, v in factors]
    bits, before = [], [0] * len(factors)
    for row, column in np.ndindex(rows, columns):
        for i, (h, v) in enumerate(factors):
            for level in planes[i][row * v : (row + 1) * v, column * h : (column + 1) * h].ravel().tolist():
                difference, before[i] = level - before[i], level
                size = abs(difference).bit_length()
                bits.append(f"{size:04b}")  # codes(0, ...) gives each size itself
                if size:
                    bits.append(f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}")
                bits.append("0")  # no more coefficients
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")
    tables = codes(0, bytes(range(10)), 4) + codes(1, b"\0", 1)
    luma = np.repeat(np.repeat(planes[0] + 128, 8, axis=0), 8, axis=1).astype(np.uint8)
    return whole(header, tables, scan(range(1, len(factors) + 1)), data, quantum=8), luma


def in_scans(width: int, height: int, count: int, components: int = 3, marker: int = PROGRESSIVE) -> bytes:
    """A JPEG in so many scans, each of nothing: a decoder goes over all its coefficients for each."""
    tables = codes(0, b"\0", 1) + codes(1, b"\0", 1)
    header = frame(marker, width, height, [(1, 1)] * components)
    last = 0 if marker & 3 == 2 else 63
    scans = [scan([1 + i], 0, last) for i in range(components)]
    return whole(header, tables, *(scans[i % components] for i in range(count)))


def lossless(width: int, height: int, components: int = 3) -> bytes:
    """A lossless JPEG, all of its levels 128. Of three components these are red, green and blue."""
    header = frame(LOSSLESS, width, height, [(1, 1)] * components)
    return whole(
        header, codes(0, b"\0", 1), scan(range(1, components + 1), 1, 0), bytes(width * height * components)
    )
