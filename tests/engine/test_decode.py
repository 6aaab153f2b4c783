"""Decoding: the same pixels as Pillow whatever the path taken, and a kind for everything that goes wrong."""

import errno
import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, features
from tests.jpegs import lossless, sampled

import fmengine.image.cost
import fmengine.image.jpeg
import fmengine.image.pillow
from fmengine.errors import Kind, SourceError
from fmengine.image.decode import decode
from fmengine.options import Limits
from fmengine.types import Source

# Pillow warns of odd files that it reads all the same.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

LIMITS = Limits()
COLORS = ("gray", "rgb")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def random_image(mode: str = "RGB", width: int = 37, height: int = 23, seed: int = 0) -> Image.Image:
    shape = (height, width, len(Image.new(mode, (1, 1)).getbands()))
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), levels.tobytes())


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data: bytes, color: str) -> np.ndarray:
    """What Pillow makes of the bytes: the reference."""
    with Image.open(io.BytesIO(data)) as image:
        if color == "gray":
            image.draft("L", None)
        return np.asarray(ImageOps.exif_transpose(image).convert("L" if color == "gray" else "RGB"))


def kind_of(source: Source, color: str = "gray", limits: Limits = LIMITS) -> Kind:
    with pytest.raises(SourceError) as caught:
        decode(source, color, limits)
    assert caught.value.message
    assert caught.value.message == " ".join(caught.value.message.split())
    return caught.value.kind


def decode_or_kind(source: Source, color: str = "gray") -> np.ndarray | Kind:
    """The pixels, or the kind of a `SourceError`; anything else that is raised fails the test."""
    try:
        return decode(source, color, LIMITS)
    except SourceError as error:
        return error.kind


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# JPEG: the fast path and Pillow's agree on every pixel.


@pytest.mark.parametrize("color", COLORS)
@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    quality=st.integers(5, 100),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    progressive=st.booleans(),
)
def test_random_jpeg_is_pillows(color, width, height, seed, quality, subsampling, progressive):
    image = random_image("RGB", width, height, seed)
    data = encoded(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_real_jpeg_is_pillows(portrait_pixels, color, subsampling):
    data = encoded(Image.fromarray(portrait_pixels), "JPEG", quality=85, subsampling=subsampling)
    np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))


def test_gray_of_a_jpeg_is_its_luma_plane(portrait_pixels):
    data = encoded(Image.fromarray(portrait_pixels), "JPEG", quality=30)
    luma = decode(data, "gray", LIMITS)
    with Image.open(io.BytesIO(data)) as image:
        through_rgb = np.asarray(image.convert("RGB").convert("L"))
    assert (luma != through_rgb).any(), "the picture clips no colour and tells the two apart no more"


def unusual_jpegs() -> dict[str, bytes]:
    return {
        "progressive": encoded(random_image(), "JPEG", progressive=True),
        "cmyk": encoded(random_image("CMYK"), "JPEG"),
        "grayscale": encoded(random_image("L"), "JPEG"),
        "rgb": encoded(random_image(), "JPEG", keep_rgb=True),
        "1x1": encoded(random_image(width=1, height=1), "JPEG"),
        "trailing bytes": encoded(random_image(), "JPEG") + b"more" * 100,
        "comment": encoded(random_image(), "JPEG", comment=b"Exif\0\0 is a word here"),
    }


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("name", unusual_jpegs())
def test_unusual_jpeg_is_pillows(name, color):
    data = unusual_jpegs()[name]
    np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))


FACTORS = [
    *([(across, down), (1, 1), (1, 1)] for across in (1, 2, 3, 4) for down in (1, 2, 3, 4) if across * down <= 8),
    *([(1, 1), (across, down), (1, 1)] for across, down in ((2, 1), (1, 2), (2, 2), (1, 4), (4, 2))),
    [(2, 2), (1, 2), (2, 1)],
    [(2, 2), (2, 1), (1, 1)],
    [(3, 2)],
    [(1, 4), (1, 1), (1, 1), (1, 4)],
]


