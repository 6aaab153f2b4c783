"""A part of what `make fuzz` and `make kills` do, in every run; and what they ever found."""

import subprocess

import pytest

from .corpus import pictures
from .kills import disturbed, infer, make_pictures, rows
from .mutate import mutations
from .oracle import check

pytestmark = pytest.mark.timeout(300)
CORPUS = pictures()
PART = 250

# Files that were once answered wrongly, by what was wrong.
FOUND: dict[str, bytes] = {}


@pytest.mark.parametrize("name", CORPUS)
def test_valid_pictures_are_pillows(name):
    assert not check(CORPUS[name])


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_mended(name):
    assert not check(FOUND[name])


@pytest.mark.parametrize("part", range(8))
def test_mutations(part):
    for name, data in mutations(PART, seed=100 + part):
        assert not (fault := check(data)), f"{name}: {fault}\n{data!r}"


@pytest.mark.parametrize("kind", ["jpeg-RGB-0", "jpeg-L-1", "png-RGB-0", "png-P-0", "webp-RGB-0", "webp-RGBA-1"])
def test_every_prefix(kind):
    data = CORPUS[kind]
    for length in range(len(data)):
        assert not (fault := check(data[:length])), f"{length} of {len(data)} bytes: {fault}"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_killed_and_resumed(tmp_path, suffix):
    folder = make_pictures(tmp_path / "pictures")
    assert subprocess.run(infer(folder, tmp_path / f"whole.{suffix}"), capture_output=True).returncode == 3
    disturbed(folder, tmp_path / f"x.{suffix}", kills=3, seed=7)
    assert rows(tmp_path / f"x.{suffix}") == rows(tmp_path / f"whole.{suffix}")
