"""Small files that unfold to gigabytes or take minutes: refused by what their headers say, before it is done."""

import gzip
import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.jpegs import ARITHMETIC, BASELINE, PROGRESSIVE, codes, frame, in_scans, scan, segment, whole

from fmengine import Engine, Failure, Isolation, Kind, ModelError, SourceError
from fmengine.image.cost import Cost
from fmengine.image.decode import decode
from fmengine.options import Limits

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
MEMORY = 400 * 1024**2  # bytes of address space that a process may add: a bomb needs gigabytes


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def saved(kind: str, size: int = 64) -> bytearray:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, kind)
    return bytearray(buffer.getvalue())


def with_size(kind: str) -> bytes:
    """A small picture whose header claims to be large."""
    data = saved(kind)
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", 65_000, 65_000)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 100_000, 100_000)
    elif kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


PIXELS = {
    "png": png(100_000, 100_000),
    "png of one column": png(1, 20_000_000),
    "gif": with_size("GIF"),
    "bmp": with_size("BMP"),
    "jpeg": with_size("JPEG"),
    "ppm": b"P6 100000 100000 255\n" + bytes(100),
    "pgm of one column": b"P5 1 20000000 255\n" + bytes(100),
}


def zeros(count: int) -> bytes:
    """A zlib stream of so many million zeros; each million is a block of a thousand bytes."""
    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (count * 10**6 % 65521) << 16 | 1  # Adler-32 of zeros
    return head + block * count + b"\x03\0" + struct.pack(">I", checksum)


UNFOLDING = zeros(1000)  # a million bytes for a thousand million
TEXTS = {
    "zTXt": png(8, 8, chunk(b"zTXt", b"Comment\0\0" + UNFOLDING)),
    "iTXt": png(8, 8, chunk(b"iTXt", b"Comment\0\1\0\0\0" + UNFOLDING)),
    "iCCP": png(8, 8, chunk(b"iCCP", b"profile\0\0" + UNFOLDING)),
}

PROGRAM = f"""
import os, resource, sys
from fmengine.image.decode import decode
from fmengine.errors import SourceError
from fmengine.options import Limits
try:
    decode(b"GIF89a", "gray", Limits())  # loads what decoding needs
except SourceError:
    pass
while size := sys.stdin.buffer.readline():
    data = sys.stdin.buffer.read(int(size))
    if os.fork():
        if status := os.wait()[1]:
            print("exit status", status, flush=True)
        continue
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + {MEMORY},) * 2)
    try:
        decode(data, "gray", Limits())
        print("decoded", flush=True)
    except SourceError as error:
        print(error.kind, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def verdict() -> Iterator[Callable[[bytes], str]]:
    """What becomes of a file in a process with little memory: its own, forked from one that can decode."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def decide(data: bytes) -> str:
            server.stdin.write(b"%d\n" % len(data) + data)
            server.stdin.flush()
            return server.stdout.readline().decode().strip()

        yield decide


@pytest.mark.parametrize("name", PIXELS)
def test_pixels(verdict, name):
    assert verdict(PIXELS[name]) == "too_large"


def test_the_text_unfolds():
    assert zlib.decompress(zeros(2)) == bytes(2 * 10**6)
    assert len(UNFOLDING) < 2 * 10**6


@pytest.mark.parametrize("name", TEXTS)
def test_zipped_text(verdict, name):
    assert verdict(TEXTS[name]) in {"decoded", "corrupt", "truncated"}, "and not out of memory"


# Pixels that cost more than their number tells.