@pytest.mark.parametrize("factors", FACTORS)
def test_chroma_sampled_in_any_way_is_pillows(factors):
    """libjpeg-turbo's binding has no name for most of these, and raised KeyError for 4:4:1 (`-sample 1x4`)."""
    data, luma = sampled(37, 53, factors)
    for color in COLORS:
        np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))
    if factors[0] == tuple(map(max, zip(*factors, strict=True))) and len(factors) < 4:
        np.testing.assert_array_equal(decode(data, "gray", LIMITS), luma[:53, :37])


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("function", ["decode_jpeg_header", "decode_jpeg"])
@pytest.mark.parametrize("error", [KeyError(6), RuntimeError("?"), TypeError(), OverflowError(), SystemError()])
def test_whatever_libjpeg_turbo_raises_pillow_decides(monkeypatch, function, error, color):
    def fails(*arguments: object, **more: object) -> None:
        raise error

    data = encoded(random_image(), "JPEG")
    monkeypatch.setattr(fmengine.image.jpeg.simplejpeg, function, fails)
    np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))


@pytest.mark.parametrize("function", ["decode_jpeg_header", "decode_jpeg"])
def test_no_room_for_libjpeg_turbo_is_no_room(monkeypatch, function):
    def fails(*arguments: object, **more: object) -> None:
        raise MemoryError

    data = encoded(random_image(), "JPEG")
    monkeypatch.setattr(fmengine.image.jpeg.simplejpeg, function, fails)
    assert kind_of(data) is Kind.OUT_OF_MEMORY


@pytest.mark.parametrize("components", [1, 3])
def test_lossless_jpeg_is_decoded_in_both_colours(components):
    """libjpeg gives the colours of one in RGB, and no luma."""
    data = lossless(20, 10, components)
    assert (decode(data, "gray", LIMITS) == np.full((10, 20), 128)).all()
    assert (decode(data, "rgb", LIMITS) == np.full((10, 20, 3), 128)).all()


# Orientation.


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing and change nothing
def test_exif_orientation_is_applied(orientation, kind, color):
    data = encoded(random_image(), kind, exif=exif(orientation))
    pixels = decode(data, color, LIMITS)
    assert pixels.shape[:2] == ((37, 23) if orientation in (5, 6, 7, 8) else (23, 37))
    np.testing.assert_array_equal(pixels, pillow(data, color))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("color", COLORS)
