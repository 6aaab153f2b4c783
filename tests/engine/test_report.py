"""The contact sheet: a card a row, thumbnails in the page or beside it, and no name that is more than text."""

import dataclasses
import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from tests.page import Page

from fmengine.errors import Kind, OutputError
from fmengine.jobs.report import write_report
from fmengine.jobs.rows import Row, to_row
from fmengine.model.spec import ModelSpec
from fmengine.pages import images
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
    return Page(folder / name)


def test_a_card_a_row_in_order(tmp_path):
    paths = [draw(tmp_path, f"{number}.png") for number in range(3)]
    rows = [answer(paths[1]), failure("gone.png"), answer(paths[0], "<sad>", 0.5), answer(paths[2])]
    page = report(tmp_path, rows)
    assert [card["path"] for card in page.cards] == [row["path"] for row in rows]
    assert [card.get("answer") for card in page.cards] == ["happy", None, "<sad>", "happy"]
    assert [card.get("error") for card in page.cards] == [None, "not_found", None, None]
    assert [card.get("image") for card in page.cards] == [0, None, 1, 2]
    assert page.cards[0]["confidence"] == 0.75
    assert page.cards[0]["probabilities"] == [0.75, 0.25]
    assert page.cards[1]["message"] == "no such file"
    assert page.labels == list(SPEC.labels)


def test_counts(tmp_path):
    path = draw(tmp_path, "a.png")
    report(tmp_path, [answer(path), answer(path), failure("gone")])
    text = (tmp_path / "x.html").read_text()
    assert "<h1>3 pictures</h1>" in text
    assert "<bdi>happy</bdi> 2<" in text
    assert "<bdi>failed</bdi> 1<" in text
    report(tmp_path, [answer(path)])
    assert "<h1>1 picture</h1>" in (tmp_path / "x.html").read_text()


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
    assert page.shown_by() == {
        "answer error": [0, 4, 5, 6],
        "answer unsure": [2],
        "answer flat": [3],
        "reason flat": [4],
        "reason unsure": [5],
        "error": [1],
    }
    told = ("error</bdi> 4", "unsure</bdi> 1", "reason: flat</bdi> 1", "failed</bdi> 1")
    assert all(f"<bdi>{text}<" in page.text for text in told)


def test_a_reason_not_to_trust_an_answer_is_shown(tmp_path):
    path = str(draw(tmp_path, "a.png"))
    withheld = Prediction("unsure", 0.55, {"happy": 0.55, "<sad>": 0.45}, path, Reason.UNSURE)
    page = report(tmp_path, [answer(path), to_row(path, withheld)])
    assert [card.get("reason") for card in page.cards] == [None, "unsure"]
    assert page.shown_by() == {"answer happy": [0], "answer unsure": [1], "reason unsure": [1]}


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
    assert len(page.cards) == 2
    assert len(page.thumbnails) == 1


def test_no_rows_are_a_page(tmp_path):
    assert report(tmp_path, []).cards == []


def test_more_rows_than_are_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr("fmengine.jobs.thumbnails.CHUNK", 4)
    path = draw(tmp_path, "a.png")
    assert len(report(tmp_path, [answer(path)] * 11).thumbnails) == 11


def test_nothing_outside_the_file_is_needed(tmp_path):
    report(tmp_path, [answer(draw(tmp_path, "a.png")), failure("gone.png")]).check_that_it_loads_nothing()


def test_thumbnails_are_small_and_keep_their_shape(tmp_path):
    """And none is larger than its picture."""
    sizes = (900, 3), (1, 900), (20, 10)
    page = report(tmp_path, [answer(draw(tmp_path, f"{size}.png", size)) for size in sizes])
    assert [Image.open(io.BytesIO(data)).size for data in page.thumbnails] == [(192, 1), (1, 192), (20, 10)]


HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "\"><script>alert('x')</script>.png",
    "' onload='alert(1).png",
    "&lt;b&gt;.png",
    "</script><script>alert(1)/*.png",
    "<!--<script>.png",
    "{{ 7 * 7 }}{% raw %}.png",
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
    assert [card["path"] for card in page.cards] == [str(path)] * 2
    assert page.cards[1]["message"] == f"cannot read {name}"


def test_title_is_text(tmp_path):
    page = report(tmp_path, [], "<script>&.html")
    assert "&lt;script&gt;&amp;" in page.text
    page.check_that_it_loads_nothing()