def u16(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


def u32(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def tiff(tags: dict[int, int | list[int]], content: bytes = b"") -> bytes:
    """A file whose first picture has these tags, and whose content begins at 8."""
    entries, values = b"", b""
    begin = 8 + len(content) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        place = packed if len(numbers) == 1 else struct.pack("<I", begin + len(values))
        values += packed if len(numbers) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + place
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    return head + content + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def gray_tiff(width: int, height: int, compression: int, **more: int) -> dict[int, int | list[int]]:
    tags: dict[int, int | list[int]] = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    return tags | {int(name[1:]): value for name, value in more.items()}


def codestream(side: int, precinct: int | None = None, style: int = 0x52) -> bytes:
    """A JPEG 2000 of four components, with precincts whose sides are 2 to this power, for all or for one."""
    size = u16(0) + u32(side, side, 0, 0, side, side, 0, 0) + u16(4) + b"\7\1\1" * 4
    usual = bytes([5, 4, 4, 0, 1])
    coding = usual + (bytes([precinct << 4 | precinct] * 6) if precinct is not None else b"")
    flags = bytes([precinct is not None])
    main = flags + b"\0\0\1\0" + coding if style == 0x52 else b"\0\0\0\1\0" + usual
    other = segment(0x53, b"\0" + flags + coding) if style == 0x53 else b""
    quanta = bytes([0x40]) + bytes([0x48] * 16)
    tile = segment(0x90, u16(0) + u32(2014) + b"\0\1") + b"\xff\x93" + bytes(2000)
    headers = segment(0x51, size) + segment(0x52, main) + other + segment(0x5C, quanta)
    return b"\xff\x4f" + headers + tile + b"\xff\xd9"


def boxed(side: int, said: int) -> bytes:
    """A JPEG 2000 in boxes that give it another size."""
    head = u32(22) + b"ihdr" + u32(said, said) + b"\0\4\7\7\0\0" + u32(15) + b"colr\1\0\0" + u32(16)
    return b"\0\0\0\x0cjP  \r\n\x87\n" + u32(8 + len(head)) + b"jp2h" + head + u32(0) + b"jp2c" + codestream(side)


def icon(inside: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def apple_icon(inside: bytes) -> bytes:
    return b"icns" + u32(16 + len(inside)) + b"ic10" + u32(8 + len(inside)) + inside


def run_length_bmp(side: int) -> bytes:
    """Rows of one pixel each: the rest of a row is filled in Python, pixel by pixel."""
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + bytes(1024) + b"\1\0\0\0" * side


def zipped_fits(side: int) -> bytes:
    def cards(*lines: str) -> bytes:
        return "".join(line.ljust(80) for line in (*lines, "END")).ljust(2880).encode()

    table = ["XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 0", "NAXIS2  = 0", "ZIMAGE  = T"]
    table += ["ZCMPTYPE= 'GZIP_1  '", "ZNAXIS  = 2", f"ZNAXIS1 = {side}", f"ZNAXIS2 = {side}", "ZBITPIX = 8"]
    first = cards(
        "SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    0"
    )
    return first + cards(*table) + gzip.compress(bytes(1000))


DIB = struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 0, 0) + bytes(1100)
LATE_HEADER = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + png(8000, 8000)[8:]
DEAR = {
    "progressive jpeg in 880 scans": in_scans(13_000, 13_000, 880, components=1),
    "jpeg in 880 scans": in_scans(11_000, 11_000, 880, marker=BASELINE),
    "jpeg in 90,000 scans": in_scans(400, 400, 90_000),
    "cut progressive jpeg of three whole components": in_scans(11_000, 11_000, 1)[:-2],
    "jpeg of arithmetic codes": in_scans(4_000, 4_000, 1, components=1, marker=ARITHMETIC),
    "progressive jpeg of cmyk": in_scans(11_000, 11_000, 1, components=4),
    "jpeg 2000": codestream(3_000),
    "jpeg 2000 in small precincts": codestream(1_000, precinct=1),
    "jpeg 2000, of which one component is in small precincts": codestream(1_000, precinct=1, style=0x53),
    "jpeg 2000 in a small box": boxed(9_000, said=16),
    "icon with a png": icon(png(8_000, 8_000)),
    "icon with a png that begins with a text": icon(LATE_HEADER),
    "icon with a bitmap": icon(DIB),
    "apple's icon with a png": apple_icon(png(8_000, 8_000)),
    "apple's icon with a jpeg 2000": apple_icon(codestream(9_000)),
    "bmp of runs": run_length_bmp(8_000),
    "fits": zipped_fits(8_000),
    "qoi": b"qoif" + u32(8_000, 8_000) + b"\3\0" + b"\xfd" * 99_999,
    "tiff of one tile": tiff(
        gray_tiff(16, 16, 8, _322=30_000, _323=30_000, _324=8, _325=1000), zlib.compress(bytes(9999))
    ),
    "tiff of jpegs of arithmetic codes": tiff(
        gray_tiff(8_000, 8_000, 7, _278=8_000, _273=8, _279=200), in_scans(8_000, 8_000, 1, 1, ARITHMETIC)
    ),
    "ppm of comments": b"P3 1 1 255\n" + b"#\n" * 400_000 + b"1 1 1 ",
}


@pytest.mark.parametrize("name", DEAR)
def test_pixels_that_cost_more(verdict, name):
    """Each of them took over five seconds or a gigabyte, or would with a little more of the same."""
    assert verdict(DEAR[name]) == "too_large"


# Each just passes where `max_pixels` is its pixels times the number, and no longer with one less.
COUNTING = {
    "12 scans": (in_scans(64, 64, 12), 64, 64 * 64 * 10 // 7),
    "24 scans": (in_scans(64, 64, 24), 64, 64 * 64 * 2),
    "24 scans of one component": (in_scans(64, 64, 24, 1), 64, 64 * 64 * 2),
    "arithmetic codes": (in_scans(64, 64, 1, 1, ARITHMETIC), 64, 64 * 64 * 20),
    "webp": (bytes(saved("WEBP")), 64, 64 * 64 * 16 // 7),
    "jpeg 2000": (bytes(saved("JPEG2000")), 64, 64 * 64 * 28),
    "icon": (bytes(saved("ICO")), 64, 64 * 64 * 8),
    "qoi": (bytes(saved("QOI")), 64, 64 * 64 * 8),
    "baseline jpeg": (bytes(saved("JPEG")), 64, 64 * 64),
    "png": (bytes(saved("PNG")), 64, 64 * 64),
}


@pytest.mark.parametrize("name", COUNTING)
def test_how_often_pixels_count(name):
    data, side, most = COUNTING[name]
    for color in ("gray", "rgb"):
        assert decode(data, color, Limits(max_pixels=most + 1)).shape[:2] == (side, side)
        with pytest.raises(SourceError, match=f"the limit is {most - 1:,} pixels a picture") as caught:
            decode(data, color, Limits(max_pixels=most - 1))
        assert caught.value.kind is Kind.TOO_LARGE


def test_a_tiles_size_that_is_no_number_is_none_of_a_picture_in_strips():
    strip = gray_tiff(16, 16, 1, _273=8, _278=16, _279=256) | {322: [9] * 99, 323: [9] * 99}
    assert decode(tiff(strip, bytes(256)), "gray", Limits()).shape == (16, 16)


def test_a_refusal_says_what_counts():
    with pytest.raises(SourceError, match=r"64×64 pixels.*pixels of a JPEG in 30 scans count 2\.5 times"):
        decode(in_scans(64, 64, 30), "gray", Limits(max_pixels=64 * 64))
    with pytest.raises(SourceError, match="over 1,000 comments"):
        decode(DEAR["ppm of comments"], "gray", Limits())


def test_only_a_jpegs_own_scans_count():
    """Not those of a thumbnail, a second picture behind it, or bytes that look like them; but however marked."""
    limits = Limits(max_pixels=64 * 64 * 2)
    jpeg, looks = in_scans(64, 64, 24), b"\xff\xda" * 99
    for innocent in (jpeg[:2] + segment(0xE1, looks) + jpeg[2:], jpeg + looks, jpeg + jpeg):
        assert decode(innocent, "gray", limits).shape == (64, 64)
    more = scan([1], 0, 0)
    for guilty in (more, b"\xff\xff" + more, b"\0\0" + more, b"\xff\xd0" + more, segment(0xFE, b"x") + more):
        with pytest.raises(SourceError, match="in 25 scans"):
            decode(jpeg[:-2] + guilty + jpeg[-2:], "gray", limits)


def test_scans_behind_the_only_one_of_a_baseline_jpeg_do_not_count():
    header = frame(BASELINE, 64, 64, [(1, 1)]) + codes(0, b"\0", 1) + codes(1, b"\0", 1)
    data = whole(header, scan([1]) + bytes(64), *([scan([1])] * 500))
    with pytest.raises(SourceError) as caught:
        decode(data, "gray", Limits(max_pixels=64 * 64))
    assert caught.value.kind is Kind.CORRUPT


def test_usual_progressive_photographs_pass():
    """Of 108 megapixels, in the ten scans and the sampling that encoders choose."""
    data = whole(
        frame(PROGRESSIVE, 12_032, 9_024, [(2, 2), (1, 1), (1, 1)]), *(scan([1 + i % 3], 0, 0) for i in range(10))
    )
    with pytest.raises(SourceError) as caught:
        decode(data, "gray", Limits())
    assert caught.value.kind is not Kind.TOO_LARGE


def test_larger_files_may_take_longer():
    """What counts is how much work a byte makes."""
    cost = Cost(time=8, memory=3)
    assert [cost.compute_weight(size) for size in (0, 10**6, 4 * 10**6, 10**9)] == [8, 8, 2, 1]
    assert Cost(time=8, memory=10).compute_weight(10**9) == 2


@pytest.mark.parametrize("data", [b"BLP1" + bytes(200), b"BLP2" + bytes(200), b"\x1c\x03\x3c\0\2\1\0" + bytes(99)])
def test_what_holds_other_pictures_is_never_opened(data):
    with pytest.raises(SourceError) as caught:
        decode(data, "gray", Limits())
    assert caught.value.kind is Kind.NOT_AN_IMAGE


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_strip(fit, monkeypatch):
    with Engine.load() as engine:
        monkeypatch.setattr(engine._stages, "spec", replace(engine.spec, fit=fit))
        strip = np.broadcast_to(np.zeros(1, np.uint8), (8_000_000, 16))
        with pytest.raises(SourceError, match="a strip of 16×8000000 pixels") as caught:
            engine.predict(strip)
        assert caught.value.kind is Kind.TOO_LARGE
        (failure,) = engine.predict_many([strip])
        assert isinstance(failure, Failure)
        assert failure.kind is Kind.TOO_LARGE


def test_a_lower_limit_of_pixels_holds_in_a_worker_too():
    picture = bytes(saved("PNG", 100))
    with Engine.load(limits=Limits(max_pixels=9_999), isolate=Isolation()) as engine:
        with pytest.raises(SourceError, match="the limit is 9,999 pixels") as caught:
            engine.predict(picture)
        assert caught.value.kind is Kind.TOO_LARGE


def test_more_bytes_than_a_file_may_have(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room on the disk
    with pytest.raises(SourceError, match="over 268,435,456 bytes") as caught:
        decode(tmp_path / "sparse.jpg", "gray", Limits())
    assert caught.value.kind is Kind.FILE_TOO_LARGE


def test_a_model_file_larger_than_any(tmp_path):
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="over 2,147,483,648 bytes"):
        Engine.load(tmp_path / "sparse.onnx")


def test_an_archive_is_no_picture_and_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.onnx", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(10**8))
    data = (tmp_path / "bomb.onnx").read_bytes()
    with pytest.raises(SourceError) as caught:
        decode(data, "gray", Limits())
    assert caught.value.kind is Kind.NOT_AN_IMAGE
    with pytest.raises(ModelError, match="not an ONNX model"):
        Engine.load(tmp_path / "bomb.onnx")
