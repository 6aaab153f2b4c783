"""What a picture may cost: before it is decoded, and, where decoding is isolated, while it is."""

import math
from dataclasses import dataclass

MIN_ROW = (
    16  # pixels that a row costs a decoder, however short it is: a million rows of one pixel are no small picture
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused before it is decoded.

    Attributes:
        max_bytes: of an encoded picture; over it is `file_too_large`.
        max_pixels: width times height, a row counting as `MIN_ROW` pixels or more; over it is `too_large`.
            Pixels that may cost more than those of a PNG count more than once: a JPEG's once for each 12 scans, a
            WebP's 2 times, an AVIF's 4, a JPEG 2000's 28; `cost` has them all. With the default, which photographs
            of 108 megapixels pass, no file of a megabyte takes over 5 seconds of a core, or much more than a
            gigabyte. Over 178,956,970 it needs a higher `PIL.Image.MAX_IMAGE_PIXELS` too, which is the whole
            process's and not ours to change.

    Raises:
        ValueError: for a limit that nothing passes.
    """

    max_bytes: int = 256 * 1024**2
    max_pixels: int = 2**27

    def __post_init__(self) -> None:
        if not (self.max_bytes >= 1 and self.max_pixels >= 1):  # NaN would pass every comparison the other way
            raise ValueError(f"max_bytes {self.max_bytes}, max_pixels {self.max_pixels}: expected 1 or more")


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a worker process may take for one picture; see `isolation`.

    Attributes:
        seconds: from the first byte that is read to the network's input; over it is `timeout`.
        memory: bytes beyond what an idle worker has; over it is `out_of_memory`, or `crashed` where a decoder does
            not notice.

    Raises:
        ValueError: for a limit that nothing passes.
    """

    seconds: float = 10.0
    memory: int = 2 * 1024**3

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and self.memory >= 1):
            raise ValueError(f"seconds {self.seconds}, memory {self.memory}: expected more than 0, and an end")
