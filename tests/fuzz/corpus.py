"""Small valid pictures in every format that Pillow writes and in every mode: what mutations begin from."""

import io
import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "LAB", "HSV")
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [
        {},
        {"progressive": True},
        {"quality": 20, "subsampling": 2},
        {"exif": True},
        {"restart_marker_rows": 1},
    ],
    "PNG": [{}, {"optimize": True}, {"bits": 2}, {"exif": True}],
    "WEBP": [{}, {"lossless": True}, {"exif": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}],
    "TGA": [{}, {"compression": "tga_rle"}],
    "JPEG2000": [{}, {"irreversible": True}],
    "GIF": [{}, {"interlace": 0}],
}
# Written by Pillow, and nothing that a picture is read from: documents, or what fmengine refuses to open.
LEFT_OUT = {"PDF", "PALM", "EPS", "BUFR", "GRIB", "HDF5", "WMF"}


@cache
def pictures(side: int = 24) -> dict[str, bytes]:
    """Encoded pictures by a name that says what they are: the format, the mode and a number."""
    Image.init()
    found: dict[bytes, str] = {}
    for kind in sorted(Image.SAVE.keys() - LEFT_OUT):
        for mode in MODES:
            for number, options in enumerate(OPTIONS.get(kind, [{}])):
                if data := _encoded(_picture(mode, side), kind, options):
                    found.setdefault(data, f"{kind.lower()}-{mode.replace(';', '')}-{number}")
    return {name: data for data, name in found.items()}


def _picture(mode: str, side: int) -> Image.Image:
    """A gradient with some noise: enough for every part of a format to be used."""
    rng = np.random.default_rng(7)
    levels = np.add.outer(np.arange(side) * 5, np.arange(side) * 4)[..., np.newaxis] + rng.integers(
        0, 30, (side, side, 4)
    )
    if mode == "I;16":
        return Image.fromarray((levels[..., 0] * 200).astype(np.uint16))
    image = Image.fromarray((levels % 256).astype(np.uint8), "RGBA")
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.convert("RGB").tobytes())
    return image.convert("RGB").convert(mode) if mode in ("HSV", "YCbCr", "CMYK") else image.convert(mode)


def _encoded(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    if "exif" in options:
        tags = Image.Exif()
        tags[0x0112] = 6
        options = {"exif": tags}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except Exception:  # a format that does not take this mode, or these options
        return b""
    return buffer.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures().items():
        (folder / name).write_bytes(data)
