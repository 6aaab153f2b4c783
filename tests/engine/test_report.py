"""The contact sheet: one file, a card a row, and no name that is more than text."""

import base64
import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fmengine.errors import Kind, OutputError
from fmengine.jobs.report import write_report
from fmengine.jobs.rows import Row, to_row
from fmengine.model.spec import ModelSpec
from fmengine.types import Failure, Prediction, Reason

SPEC = ModelSpec(
    name="tiny <b>",
    labels=("happy", "<sad>"),
    height=2,
    width=2,
    color="gray",
    fit="crop",
    precision="fp32",
    mean=(128,),
    std=(64.0,),
)
DESCRIBE = {"backend": "onnxruntime", "device": "a < b"}
VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of every card."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "figure":
            self.texts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "figure" in self.open:
            self.texts[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def answer(path: Path | str, label: str = "happy", confidence: float = 0.75) -> Row:
    probabilities = dict.fromkeys(SPEC.labels, 1 - confidence) | {label: confidence}
    return to_row(str(path), Prediction(label, confidence, probabilities, str(path)))


def failure(path: Path | str, message: str = "no such file") -> Row:
    return to_row(str(path), Failure(Kind.NOT_FOUND, message, str(path)))


def draw(folder: Path, name: str, size: tuple[int, int] = (40, 30)) -> Path:
    path = folder / name
    Image.new("RGB", size, (200, 40, 40)).save(path, "PNG")
    return path


def report(folder: Path, rows: list[Row], name: str = "x.html") -> Page:
    write_report(folder / name, rows, SPEC, DESCRIBE)
    page = Page(folder / name)
    assert page.open == [], "every element is closed"
    return page


def test_a_card_a_row_in_order(tmp_path):
    paths = [draw(tmp_path, f"{number}.png") for number in range(3)]
    rows = [answer(paths[1]), failure("gone.png"), answer(paths[0], "<sad>", 0.5), answer(paths[2])]
    page = report(tmp_path, rows)
    cards = page.named("figure")
    assert [card["data-path"] for card in cards] == [row["path"] for row in rows]
    assert [card.get("data-label") for card in cards] == ["happy", None, "<sad>", "happy"]
    assert [card.get("data-error") for card in cards] == [None, "not_found", None, None]
    assert len(page.named("img")) == 3
    assert "75.0%" in page.texts[0]
    assert "not_found" in page.texts[1]
    assert "no such file" in page.texts[1]


def test_counts(tmp_path):
    path = draw(tmp_path, "a.png")
    report(tmp_path, [answer(path), answer(path), failure("gone")])
    text = (tmp_path / "x.html").read_text()
    assert "<h1>3 pictures</h1>" in text
    assert ">happy 2<" in text
    assert ">failed 1<" in text
    report(tmp_path, [answer(path)])
    assert "<h1>1 picture</h1>" in (tmp_path / "x.html").read_text()


def shown_by(page: Page) -> dict[str | None, list[int]]:
    """Which cards each button shows, as the page's script has it."""
    cards = page.named("figure")

    def matches(button: dict[str, str | None], card: dict[str, str | None]) -> bool:
        name = f"data-{button['data-key']}"
        return card.get(name) == button["data-value"] if "data-value" in button else name in card

    buttons = [button for button in page.named("button") if "data-key" in button]
    return {
        f"{button['data-key']} {button.get('data-value', '')}".strip(): [
            number for number, card in enumerate(cards) if matches(button, card)
        ]
        for button in buttons
    }


def test_results_are_told_apart_by_what_they_are_and_not_by_their_name(tmp_path):
    """A model may call its labels as we call what has none."""
    path, spec = str(draw(tmp_path, "a.png")), dataclasses.replace(SPEC, labels=("error", "unsure", "flat"))

    def row(label: str, reason: Reason | None = None, kind: Kind | None = None) -> Row:
        if kind is not None:
            return to_row(path, Failure(kind, "no", path))
        return to_row(path, Prediction(label, 0.6, dict.fromkeys(spec.labels, 0.2) | {label: 0.6}, path, reason))

    rows = [row("error"), row("", kind=Kind.CORRUPT), row("unsure"), row("flat"), row("error", Reason.FLAT)]
    rows += [row("error", Reason.UNSURE), row("error")]
    write_report(tmp_path / "x.html", rows, spec, DESCRIBE)
    page = Page(tmp_path / "x.html")
    assert shown_by(page) == {
        "label error": [0, 4, 5, 6],
        "label unsure": [2],
        "label flat": [3],
        "reason flat": [4],
        "reason unsure": [5],
        "error": [1],
    }
    tones = [card["class"] for card in page.named("figure")]
    assert tones == ["tone0", "aside", "tone1", "tone2", "tone0", "tone0", "tone0"]
    text = (tmp_path / "x.html").read_text()
    assert all(f">{told}<" in text for told in ("error 4", "unsure 1", "reason: flat 1", "failed 1"))


def test_a_reason_not_to_trust_an_answer_is_shown(tmp_path):
    path = str(draw(tmp_path, "a.png"))
    withheld = Prediction("unsure", 0.55, {"happy": 0.55, "<sad>": 0.45}, path, Reason.UNSURE)
    page = report(tmp_path, [answer(path), to_row(path, withheld)])
    assert [card.get("data-reason") for card in page.named("figure")] == [None, "unsure"]
    assert len(page.named("em")) == 1
    assert shown_by(page) == {"label happy": [0], "label unsure": [1], "reason unsure": [1]}


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("oh"), KeyError(), OSError(5, "Input/output error")]
)
def test_a_thumbnail_that_cannot_be_made_costs_no_other_card(tmp_path, monkeypatch, error):
    """Whatever is raised, and wherever: here where a picture that was decoded is made small."""
    paths = [draw(tmp_path, "a.png"), draw(tmp_path, "b.png", (41, 30))]
    resize = Image.Image.resize

    def fail(image: Image.Image, *arguments: object) -> Image.Image:
        if image.width == 41:
            raise error
        return resize(image, *arguments)

    monkeypatch.setattr(Image.Image, "resize", fail)
    page = report(tmp_path, [answer(path) for path in paths])
    assert len(page.named("figure")) == 2
    assert len(page.named("img")) == 1