def test_orientations_differ_from_each_other(color):
    seen = {decode(encoded(random_image(), "PNG", exif=exif(n)), color, LIMITS).tobytes() for n in range(1, 9)}
    assert len(seen) == 8


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    data = encoded(random_image(), "JPEG", xmp=xmp)
    pixels = decode(data, "gray", LIMITS)
    assert pixels.shape == (37, 23)
    np.testing.assert_array_equal(pixels, pillow(data, "gray"))


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(random_image(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode(data, "gray", LIMITS).shape == (23, 37)


# Modes.


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_png_is_pillows(mode, color):
    data = encoded(random_image(mode))
    np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("transparent", [{}, {"transparency": 3}])
def test_palette_is_pillows(color, transparent):
    data = encoded(random_image().quantize(16), **transparent)
    np.testing.assert_array_equal(decode(data, color, LIMITS), pillow(data, color))


def test_one_bit_becomes_black_and_white():
    bits = np.array([[True, False, True]])
    pixels = decode(encoded(Image.fromarray(bits)), "gray", LIMITS)
    np.testing.assert_array_equal(pixels, [[255, 0, 255]])


def test_gray_of_rgb_is_the_documented_luma():
    image = random_image()
    red, green, blue = np.asarray(image).astype(np.uint32).transpose(2, 0, 1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    np.testing.assert_array_equal(decode(encoded(image), "gray", LIMITS), luma)


LEVELS_16 = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
LEVELS_8 = np.array([[0, 0, 1, 1, 128, 255]], dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled(kind):
    data = encoded(Image.fromarray(LEVELS_16), kind)
    np.testing.assert_array_equal(decode(data, "gray", LIMITS), LEVELS_8)
    np.testing.assert_array_equal(decode(data, "rgb", LIMITS), np.repeat(LEVELS_8[..., None], 3, axis=2))


def test_16_bit_pgm_is_scaled():
    data = b"P5 6 1 65535\n" + LEVELS_16.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(data, "gray", LIMITS), LEVELS_8)


def test_16_bit_is_turned_upright():
    levels = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(levels), exif=exif(6)), "gray", LIMITS)
    np.testing.assert_array_equal(pixels, ((levels.astype(int) + 128) // 257).T[:, ::-1])


OPENED_16_BIT = {
    "png": encoded(Image.fromarray(LEVELS_16)),
    "tiff": encoded(Image.fromarray(LEVELS_16), "TIFF"),
    "tiff, high byte first": encoded(Image.fromarray(LEVELS_16.astype(">u2")), "TIFF"),
    "pgm": b"P5 6 1 65535\n" + LEVELS_16.astype(">u2").tobytes(),
    "plain pgm": b"P2 6 1 65535\n" + b" ".join(b"%d" % level for level in LEVELS_16[0]),
}


@pytest.mark.parametrize("name", OPENED_16_BIT)
def test_16_bit_is_scaled_whatever_became_of_the_image(name):
    """A part or a copy of an image no longer knows its format."""
    opened = Image.open(io.BytesIO(OPENED_16_BIT[name]))
    for image in (
        opened,
        opened.copy(),
        opened.crop((0, 0, *opened.size)),
        opened.transpose(Image.Transpose.ROTATE_180),
    ):
        expected = LEVELS_8[:, ::-1] if image.getpixel((0, 0)) else LEVELS_8
        np.testing.assert_array_equal(decode(image, "gray", LIMITS), expected)
        np.testing.assert_array_equal(decode(image, "rgb", LIMITS), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("color", COLORS)
def test_8_bits_in_32_are_8_bits(color):
    """What `convert("I")` makes, and `fromarray` of whoever computed in 32 bits."""
    image = random_image("L")
    expected = decode(image, color, LIMITS)
    for deep in (image.convert("I"), Image.fromarray(np.asarray(image).astype(np.int32))):
        assert deep.mode == "I"
        np.testing.assert_array_equal(decode(deep, color, LIMITS), expected)
        np.testing.assert_array_equal(decode(encoded(deep, "TIFF"), color, LIMITS), expected)


def test_dark_16_bit_file_stays_dark():
    levels = np.array([[0, 100, 255]], dtype=">u2")
    np.testing.assert_array_equal(decode(b"P5 3 1 65535\n" + levels.tobytes(), "gray", LIMITS), [[0, 0, 1]])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(levels)), "gray", LIMITS), [[0, 0, 1]])


WITHOUT_WHITE = {
    "negative": Image.fromarray(np.array([[-1, 5]], dtype=np.int32)),
    "over 16 bits": Image.fromarray(np.array([[0, 65536]], dtype=np.int32)),
    "float of 0 to 1": Image.fromarray(np.array([[0.25, 1.0]], dtype=np.float32)),
    "float of 0 to 255": random_image("L").convert("F"),
    "no numbers": Image.fromarray(np.array([[np.nan, np.inf]], dtype=np.float32)),
}


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("name", WITHOUT_WHITE)
def test_levels_whose_white_nobody_knows_are_unsupported(name, color):
    """They were clipped, to black or to white."""
    image = WITHOUT_WHITE[name]
    sources: list[Source] = [image, encoded(image, "TIFF")]
    if image.mode == "F":
        sources.append(encoded(image, "PPM"))
    for source in sources:
        with pytest.raises(SourceError, match="scale them to 255") as caught:
            decode(source, color, LIMITS)
        assert caught.value.kind is Kind.UNSUPPORTED


def test_levels_scaled_as_the_message_says_are_taken():
    with pytest.raises(SourceError) as caught:
        decode(Image.fromarray(LEVELS_16.astype(np.float32)), "gray", LIMITS)
    advice = caught.value.message.split(": ", 1)[1]
    names = {"Image": Image, "numpy": np, "image": Image.fromarray(LEVELS_16.astype(np.float32)), "white": 65535}
    assert abs(decode(eval(advice, names), "gray", LIMITS).astype(int) - LEVELS_8).max() <= 1


def test_gray_with_associated_alpha():
    """A TIFF whose levels were multiplied with their alpha: Pillow makes no gray of its mode `La`."""
    extra_samples = struct.pack("<HHI", 338, 3, 1)
    data = encoded(random_image("LA"), "TIFF")
    data = data.replace(extra_samples + b"\2", extra_samples + b"\1")
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "La"
        expected = opened.convert("LA")
    for color in COLORS:
        np.testing.assert_array_equal(decode(data, color, LIMITS), decode(expected, color, LIMITS))


LEVELS_8_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


@pytest.mark.parametrize("strip", [fmengine.image.pillow.MAX_STRIP_PIXELS, 100])
@pytest.mark.parametrize("mode", LEVELS_8_MODES)
def test_every_mode_is_converted_as_pillow_does(monkeypatch, mode, strip):
    """At once or by parts; and where it gives no gray, from what it does give."""
    monkeypatch.setattr(fmengine.image.pillow, "MAX_STRIP_PIXELS", strip)
    raw = np.random.default_rng(1).integers(0, 256, 37 * 23 * 4, dtype=np.uint8).tobytes()
    image = Image.frombytes(mode, (37, 23), raw[: len(Image.new(mode, (37, 23)).tobytes())])
    between = image.convert({"La": "LA", "LAB": "RGB"}.get(mode, mode))
    np.testing.assert_array_equal(decode(image, "gray", LIMITS), np.asarray(between.convert("L")))
    np.testing.assert_array_equal(decode(image, "rgb", LIMITS), np.asarray(between.convert("RGB")))


@pytest.mark.parametrize("strip", [fmengine.image.pillow.MAX_STRIP_PIXELS, 100])
@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_every_mode_of_16_bits_is_scaled(monkeypatch, mode, strip):
    monkeypatch.setattr(fmengine.image.pillow, "MAX_STRIP_PIXELS", strip)
    image = Image.new(mode, (37, 23), 200 * 257)
    assert (decode(image, "gray", LIMITS) == np.full((23, 37), 200)).all()
    assert (decode(image, "rgb", LIMITS) == np.full((23, 37, 3), 200)).all()


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_are_put_together_upright(monkeypatch, orientation, color):
    data = encoded(random_image("RGBA"), exif=exif(orientation))
    expected = decode(data, color, LIMITS)
    monkeypatch.setattr(fmengine.image.pillow, "MAX_STRIP_PIXELS", 100)
    np.testing.assert_array_equal(decode(data, color, LIMITS), expected)


def test_first_frame_of_an_animation():
    frames = [random_image("L", seed=seed) for seed in (1, 2)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, "gray", LIMITS), pillow(data, "gray"))


