"""The page of `fmengine eval`: figures, and every picture, whatever labels are called and libraries are there."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import parse_qsl

import numpy as np
import pytest

from fmengine.engine import Engine
from fmengine.errors import OutputError
from fmengine.jobs.rows import to_row
from fmengine.model.spec import ModelSpec
from fmengine.options import Limits
from fmengine.types import Prediction
from fmengine_bench.evaluate import Evaluation
from fmengine_bench.metrics import report
from fmengine_bench.page import write_page
from tests.page import Page

from .test_evaluate import model, run, with_broken

__all__ = ["model", "with_broken"]  # fixtures


def test_the_page_shows_the_figures_and_every_picture(drawn_faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = run("alexnet-slim", drawn_faces / "val", "--html", path, "--json")
    assert result.exit_code == 0, result.exception
    (figures,) = json.loads(result.stdout)
    page = Page(path)
    page.check_that_it_loads_nothing()
    assert len(page.named("svg")) == 2
    assert f"<dd>{figures['accuracy']:.1%}<small>" in page.text
    assert f"<td>{figures['recall']['sad']:.1%} <small" in page.text
    wrong = [card for card in page.cards if card["verdict"] == "wrong"]
    assert len(page.cards) == len(page.thumbnails) == 32
    assert len(page.cards) - len(wrong) == figures["confusion"][0][0] + figures["confusion"][1][1]
    assert all((card["expected"] == card["answer"]) == (card["verdict"] == "right") for card in page.cards)


def test_a_cell_of_the_confusion_shows_its_pictures(model: Path, drawn_faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = run(model, drawn_faces / "val", drawn_faces / "train", "--html", path, "--json")
    counts = [count for figures in json.loads(result.stdout) for row in figures["confusion"] for count in row]
    page = Page(path)
    wanted = [dict(parse_qsl(str(link["href"])[1:])) for link in page.named("a")]
    assert len(wanted) == 8
    shown = [[card for card in page.cards if all(str(card[k]) == v for k, v in w.items())] for w in wanted]
    assert [len(cards) for cards in shown] == counts
    folders = page.text[page.text.index('<select data-key="data"') :].split("</select>")[0]
    assert f'<option value="1">{drawn_faces / "train"}</option>' in folders


def test_the_page_counts_what_failed(model: Path, with_broken: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert run(model, with_broken, "--html", path).exit_code == 3
    page = Page(path)
    shown = page.shown_by()
    assert [page.cards[number]["path"] for number in shown["error"]] == [
        str(with_broken / "happy" / "broken.png"),
        str(with_broken / "sad" / "empty.png"),
    ]
    assert len(shown.get("verdict wrong", [])) + len(shown["verdict right"]) == 32
    assert "<small>2 left out</small>" in page.text


LABELS = ('a, "b" <i>', "\u05e9\u05de\u05d7", "x" * 200)


def test_labels_are_text_of_any_script(tmp_path: Path) -> None:
    """With commas, quotes, from right to left, and long."""
    answers, targets = np.eye(3)[[0, 1, 2, 0]] * 0.8 + 0.1, np.array([0, 1, 2, 2])
    rows = [
        to_row(f"{number}.png", Prediction(LABELS[n], 0.9, dict(zip(LABELS, row.tolist(), strict=True)), ""))
        | {"expected": LABELS[target], "right": n == target}
        for number, (n, target, row) in enumerate(zip([0, 1, 2, 0], targets, answers, strict=True))
    ]
    evaluation = Evaluation("faces <b>", report(answers, targets, LABELS), [], rows)
    spec = ModelSpec("tiny", LABELS, 8, 8, "gray", "crop", "fp32", (0,), (1.0,))
    engine = SimpleNamespace(spec=spec, limits=Limits(), backend=SimpleNamespace(describe=lambda: {"a": "<b>"}))
    write_page(tmp_path / "page.html", cast(Engine, engine), [evaluation])
    page = Page(tmp_path / "page.html")
    page.check_that_it_loads_nothing()
    assert page.labels == list(LABELS)
    assert not page.named("b")
    wanted = dict(parse_qsl(str(page.named("a")[6]["href"])[1:]))
    assert wanted == {"data": "0", "expected": LABELS[2], "answer": LABELS[0]}


BLOCK = """
import sys
from importlib.abc import MetaPathFinder
class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "matplotlib", "safetensors", "onnx", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from fmengine.cli import main
main()
"""


@pytest.mark.slow
def test_neither_pytorch_nor_matplotlib_is_needed(drawn_faces: Path, tmp_path: Path) -> None:
    options = ["--corruptions", "--html", str(tmp_path / "page.html"), "--svg", str(tmp_path / "plots.svg")]
    command = [sys.executable, "-c", BLOCK, "eval", "alexnet-slim", str(drawn_faces / "val"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Page(tmp_path / "page.html").named("svg")) == 3
    assert "corrupted: " in (tmp_path / "plots.svg").read_text(encoding="utf-8")
    done = subprocess.run([*command[:3], "parity", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "what does not need them is there"


def test_a_folder_for_thumbnails_that_is_taken_is_reported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "page_files").mkdir()
    (tmp_path / "page_files" / "mine.txt").touch()
    result = run(tmp_path / "none.onnx", tmp_path / "no faces", "--html", tmp_path / "page.html")
    assert isinstance(result.exception, OutputError)
    assert "holds files of yours" in str(result.exception)


def test_many_thumbnails_are_told_of(
    model: Path, drawn_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmengine.pages.images.INSIDE", 1000)
    result = run(model, drawn_faces / "val", "--html", tmp_path / "page.html")
    assert f"thumbnails of {tmp_path / 'page.html'}: {tmp_path / 'page_files'}" in result.stderr
    assert len(Page(tmp_path / "page.html").thumbnails) == 32


def test_the_page_shows_groups_and_what_mistakes_rest_on(model: Path, drawn_faces: Path, tmp_path: Path) -> None:
    path, table = tmp_path / "page.html", tmp_path / "groups.csv"
    files = sorted(file.relative_to(drawn_faces / "val") for file in (drawn_faces / "val").rglob("*.*"))
    table.write_text("path,light\n" + "".join(f"{file},<{n % 2}>\n" for n, file in enumerate(files)))
    result = run(model, drawn_faces / "val", "--html", path, "--groups", table, "--explain", 2)
    assert result.exit_code == 0, result.exception
    page = Page(path)
    assert "<h3>by <bdi>light</bdi></h3>" in page.text
    assert page.text.count('<th title="&lt;1&gt;"><bdi>&lt;1&gt;</bdi></th><td>16</td>') == 1
    assert "clearest gap: " in page.text
    mistakes = sorted((card for card in page.cards if card["verdict"] == "wrong"), key=lambda c: -c["confidence"])
    assert [card["path"] for card in mistakes if "map" in card] == [card["path"] for card in mistakes[:2]]
    assert len({card["map"] for card in mistakes[:2]} | {card["image"] for card in page.cards}) == 34
    result = run(model, drawn_faces / "val", "--explain", 2)
    assert result.exit_code == 2
    assert "add --html x.html" in result.stderr
