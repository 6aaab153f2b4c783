"""Pages as a browser draws them: what the script shows, and that nothing of a stranger's runs."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import DESCRIBE, SPEC, answer, draw, failure

from fmengine.jobs.report import write_report
from fmengine.jobs.rows import Row, to_row
from fmengine.pages import images
from fmengine.types import Prediction, Reason

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def open_page(page: Path, view: str = "", size: str = "1200,800") -> str:
    """Return the document as the browser has it after the page's script ran; `view` stands behind `#`."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    command = [str(CHROMIUM), *options, f"--window-size={size}", "--dump-dom", f"{page.as_uri()}#{view}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def list_cards(document: str) -> list[str]:
    """Return the name under each card that is shown."""
    return re.findall(r'<small dir="auto">([^<]*)</small></figcaption>', document)


def write(folder: Path, rows: list[Row]) -> Path:
    write_report(folder / "x.html", rows, SPEC, DESCRIBE)
    return folder / "x.html"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A page of four pictures."""
    path = str(draw(tmp_path, "d.png"))
    unsure = to_row(path, Prediction("<sad>", 0.55, {"happy": 0.45, "<sad>": 0.55}, path, Reason.UNSURE))
    rows = [answer("b.png", confidence=0.75), failure("c.png"), answer("a.png", confidence=0.95), unsure]
    return write(tmp_path, rows)


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        ("", ["b.png", "c.png", "a.png", "d.png"]),
        ("answer=happy&order=down", ["a.png", "b.png"]),
        ("order=up&find=.P", ["d.png", "b.png", "a.png", "c.png"]),
        ("error=&order=path", ["c.png"]),
        ("answer=none&page=7&order=constructor", []),
    ],
)
def test_what_a_view_shows(mixed: Path, view: str, shown: list[str]) -> None:
    document = open_page(mixed, view)
    assert list_cards(document) == shown
    assert f">{len(shown)} shown<" in document


def test_no_text_runs_or_becomes_an_element(tmp_path: Path) -> None:
    attack = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    document = open_page(write(tmp_path, [failure(attack, attack), answer(attack)]))
    assert "<title>fmengine · x</title>" in document
    assert document.count('<figure class="card') == 2
    assert "<img" not in document.split("<main")[1].split("</main>")[0]


def test_pages_of_cards(tmp_path: Path) -> None:
    page = write(tmp_path, [answer(f"{number}.png") for number in range(450)])
    document = open_page(page, "page=1")
    assert list_cards(document) == [f"{number}.png" for number in range(200, 400)]
    assert "page 2 of 3 · 450 shown" in document


def test_thumbnails_beside_the_page_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its policy lets the page load them, from a folder of any name."""
    monkeypatch.setattr(images, "INSIDE", 0)
    write_report(tmp_path / "a #1%.html", [answer(draw(tmp_path, "a.png", (200, 200)))], SPEC, DESCRIBE)
    picture = tmp_path / "screen.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(CHROMIUM), *options, "--window-size=375,600", f"--screenshot={picture}"]
    subprocess.run([*command, (tmp_path / "a #1%.html").as_uri()], capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert (np.abs(pixels - (200, 40, 40)).max(axis=2) < 4).sum() > 9000  # as `draw` paints