# Metadata, which are none of the pixels.


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


MEBIBYTE = bytes(2**20 + 1)  # a byte more than Pillow takes of one text
TOO_MUCH_TEXT = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MEBIBYTE)),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(MEBIBYTE)),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + zlib.compress(MEBIBYTE)),
    "all together": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MEBIBYTE[:-1])) * 65,
}


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", TOO_MUCH_TEXT)
def test_too_much_text_costs_no_picture(name, place, color):
    data = encoded(random_image(), exif=exif(6))
    at = data.index(place) - 4
    with_text = data[:at] + TOO_MUCH_TEXT[name] + data[at:]
    with pytest.raises(ValueError, match="MAX_TEXT"):  # or this test tests nothing
        pillow(with_text, color)
    np.testing.assert_array_equal(decode(with_text, color, LIMITS), pillow(data, color))


def test_long_metadata_cost_no_picture():
    image, text = random_image(), b"<x>" + bytes(1_000_000)
    for kind, options in {
        "JPEG": {"icc_profile": text, "comment": text[:60_000], "exif": b"Exif\0\0" + text[:60_000]},
        "WEBP": {"icc_profile": text, "exif": text, "xmp": text, "lossless": True},
        "PNG": {"exif": text, "icc_profile": text[:9999]},
        "TIFF": {"icc_profile": text, "description": "text" * 99_999},
        "GIF": {"comment": text},
        "MPO": {"exif": b"Exif\0\0" + text[:60_000]},
    }.items():
        found = decode(encoded(image, kind, **options), "rgb", LIMITS)
        np.testing.assert_array_equal(found, decode(encoded(image, kind, lossless=True), "rgb", LIMITS))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_damaged_exif_costs_no_avif():
    tags = b"II*\0\x08\0\0\0\0\0" + bytes(20)
    data = encoded(random_image(), "AVIF", exif=tags, quality=100)
    assert data.count(tags) == 1
    damaged = data.replace(tags, bytes(len(tags)))
    with pytest.raises(Exception, match="Exif"):
        pillow(damaged, "rgb")
    np.testing.assert_array_equal(decode(damaged, "rgb", LIMITS), decode(data, "rgb", LIMITS))