def test_no_rows_are_a_page(tmp_path):
    assert report(tmp_path, []).named("figure") == []


def test_more_rows_than_are_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr("fmengine.jobs.report.CHUNK", 4)
    path = draw(tmp_path, "a.png")
    assert len(report(tmp_path, [answer(path)] * 11).named("img")) == 11


def test_nothing_outside_the_file_is_needed(tmp_path):
    page = report(tmp_path, [answer(draw(tmp_path, "a.png")), failure("gone.png")])
    text = (tmp_path / "x.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
    for _, attributes in page.tags:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")


def test_thumbnails_are_small_and_keep_their_shape(tmp_path):
    wide, tall = draw(tmp_path, "wide.png", (900, 3)), draw(tmp_path, "tall.png", (1, 900))
    sources = [image["src"] for image in report(tmp_path, [answer(wide), answer(tall)]).named("img")]
    sizes = []
    for number, source in enumerate(sources):
        data = tmp_path / f"{number}.jpg"
        data.write_bytes(base64.b64decode(source.split(",", 1)[1]))
        sizes.append(Image.open(data).size)
    assert sizes == [(192, 1), (1, 192)]


HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "\"><script>alert('x')</script>.png",
    "' onload='alert(1).png",
    "&lt;b&gt;.png",
    "$total ${filters} $cards.png",
    "</figure></main></template>.png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(tmp_path, name):
    folder = tmp_path / "pictures"
    path = folder / name
    path.parent.mkdir(parents=True)
    draw(path.parent, path.name)
    plain = report(tmp_path, [answer(draw(tmp_path, "plain.png")), failure("plain.png")])
    page = report(tmp_path, [answer(path), failure(path, f"cannot read {name}")])
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in page.tags] == [set(attributes) for _, attributes in plain.tags]
    assert [card["data-path"] for card in page.named("figure")] == [str(path)] * 2
    assert all(text.endswith(path.name) for text in page.texts)


def test_title_is_text(tmp_path):
    page = report(tmp_path, [], "<script>&.html")
    assert len(page.named("script")) == 1


def test_name_that_is_not_utf8(tmp_path):
    path = draw(tmp_path, os.fsdecode(b"\xff\n.png"))
    page = report(tmp_path, [answer(path)])
    assert page.named("figure")[0]["data-path"].endswith("/%FF%0A.png")
    assert len(page.named("img")) == 1, "the picture is found under its real name"


def test_picture_that_went_away_after_its_row(tmp_path):
    path = draw(tmp_path, "a.png")
    rows = [answer(path), answer(draw(tmp_path, "b.png"))]
    path.unlink()
    page = report(tmp_path, rows)
    assert len(page.named("figure")) == 2
    assert len(page.named("img")) == 1


def test_old_page_is_replaced_and_nothing_else_left(tmp_path):
    (tmp_path / "x.html").write_text("old")
    report(tmp_path, [])
    assert os.listdir(tmp_path) == ["x.html"]


def test_old_page_stays_until_the_new_one_is_whole(tmp_path):
    """Rows may come from a file that is damaged half-way."""
    (tmp_path / "x.html").write_text("old")

    def rows():
        yield failure("a.png")
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_report(tmp_path / "x.html", rows(), SPEC, DESCRIBE)
    assert (tmp_path / "x.html").read_text() == "old"
    assert os.listdir(tmp_path) == ["x.html"]


@pytest.mark.parametrize("name", ["missing/x.html", "file/x.html", "x" * 300 + ".html", "folder", "."])
def test_unwritable_target_is_an_output_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(Path(name), [], SPEC, DESCRIBE)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_target_whose_name_is_not_utf8(tmp_path):
    report(tmp_path, [], os.fsdecode(b"\xff.html"))
