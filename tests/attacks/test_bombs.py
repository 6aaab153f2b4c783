"""Small files that unfold to gigabytes: refused by what their headers say, before anything is allocated."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest
from PIL import Image

from fmengine import Engine, Isolation, Kind, ModelError, SourceError
from fmengine.decode import decode
from fmengine.limits import Limits

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
UNFOLDING = zlib.compress(bytes(10**9), 9)  # a million bytes for a thousand million
TEXTS = {
    "zTXt": png(8, 8, chunk(b"zTXt", b"Comment\0\0" + UNFOLDING)),
    "iTXt": png(8, 8, chunk(b"iTXt", b"Comment\0\1\0\0\0" + UNFOLDING)),
    "iCCP": png(8, 8, chunk(b"iCCP", b"profile\0\0" + UNFOLDING)),
}

PROGRAM = f"""
import resource, sys
from fmengine.decode import decode
from fmengine.errors import SourceError
from fmengine.limits import Limits
data = sys.stdin.buffer.read()
try:
    decode(b"GIF89a", "gray", Limits())  # loads what decoding needs
except SourceError:
    pass
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + {MEMORY},) * 2)
try:
    decode(data, "gray", Limits())
    print("decoded")
except SourceError as error:
    print(error.kind)
"""


def verdict(data: bytes) -> str:
    """What becomes of a file in a process that has little memory."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=data, capture_output=True, timeout=60)
    return done.stdout.decode().strip() or done.stderr.decode()[-300:]


@pytest.mark.parametrize("name", PIXELS)
def test_pixels(name):
    assert verdict(PIXELS[name]) == "too_large"


@pytest.mark.parametrize("name", TEXTS)
def test_zipped_text(name):
    assert verdict(TEXTS[name]) in {"decoded", "corrupt", "truncated"}, "and not out of memory"


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