# Sources.


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_same_answer_for_every_way_to_give_bytes(tmp_path, kind, color):
    data = encoded(random_image(), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    expected = decode(data, color, LIMITS)
    for source in (path, str(path), bytearray(data), memoryview(data), memoryview(bytearray(data))):
        np.testing.assert_array_equal(decode(source, color, LIMITS), expected)


def test_suffix_means_nothing(tmp_path):
    path = tmp_path / "really.jpg"
    path.write_bytes(encoded(random_image()))
    np.testing.assert_array_equal(decode(path, "rgb", LIMITS), np.asarray(random_image()))


def test_path_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(path).write_bytes(encoded(random_image("L")))
    assert decode(path, "gray", LIMITS).shape == (23, 37)


@pytest.mark.parametrize("color", COLORS)
def test_pil_image_is_as_its_file(color):
    for image in (random_image(), random_image("RGBA"), random_image("L"), random_image().quantize(16)):
        np.testing.assert_array_equal(decode(image, color, LIMITS), decode(encoded(image), color, LIMITS))


def test_pil_image_of_the_caller_is_left_as_it_was():
    image = Image.open(io.BytesIO(encoded(random_image(), "JPEG")))
    decode(image, "gray", LIMITS)
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (23, 37, 3)


def test_arrays():
    rgba = np.asarray(random_image("RGBA"))
    rgb, gray = rgba[..., :3], rgba[..., 0]
    np.testing.assert_array_equal(decode(gray, "gray", LIMITS), gray)
    np.testing.assert_array_equal(decode(gray[..., None], "gray", LIMITS), gray)
    np.testing.assert_array_equal(decode(rgb, "rgb", LIMITS), rgb)
    np.testing.assert_array_equal(decode(rgba, "rgb", LIMITS), rgb)


def test_bgr_arrays():
    rgba = np.asarray(random_image("RGBA"))
    bgra = rgba[..., [2, 1, 0, 3]]
    for array in (bgra, bgra[..., :3]):
        np.testing.assert_array_equal(decode(array, "rgb", LIMITS, "bgr"), rgba[..., :3])
    np.testing.assert_array_equal(decode(rgba[..., 0], "gray", LIMITS, "bgr"), rgba[..., 0])


def test_arrays_may_be_views():
    array = np.asarray(random_image())[::-2, ::3]
    pixels = decode(array, "rgb", LIMITS)
    np.testing.assert_array_equal(pixels, array)
    assert pixels.flags.c_contiguous


# Errors.


def test_empty(tmp_path):
    (tmp_path / "empty").touch()
    for source in (b"", bytearray(), memoryview(b""), tmp_path / "empty"):
        assert kind_of(source) is Kind.EMPTY
    for shape in ((0, 4), (4, 0), (0, 4, 3), (4, 0, 1)):
        assert kind_of(np.zeros(shape, np.uint8)) is Kind.EMPTY
    assert kind_of(Image.new("L", (0, 3))) is Kind.EMPTY


@pytest.mark.parametrize("data", [b"\0", b"hello", b"\xff\xd8\xff", b"%PDF-1.7\n", b"<svg/>", bytes(4096)])
def test_not_an_image(data):
    assert kind_of(data) is Kind.NOT_AN_IMAGE


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated(kind, part, color):
    data = encoded(random_image(width=64, height=64), kind)
    assert kind_of(data[: int(len(data) * part)], color) is Kind.TRUNCATED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_cut_anywhere_is_pixels_or_a_source_error(kind):
    data = encoded(random_image(), kind)
    for length in range(0, len(data), 7):
        pixels = decode_or_kind(data[:length])
        if isinstance(pixels, Kind):
            assert pixels in (Kind.EMPTY, Kind.NOT_AN_IMAGE, Kind.TRUNCATED, Kind.CORRUPT)
        else:
            assert pixels.shape == (23, 37)


def test_corrupt():
    data = bytearray(encoded(random_image()))
    start = data.index(b"IDAT") + 4
    data[start : start + 64] = bytes(64)
    assert kind_of(bytes(data)) is Kind.CORRUPT


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_are_pixels_or_a_source_error(kind, changes):
    data = bytearray(encoded(random_image(), kind))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        pixels = decode(bytes(data), "gray", Limits(max_pixels=10**7))
    except SourceError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda image: encoded(image, "JPEG"),
        lambda image: encoded(image, "JPEG", progressive=True),
        lambda image: encoded(image, "PNG"),
        lambda image: encoded(image, "TIFF"),
        lambda image: image,
        np.asarray,
    ],
)
@pytest.mark.parametrize("color", COLORS)
def test_too_many_pixels(make: Callable[[Image.Image], Source], color):
    source = make(random_image(width=20, height=30))
    assert decode(source, color, Limits(max_pixels=600)).shape[:2] == (30, 20)
    assert kind_of(source, color, Limits(max_pixels=599)) is Kind.TOO_LARGE