def test_name_that_is_not_utf8(tmp_path):
    path = draw(tmp_path, os.fsdecode(b"\xff\n.png"))
    page = report(tmp_path, [answer(path)])
    assert page.cards[0]["path"].endswith("/%FF%0A.png")
    assert len(page.thumbnails) == 1, "the picture is found under its real name"


def test_picture_that_went_away_after_its_row(tmp_path):
    path = draw(tmp_path, "a.png")
    rows = [answer(path), answer(draw(tmp_path, "b.png"))]
    path.unlink()
    page = report(tmp_path, rows)
    assert ["image" in card for card in page.cards] == [False, True]


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


# Many thumbnails lie beside the page.


@pytest.fixture
def many(tmp_path, monkeypatch) -> list[Row]:
    """Rows of three pictures, of which the page itself may hold one thumbnail."""
    monkeypatch.setattr(images, "INSIDE", 1000)
    return [answer(draw(tmp_path, f"{number}.png", (100, 80 + number))) for number in range(3)]


def test_many_thumbnails_lie_in_a_folder(tmp_path, many):
    folder = write_report(tmp_path / "x.html", many, SPEC, DESCRIBE)
    page = Page(tmp_path / "x.html")
    assert folder == tmp_path / "x_files"
    assert [Image.open(io.BytesIO(data)).size for data in page.thumbnails] == [(100, 80), (100, 81), (100, 82)]
    assert page.images["inside"] == []
    assert page.images["folder"].startswith("x_files/")
    page.check_that_it_loads_nothing()


def test_a_new_page_replaces_the_old_ones_thumbnails(tmp_path, many):
    report(tmp_path, many)
    (old,) = (tmp_path / "x_files").iterdir()
    report(tmp_path, many)
    (new,) = (tmp_path / "x_files").iterdir()
    assert new != old
    assert len(list(new.iterdir())) == 3
    page = report(tmp_path, many[:1])
    assert len(page.thumbnails) == 1
    assert not (tmp_path / "x_files").exists()


def test_an_old_page_keeps_its_thumbnails_until_the_new_one_is_whole(tmp_path, many):
    report(tmp_path, many)

    def rows():
        yield from many
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_report(tmp_path / "x.html", rows(), SPEC, DESCRIBE)
    assert len(Page(tmp_path / "x.html").thumbnails) == 3
    assert len(list((tmp_path / "x_files").iterdir())) == 1


def test_files_of_others_beside_the_thumbnails_stay(tmp_path, many):
    (tmp_path / "x_files").mkdir()
    (tmp_path / "x_files" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds files of yours; choose another name, or .* --overwrite"):
        images.check_folder(tmp_path / "x.html", overwrite=False)
    images.check_folder(tmp_path / "x.html", overwrite=True)
    report(tmp_path, many)
    report(tmp_path, many[:1])
    assert os.listdir(tmp_path / "x_files") == ["mine.txt"]


def test_a_folder_of_thumbnails_is_recognised(tmp_path, many):
    report(tmp_path, many)
    (tmp_path / "x.html").unlink()
    images.check_folder(tmp_path / "x.html", overwrite=False)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_takes_no_thumbnails(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (tmp_path / "x_files").touch()
    else:
        (tmp_path / "x_files").symlink_to("elsewhere")
    with pytest.raises(OutputError, match="is no folder; choose another name"):
        images.check_folder(tmp_path / "x.html", overwrite=True)


def test_a_folder_of_an_odd_name_is_found(tmp_path, many):
    page = report(tmp_path, many, os.fsdecode(b"\xff #1 100%?.html"))
    assert len(page.thumbnails) == 3
    assert re.fullmatch(r"%FF%20%231%20100%25%3F_files/[0-9a-f]{16}/", page.images["folder"])


def test_listed_thumbnails_are_known(tmp_path, many):
    report(tmp_path, many)
    pattern = images.match_thumbnails(tmp_path / "x.html")
    written = [str(path) for path in (tmp_path / "x_files").rglob("*.jpg")]
    assert all(map(pattern.search, written))
    assert not pattern.search(str(tmp_path / "x_files" / "1.jpg"))
    assert not pattern.search(str(tmp_path / "ax_files" / "0123456789abcdef" / "1.jpg"))
