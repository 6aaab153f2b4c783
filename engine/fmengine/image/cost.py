"""Estimate what decoding a picture costs before anything of it is decoded, and refuse what costs too much.

`Limits.max_pixels` bounds time and memory together. Most pictures cost as much as a PNG of as many
pixels. Where a format, or a variant of it, may cost more, each pixel counts more than once.

Measured with Pillow 13 and libjpeg-turbo 3.2, on the worst files that we could build: at the default limit none
of up to a megabyte takes 5 seconds of a core, larger ones that for each megabyte, and none takes much more than a
gigabyte of memory.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from PIL import Image

from ..errors import Kind, SourceError
from ..options import MIN_ROW, Limits
from ..system import fork
from .headers import (
    MIN_SCAN_BYTES,
    count_scans,
    find_smallest_cell,
    holds_no_baseline,
    read_bitmap_sizes,
    read_codestream_sizes,
    read_frame,
    read_png_sizes,
)

MEGABYTE = 1_000_000
PILLOW_BYTES, OUTPUT_BYTES = 4, 3  # a pixel, at most: of Pillow's image, and of the array that is made of it

SCANS = 12  # of a JPEG, which take as long as the rest of its decoding
ARITHMETIC = 240  # scans of Huffman codes that take as long as one of arithmetic codes may
CELL = 2400  # bytes that OpenJPEG holds for a code-block or precinct of four components
CHEAP = MIN_SCAN_BYTES * SCANS / ARITHMETIC  # bytes of a JPEG that no header makes dear, for each pixel of a limit
LARGE = 128_000_000  # bytes: what takes as much to decode is decoded one at a time
_large: AbstractContextManager[object] = threading.Lock()
_small = nullcontext()

TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
MAX_COMMENTS = 1000  # in a PNM of plain text, of which Pillow copies a megabyte for each


class Cost(NamedTuple):
    """What decoding one pixel costs.

    Attributes:
        time: as a multiple of a PNG's, in a file of a megabyte or less.
        memory: bytes that the decoder holds beside its output.
        why: why it costs more than usual, for messages.
    """

    time: float = 1.0
    memory: float = 0.0
    why: str = ""

    def compute_weight(self, size: int) -> float:
        """Compute how many times a pixel counts, 1 or more; larger files may take longer.

        Args:
            size: bytes of the file.
        """
        return max(
            1.0,
            self.time / max(1.0, size / MEGABYTE),
            (PILLOW_BYTES + self.memory) / (PILLOW_BYTES + OUTPUT_BYTES),
        )


USUAL = Cost()
WEBP = Cost(memory=12, why="of a WebP")
AVIF = Cost(time=4, memory=12, why="of an AVIF")
ICON = Cost(time=8, why="of an icon")
IN_PYTHON = Cost(time=8, memory=12, why="that Pillow decodes in Python")
LAB = Cost(time=2, why="in CIELAB")
JPEG_IN_TIFF = Cost(time=16, why="of a TIFF in JPEG that is not baseline")


def check_pixels(width: int, height: int, limits: Limits, cost: Cost = USUAL, size: int = 0) -> None:
    """Refuse a picture that has more pixels, as often as each counts, than the limit.

    Args:
        width: of the picture.
        height: of the picture.
        limits: of which `max_pixels` counts.
        cost: of each pixel.
        size: bytes of its file.

    Raises:
        SourceError: of the kind `too_large`.
    """
    weight = 1.0 if cost is USUAL else cost.compute_weight(size)
    if max(width, MIN_ROW) * height * weight <= limits.max_pixels:
        return
    rules = [f"a row counts as {MIN_ROW} at least"] if width < MIN_ROW else []
    if weight > 1:
        rules.append(f"pixels {cost.why} count {weight:.3g} times")
    raise SourceError(
        Kind.TOO_LARGE,
        f"{width}×{height} pixels; the limit is {limits.max_pixels:,} pixels a picture"
        + (f" ({'; '.join(rules)})" if rules else ""),
    )


def check_jpeg(width: int, height: int, data: bytes, limits: Limits) -> Cost:
    """Refuse a JPEG for what its pixels would cost, which is returned otherwise; raises as `check_pixels`."""
    cost = estimate_jpeg(data, width * height, limits)
    check_pixels(width, height, limits, cost, len(data))
    return cost


def check_inside(data: bytes, limits: Limits) -> None:
    """Refuse a file that holds too large a picture, where Pillow would notice only by decoding it.

    An icon's directory, and the boxes around a JPEG 2000, may give other sizes than the pictures themselves.

    Raises:
        SourceError: of the kind `too_large`.
    """
    if data.startswith((b"icns", b"\0\0\1\0")):
        for width, height in (*read_png_sizes(data), *(read_bitmap_sizes(data) if data[0] == 0 else ())):
            check_pixels(width, height, limits, ICON, len(data))
    if data.startswith((b"icns", b"\xff\x4f", b"\0\0\0\x0cjP")):
        for width, height in read_codestream_sizes(data):
            check_pixels(width, height, limits, estimate_jpeg2000(data), len(data))


def check_opened(image: Image.Image, data: bytes, limits: Limits) -> Cost:
    """Return what decoding a file would cost that Pillow has opened, and refuse it where that is too much.

    Raises:
        SourceError: of the kind `too_large`.
    """
    codec = _get_codec(image)
    cost = _estimate_opened(image, codec, data, limits)
    check_pixels(*image.size, limits, cost, len(data))
    if image.format == "TIFF":  # whose tiles are decoded whole, however little of one the picture takes
        width, length = (getattr(image, "tag_v2", {}).get(tag) for tag in (TILE_WIDTH, TILE_LENGTH))
        if isinstance(width, int) and isinstance(length, int):
            check_pixels(width, length, limits, cost, len(data))
    if codec == "ppm_plain" and data.count(b"#") > MAX_COMMENTS:
        raise SourceError(Kind.TOO_LARGE, f"over {MAX_COMMENTS:,} comments, the limit of a PNM in plain text")
    return cost


def estimate_jpeg(data: bytes, pixels: int, limits: Limits) -> Cost:
    """Estimate the cost of a JPEG: libjpeg visits all pixels in each scan, however few bytes that has."""
    if pixels * len(data) <= CHEAP * limits.max_pixels:
        return USUAL  # whatever its header holds
    frame = read_frame(data)
    if frame is None or not (frame.in_scans or frame.arithmetic):
        return USUAL
    codes, scans, memory = ARITHMETIC if frame.arithmetic else 1, 1, 0.0
    if frame.in_scans:
        memory = 2 * frame.samples  # coefficients of 16 bits
        scans = data.count(b"\xff\xda")  # those of thumbnails too
        if pixels * scans * codes > limits.max_pixels * SCANS:
            scans = count_scans(data)
    why = f"of a JPEG in {scans:,} scans" if frame.in_scans else "of a JPEG"
    return Cost(scans * codes / SCANS, memory, why + (" of arithmetic codes" if frame.arithmetic else ""))


def estimate_jpeg2000(data: bytes) -> Cost:
    """Estimate the cost of a JPEG 2000, which grows with the blocks that it is cut into."""
    return Cost(28, 16 + CELL / find_smallest_cell(data), "of a JPEG 2000")


def _renew_lock() -> None:
    """A forked child may have copied the lock while another thread held it."""
    global _large
    _large = threading.Lock()


fork.call_in_child(_renew_lock)


def use_lock(lock: AbstractContextManager[object]) -> None:
    """Decode large pictures under another lock from here on, such as one that several processes share."""
    global _large
    _large = lock


def wait_for_memory(size: float) -> AbstractContextManager[object]:
    """Return a context manager in which pictures of `LARGE` bytes or more are decoded one at a time."""
    return _large if size >= LARGE else _small


def _estimate_opened(image: Image.Image, codec: str, data: bytes, limits: Limits) -> Cost:
    match image.format:
        case "JPEG" | "MPO":
            return estimate_jpeg(data, image.width * image.height, limits)
        case "JPEG2000":
            return estimate_jpeg2000(data)
        case "WEBP":
            return WEBP
        case "AVIF":
            return AVIF
        case "ICO" | "ICNS":
            return ICON
        case "TIFF" if "jpeg" in str(image.info.get("compression")) and holds_no_baseline(data):
            return JPEG_IN_TIFF
    if image.mode == "LAB":
        return LAB
    # The decoders that are registered are those that Pillow has in Python.
    return IN_PYTHON if codec in Image.DECODERS else USUAL


def _get_codec(image: Image.Image) -> str:
    """Return Pillow's name for the decoder that a file needs; empty where it is known only later."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][0]) if tiles else ""