def test_bomb_is_too_large():
    """A header that claims gigapixels, in a file of a hundred bytes."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    assert kind_of(bytes(data)) is Kind.TOO_LARGE
    jpeg = bytearray(encoded(random_image("L"), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = b"\xff\xdc\xff\xdc"
    assert kind_of(bytes(jpeg)) is Kind.TOO_LARGE


def test_too_many_bytes(tmp_path):
    data = encoded(random_image())
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path):
        assert decode(source, "rgb", Limits(max_bytes=len(data))).shape == (23, 37, 3)
        assert kind_of(source, limits=Limits(max_bytes=len(data) - 1)) is Kind.FILE_TOO_LARGE


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int8, bool, object])
def test_unsupported_dtype(dtype):
    assert kind_of(np.zeros((4, 4), dtype)) is Kind.UNSUPPORTED


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3), (4, 4, 0)])
def test_unsupported_shape(shape):
    assert kind_of(np.zeros(shape, np.uint8)) is Kind.UNSUPPORTED


@pytest.mark.parametrize("source", [None, 3, ["a.png"], object()])
def test_unsupported_type(source):
    assert kind_of(source) is Kind.UNSUPPORTED


def test_odd_memoryviews_are_pixels_or_a_source_error():
    data = encoded(random_image("L"))
    spread = bytearray(2 * len(data))
    spread[::2] = data
    assert decode(memoryview(spread)[::2], "gray", LIMITS).shape == (23, 37)
    assert kind_of(memoryview(np.zeros((4, 4), np.uint8))) is Kind.NOT_AN_IMAGE
    assert isinstance(kind_of(memoryview(np.zeros((), np.uint8))), Kind)


@pytest.mark.parametrize("name", ["missing.png", "nul\0.png", "\ud800.png", "file/below.png", ""])
def test_not_found(tmp_path, name):
    (tmp_path / "file").touch()
    assert kind_of(f"{tmp_path}/{name}" if name else "") is Kind.NOT_FOUND


def test_broken_link_is_not_found(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    assert kind_of(tmp_path / "link") is Kind.NOT_FOUND


def test_loop_of_links_is_unreadable(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert kind_of(tmp_path / "loop") is Kind.UNREADABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_is_unreadable(tmp_path):
    (tmp_path / "secret").touch(mode=0)
    assert kind_of(tmp_path / "secret") is Kind.UNREADABLE


@pytest.mark.timeout(20)  # opening a FIFO without a writer would wait for ever
def test_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null"), Path("/dev/zero")):
        assert kind_of(path) is Kind.NOT_A_FILE


def test_eps_is_never_opened(tmp_path):
    path = tmp_path / "harmless.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS", "Pillow knows it, so that it is fmengine that refuses"
    for source in (path, path.read_bytes()):
        assert kind_of(source) is Kind.NOT_AN_IMAGE


# A file that changes, vanishes or fails while it is read.


@pytest.fixture
def reads(tmp_path, monkeypatch) -> Callable[[Callable[[int, int], bytes]], Path]:
    """Put a function in the place of `os.read`, for a picture on the disk."""

    def planted(read: Callable[[int, int], bytes]) -> Path:
        path = tmp_path / "a.png"
        path.write_bytes(encoded(random_image()))
        monkeypatch.setattr(os, "read", read)
        return path

    return planted


real_read = os.read


def test_read_error_in_the_middle(reads):
    def fails_later(file: int, count: int) -> bytes:
        if os.lseek(file, 0, os.SEEK_CUR):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_read(file, 100)

    with pytest.raises(SourceError, match="cannot read the file: Input/output error") as caught:
        decode(reads(fails_later), "gray", LIMITS)
    assert caught.value.kind is Kind.UNREADABLE


def test_reads_that_give_little_at_a_time(reads):
    """As pipes and some network drives do."""
    path = reads(lambda file, count: real_read(file, min(count, 7)))
    np.testing.assert_array_equal(decode(path, "gray", LIMITS), decode(path.read_bytes(), "gray", LIMITS))


def test_file_that_shrinks_while_it_is_read(reads):
    def shrinks(file: int, count: int) -> bytes:
        os.truncate(path, 300)
        return real_read(file, count)

    path = reads(shrinks)
    assert decode_or_kind(path) in (Kind.TRUNCATED, Kind.CORRUPT)


def test_file_that_grows_while_it_is_read(reads):
    """All of it is taken, and never more than the limit."""

    def grows(file: int, count: int) -> bytes:
        if path.stat().st_size < 100_000:
            with open(path, "ab") as more:
                more.write(bytes(1000))
        return real_read(file, count)

    path = reads(grows)
    assert isinstance(decode_or_kind(path), np.ndarray), "what follows a PNG is no part of it"

    def grows_without_end(file: int, count: int) -> bytes:
        return bytes(count)

    assert kind_of(reads(grows_without_end), limits=Limits(max_bytes=100_000)) is Kind.FILE_TOO_LARGE


def test_file_that_vanishes_before_it_is_opened(tmp_path, monkeypatch):
    path, real_open = tmp_path / "a.png", os.open
    path.write_bytes(encoded(random_image()))

    def late(name: str, *arguments: int) -> int:
        path.unlink()
        return real_open(name, *arguments)

    monkeypatch.setattr(os, "open", late)
    assert kind_of(path) is Kind.NOT_FOUND


def test_file_that_vanishes_once_it_is_open_is_read(reads):
    def vanishes(file: int, count: int) -> bytes:
        path.unlink(missing_ok=True)
        return real_read(file, count)

    path = reads(vanishes)
    assert isinstance(decode_or_kind(path), np.ndarray)


def test_no_room_is_a_kind_of_its_own(monkeypatch):
    def no_room(*arguments: object, **more: object) -> None:
        raise MemoryError

    data = encoded(random_image())
    monkeypatch.setattr(Image.Image, "convert", no_room)
    assert kind_of(data) is Kind.OUT_OF_MEMORY


def test_lab_is_converted():
    """What Pillow opens, and `convert` does not know."""
    rgb = Image.new("RGB", (9, 7), (200, 30, 90))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    found = decode(encoded(lab, "TIFF"), "rgb", LIMITS)
    assert abs(found.astype(int) - np.asarray(rgb)).max() <= 3
    assert decode(encoded(lab, "TIFF"), "gray", LIMITS).shape == (7, 9)


@pytest.mark.parametrize("text", [b"\xff", b"no tiff header", b"II*\0\xff\xff\xff\xff"])
def test_metadata_that_cannot_be_read_cost_no_picture(text):
    image = random_image()
    found = decode(encoded(image, "PNG", exif=b"Exif\0\0" + text), "rgb", LIMITS)
    np.testing.assert_array_equal(found, np.asarray(image))


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    """Two threads with a picture of a gigabyte each would need two."""
    monkeypatch.setattr("fmengine.image.cost.LARGE", 100)
    at_work, most, lock = 0, 0, threading.Lock()
    load = Image.Image.convert

    def slow(image: Image.Image, mode: str) -> Image.Image:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return load(image, mode)

    monkeypatch.setattr(Image.Image, "convert", slow)
    data = encoded(random_image())
    with ThreadPoolExecutor(4) as pool:
        for pixels in pool.map(lambda _: decode(data, "gray", LIMITS), range(8)):
            assert pixels.shape == (23, 37)
    assert most == 1


def test_coefficients_of_a_whole_picture_are_held_one_at_a_time(monkeypatch):
    """A progressive JPEG takes several times its pixels, whatever its file's size; a baseline one does not."""
    at_work, most, lock, whole = 0, 0, threading.Lock(), fmengine.image.jpeg.simplejpeg.decode_jpeg

    def slow(*arguments: object, **more: object) -> np.ndarray:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.05)
        with lock:
            at_work -= 1
        return whole(*arguments, **more)

    monkeypatch.setattr(fmengine.image.jpeg.simplejpeg, "decode_jpeg", slow)
    image, limits = random_image(width=120, height=120), Limits(max_pixels=120 * 120)
    monkeypatch.setattr(fmengine.image.cost, "LARGE", 4 * 120 * 120)
    monkeypatch.setattr(fmengine.image.jpeg, "LARGE", 4 * 120 * 120)
    for progressive, together in ((True, False), (False, True)):
        most, data = 0, encoded(image, "JPEG", progressive=progressive)
        with ThreadPoolExecutor(4) as pool:
            for pixels in pool.map(lambda _, data=data: decode(data, "rgb", limits), range(8)):
                assert pixels.shape == (120, 120, 3)
        assert (most > 1) is together


