"""Files whose names are HTML, formulas or terminal commands: pages, tables and terminals show names."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.page import Page

pytestmark = pytest.mark.xdist_group("names")  # the commands run once

NAMES = [
    "<script>alert(1)<&>.png", '"><img src=x onerror=alert(1)>.png', "'onmouseover='alert(1).png",
    "<style>*{display:none}.png",
    "=cmd|' .. C calc'!A0.png", "+1+1.png", "-2+3.png", "@SUM(A1).png",
    "\x1b[2J\x1b]0;owned\x07.png", "a\rb.png", "a\nhappy  0.999.png", "\u202egnp.sad.png", "\u2028.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Path:
    """A run over a folder of such names: what it printed, and what it wrote."""
    root = tmp_path_factory.mktemp("names")
    (root / "faces").mkdir()
    for number, name in enumerate(NAMES):
        path = root / "faces" / name
        if number % 2:
            path.write_bytes(b"no picture")
        else:
            Image.new("L", (16, 16), 99).save(path)
    # `*` gives names that begin as the attacker wants, which no folder in front makes harmless.
    names = "\0".join(os.listdir(root / "faces")).encode()
    for output in (["--output", "../rows.csv", "--report", "../page.html"], []):
        done = subprocess.run(
            [sys.executable, "-m", "fmengine", "infer", "-", *output],
            cwd=root / "faces",
            input=names,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 3, done.stderr
        (root / "terminal").write_bytes(done.stdout + done.stderr)
    return root


def test_a_page(outcome):
    page = Page(outcome / "page.html")
    assert len(page.cards) == len(NAMES)
    assert [attributes.get("id") for attributes in page.named("script")] == ["labels", "images", "facts", None]
    page.check_that_it_loads_nothing()


def test_a_spreadsheet(outcome):
    rows = list(csv.reader(io.StringIO((outcome / "rows.csv").read_text(), newline="")))
    assert len(rows) == len(NAMES) + 1
    assert not [cell for row in rows for cell in row if cell[:1] in {"=", "+", "-", "@", "\t", "\r"}]


def test_a_terminal(outcome):
    text = (outcome / "terminal").read_text()
    assert not [character for character in text if character != "\n" and ord(character) < 32]
    assert "\u202e" not in text
    assert len([line for line in text.splitlines() if ".png" in line]) == len(NAMES)
