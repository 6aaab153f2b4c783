"""A part of what `make fuzz` and `make kills` do, in every run; and what they ever found."""

import io
import random
import subprocess

import pytest
from PIL import Image

from .corpus import MODES, pictures
from .kills import infer, kill_parent, kill_workers, make_pictures, rows
from .mutate import mutations
from .oracle import check

pytestmark = pytest.mark.timeout(300)
PART = 250


def png_with_exif(block: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 30, 90)).save(buffer, "PNG", exif=b"Exif\0\0" + block)
    return buffer.getvalue()


# Files that were once answered wrongly, by what was wrong.
FOUND: dict[str, bytes] = {
    "metadata that are no TIFF cost the picture": png_with_exif(b"no tiff header"),
    "an orientation that is text turned the picture": png_with_exif(
        b"II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\0006\0\0\0\0\0\0\0"
    ),
    "an Exif block that ends at once cost the picture": png_with_exif(b"II*\0\xff\xff\xff\xff"),
}


@pytest.mark.xdist_group("corpus")
@pytest.mark.parametrize("mode", MODES)
def test_valid_pictures_are_pillows(mode):
    """In every format that has this mode."""
    found = {name: data for name, data in pictures().items() if name.split("-")[1] == mode.replace(";", "")}
    assert found
    for name, data in found.items():
        assert not (fault := check(data)), f"{name}: {fault}"


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_mended(name):
    assert not check(FOUND[name])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_mutations(part):
    for name, data in mutations(PART, seed=100 + part):
        assert not (fault := check(data)), f"{name}: {fault}\n{data!r}"


@pytest.mark.xdist_group("corpus")
@pytest.mark.parametrize("kind", ["jpeg-RGB-0", "jpeg-L-1", "png-RGB-0", "png-P-0", "webp-RGB-0", "webp-RGBA-1"])
def test_every_prefix(kind):
    data = pictures()[kind]
    for length in range(len(data)):
        assert not (fault := check(data[:length])), f"{length} of {len(data)} bytes: {fault}"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kill", [kill_parent, kill_workers])
def test_killed_and_resumed(tmp_path, suffix, kill):
    folder = make_pictures(tmp_path / "pictures", 1500)
    assert subprocess.run(infer(folder, tmp_path / f"whole.{suffix}"), capture_output=True).returncode == 3
    kill(folder, tmp_path / f"x.{suffix}", random.Random(7))
    assert rows(tmp_path / f"x.{suffix}") == rows(tmp_path / f"whole.{suffix}")