def hostile_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_hostile_files_are_pixels_or_a_source_error(hostile_images):
    files = hostile_files(hostile_images)
    decoded = 0
    for path in files:
        for color in COLORS:
            pixels = decode_or_kind(path, color)
            if not isinstance(pixels, Kind):
                decoded += 1
                assert pixels.dtype == np.uint8, path
                assert pixels.size, path
                assert pixels.ndim == 2 or pixels.shape[2] == 3, path
    assert decoded > len(files), "most of them are valid pictures"


def test_hostile_jpegs_are_pillows(hostile_images):
    compared = 0
    for path in hostile_files(hostile_images):
        if path.suffix not in (".jpg", ".jpeg", ".mpo"):
            continue
        try:
            pixels = {color: decode(path, color, LIMITS) for color in COLORS}
        except SourceError:
            continue
        for color in COLORS:
            np.testing.assert_array_equal(pixels[color], pillow(path.read_bytes(), color), err_msg=str(path))
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize(("side", "kept"), [(1600, 200), (700, 175), (319, 160), (318, 318), (48, 48)])
def test_scaled_decoding_keeps_at_least_what_was_asked_for(color, side, kept):
    """Smaller by 2 to 8, rounded up; what is not twice as large stays whole, with the same pixels."""
    levels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(levels).save(data, "JPEG")
    found = decode(data.getvalue(), color, Limits(), min_side=160)
    assert found.shape[:2] == (kept, kept)
    whole = decode(data.getvalue(), color, Limits())
    assert whole.shape[:2] == (side, side)
    if kept == side:
        assert (found == whole).all()
