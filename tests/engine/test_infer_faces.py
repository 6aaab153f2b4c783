"""`fmengine infer --faces`: a row a face, in every format, resumed by whole photographs, drawn and shown."""

import csv
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from command_line import KEYS, json_rows, refused, run
from PIL import Image, ImageColor
from tests.page import Page

import fmengine
from fmengine import Engine
from fmengine.errors import Kind, OutputError
from fmengine.jobs.annotate import COLORS, annotate_pictures
from fmengine.jobs.face_formats import FaceCsv, FaceJsonl
from fmengine.jobs.face_report import write_face_report
from fmengine.jobs.face_rows import FACE_KEYS, FaceTally, group_pictures, to_face_rows, to_face_text
from fmengine.jobs.journal import Journal
from fmengine.jobs.output import claim, open_output
from fmengine.jobs.rows import Row
from fmengine.jobs.state import get_journal_path, get_state_path
from fmengine.options import Limits
from fmengine.types import Face, Failure, Prediction, Reason, Scene

PORTRAIT = Path(fmengine.__file__).parent / "check" / "portrait.png"
PLACES = {  # left and top of each face in a photograph, and the portrait's scale
    "group.png": [(20, 30, 1), (180, 20, 1.4), (400, 60, 1)],
    "pair.jpg": [(30, 20, 1), (220, 60, 1)],
}
LABELS = ("happy", "sad")


def draw_scene(path: Path, places: list[tuple[int, int, float]], size: tuple[int, int] = (560, 300)) -> None:
    """Paste the portrait onto a canvas."""
    canvas = Image.new("RGB", size, (90, 110, 100))
    with Image.open(PORTRAIT) as portrait:
        for left, top, scale in places:
            canvas.paste(
                portrait.resize((round(portrait.width * scale), round(portrait.height * scale))), (left, top)
            )
    canvas.save(path, quality=95)


@pytest.fixture(scope="module")
def drawn_scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for name, places in PLACES.items():
        draw_scene(folder / name, places)
    Image.new("RGB", (320, 200), (40, 80, 160)).save(folder / "nobody.png")
    return folder


@pytest.fixture
def scenes(drawn_scenes, tmp_path, monkeypatch) -> Path:
    """A folder of 3 faces, of none and of 2, in the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_scenes, tmp_path / "scenes")
    return Path("scenes")


@pytest.fixture(scope="module")
def found(drawn_scenes) -> list[dict]:
    """The rows of the three photographs."""
    out, _ = run("infer", "--faces", "scenes", "--json", cwd=link_scenes(drawn_scenes))
    return json_rows(out)


def link_scenes(folder: Path) -> Path:
    """Return a folder in which the photographs lie in `scenes`."""
    link = folder.parent / "scenes"
    if not link.exists():
        link.symlink_to(folder)
    return folder.parent


# Rows.


def test_a_row_a_face(found):
    assert [(row["path"], row["face"], row["faces"]) for row in found] == [
        ("scenes/group.png", 0, 3),
        ("scenes/group.png", 1, 3),
        ("scenes/group.png", 2, 3),
        ("scenes/nobody.png", None, 0),
        ("scenes/pair.jpg", 0, 2),
        ("scenes/pair.jpg", 1, 2),
    ]
    assert all(set(row) == KEYS | FACE_KEYS for row in found)
    for group in group_pictures(found):
        scores = [row["score"] for row in group if row["score"]]
        assert scores == sorted(scores, reverse=True)


def test_faces_are_where_they_were_pasted(found):
    for name, places in PLACES.items():
        rows = [row for row in found if row["path"].endswith(name)]
        for left, top, scale in places:
            inside = [
                row
                for row in rows
                if left <= row["box"][0] < row["box"][2] <= left + 130 * scale
                and top <= row["box"][1] < row["box"][3] <= top + 160 * scale
            ]
            assert len(inside) == 1
            assert all(
                left < x < left + 130 * scale and top < y < top + 160 * scale for x, y in inside[0]["landmarks"]
            )
            assert (inside[0]["label"], inside[0]["reason"], inside[0]["error"]) == ("happy", None, None)


def test_rows_are_what_the_engine_finds(found, drawn_scenes):
    with Engine.load() as engine:
        faces = engine.find_faces(drawn_scenes / "group.png").faces
    for row, face in zip(found[:3], faces, strict=True):
        assert row["box"] == [round(value, 2) for value in face.box]
        assert row["landmarks"] == [[round(x, 2), round(y, 2)] for x, y in face.landmarks]
        assert row["score"] == round(face.score, 4)
        assert row["confidence"] == round(face.prediction.confidence, 6)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-6)


def test_a_photograph_without_a_face_is_a_row_and_no_failure(found):
    empty = dict.fromkeys(("face", "box", "score", "landmarks", "label", "confidence", "probabilities", "error"))
    assert found[3] == empty | {"path": "scenes/nobody.png", "faces": 0, "reason": "no_face"}


def test_lines_of_a_terminal(scenes, found):
    out, err = run("infer", "--faces", "scenes")
    lines = [line.split("  ") for line in out.splitlines()]
    assert [line[:3] for line in lines if len(line) > 2] == [
        [row["path"], str(row["face"]), "happy"] for row in found if row["label"]
    ]
    assert lines[0][3:] == [f"{found[0]['confidence']:.3f}", ",".join(f"{v:.0f}" for v in found[0]["box"])]
    assert lines[3] == ["scenes/nobody.png", "no_face"]
    assert err == "3 pictures: 5 faces (5 happy), 1 without a face, 0 failed\n"


def test_bad_pictures_are_rows(scenes):
    (scenes / "broken.png").write_bytes(b"no picture")
    Image.new("L", (1, 1)).save(scenes / "dot.png")
    Image.new("L", (1, 3000)).save(scenes / "line.png")
    Image.new("L", (700, 700)).save(scenes / "large.png")
    out, err = run("infer", "--faces", "scenes", "gone.png", "--json", "--max-pixels", 200_000, code=3)
    rows = {row["path"].removeprefix("scenes/"): row for row in json_rows(out)}
    errors = {name: row["error"]["kind"] for name, row in rows.items() if row["error"]}
    assert errors == {"broken.png": "not_an_image", "large.png": "too_large", "gone.png": "not_found"}
    for name in errors:
        assert set(rows[name]) == KEYS | FACE_KEYS
        assert {key for key, value in rows[name].items() if value is not None} == {"path", "error"}
    assert rows["dot.png"]["reason"] == rows["line.png"]["reason"] == "no_face"
    assert err == "8 pictures: 5 faces (5 happy), 3 without a face, 3 failed\n"


def test_summary_of_json_lines(scenes):
    _, err = run("--log-json", "infer", "--faces", "scenes")
    line = next(line for line in json_rows(err) if "pictures" in line)
    assert (line["pictures"], line["faces"], line["failed"]) == (3, 5, 0)
    assert (line["counts"], line["reasons"]) == ({"happy": 5}, {"no_face": 1})


def test_a_list_on_stdin(scenes, found):
    out, _ = run("infer", "--faces", "-", "--json", stdin=b"scenes/pair.jpg\nscenes/nobody.png\n")
    assert json_rows(out) == [*found[4:], found[3]]


# Options.


def test_which_faces(scenes, found):
    def find(*options: object) -> list[dict]:
        return json_rows(run("infer", "--faces", "scenes/group.png", "--json", *options)[0])

    large = [row for row in found[:3] if row["box"][2] - row["box"][0] > 110]
    assert [row["box"] for row in find("--min-size", 110)] == [row["box"] for row in large]
    assert len(large) == 1
    assert [row["box"] for row in find("--max-faces", 2)] == [row["box"] for row in found[:2]]
    scores = [row["score"] for row in found[:3]]
    between = sum(scores[:2]) / 2
    assert [row["box"] for row in find("--min-score", between)] == [found[0]["box"]]
    assert find("--search-size", 32)[0]["reason"] == "no_face"


@pytest.mark.parametrize(
    "option", ["--min-score 0.5", "--min-size 9", "--max-faces 1", "--search-size 640", "--annotate x"]
)
def test_options_of_faces_need_faces(scenes, option):
    assert "add --faces" in refused("infer", "scenes", *option.split())
    assert os.listdir() == ["scenes"]


@pytest.mark.parametrize("option", ["--isolate", "--workers 2", "--jpeg gpu", "--scaled-jpeg", "--batch-size 8"])
def test_options_that_photographs_do_not_take(scenes, option):
    err = refused("infer", "--faces", "scenes", *option.split())
    assert f"leave {option.split()[0]} out" in err


@pytest.mark.parametrize(
    "option", ["--min-score 1", "--min-score nan", "--min-size -1", "--min-size inf", "--search-size 8"]
)
def test_values_that_cannot_be(scenes, option):
    assert option.split()[0].strip("-").replace("-", "_") in refused(
        "infer", "--faces", "scenes", *option.split()
    ).replace("-", "_")


def test_an_empty_folder(tmp_path):
    assert "no files" in refused("infer", "--faces", "--batch", tmp_path, "--output", tmp_path / "x.csv")
    assert os.listdir(tmp_path) == []


# Files.

IDENTITY = {"model": "ab", "faces": True}


def answer(label: str = "happy", confidence: float = 0.75, reason: Reason | None = None) -> Prediction:
    return Prediction(label, confidence, {"happy": confidence, "sad": 1 - confidence}, "", reason)


def make_face(number: int, prediction: Prediction | None = None) -> Face:
    left = 10.005 + 20 * number
    points = tuple((left + 3.333 * i, -1.5 if i == 0 else 7.0 * i) for i in range(5))
    box = (left, 0.0, left + 15.129, 20.5)
    return Face(box, 0.98765 - number / 100, points, (0, 0, 1, 1), prediction or answer())


def scene(path: str, *predictions: Prediction) -> list[Row]:
    faces = tuple(make_face(number, prediction) for number, prediction in enumerate(predictions))
    return to_face_rows(Scene(path, (100, 80), faces))


PICTURES = [
    scene("a.png", answer(), answer("sad", 0.25), answer(reason=Reason.UNSURE)),
    scene("=1+2.png"),
    to_face_rows(Failure(Kind.NOT_FOUND, 'said "no", and went', "b\n.png")),
    scene("line\nbreak.png", answer(), answer("sad", 0.123456)),
    scene("\udcff.png"),
    scene("-grüße/漢字.png", answer(), answer()),
]
ROWS = [row for rows in PICTURES for row in rows]


@contextmanager
def opened(path: Path, *, retry: bool = False, identity=IDENTITY, **options: bool) -> Iterator[Journal]:
    with claim(path, **options) as target, open_output(target, LABELS, identity, retry_failed=retry) as file:
        yield file


def write(path: Path, pictures=PICTURES, **options: bool) -> bytes:
    with opened(path, **options) as file:
        for rows in pictures:
            file.write(rows)
    return path.read_bytes()


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def path(request, tmp_path) -> Path:
    return tmp_path / f"x.{request.param}"


def test_rows_come_back_and_are_counted_by_picture(path):
    write(path)
    with opened(path, resume=True) as file:
        assert list(file.read_rows()) == ROWS
        assert file.finished.total() == len(file.finished) == len(PICTURES)
        assert file.failed == 1


@pytest.mark.parametrize("encoding", [FaceJsonl(), FaceCsv(LABELS)], ids=["jsonl", "csv"])
def test_a_row_is_a_line_and_comes_back(encoding):
    for row in ROWS:
        line = encoding.encode([row])
        assert line.count("\n") == 1
        assert encoding.decode(line) == row


def test_a_spreadsheet_has_a_number_a_cell(tmp_path):
    rows = list(csv.DictReader(write(tmp_path / "x.csv").decode().splitlines()))
    assert (rows[0]["face"], rows[0]["faces"], rows[3]["faces"]) == ("0", "3", "0")
    assert [float(rows[1][f"box_{side}"]) for side in ("left", "top", "right", "bottom")] == ROWS[1]["box"]
    assert [rows[0]["right_eye_y"], rows[0]["mouth_left_y"]] == ["-1.5", "28.0"]
    assert rows[3]["path"] == "%3D1%2B2.png", "no cell is a formula"
    assert all(not value for name, value in rows[4].items() if name not in {"path", "path_encoding"} | ERROR)


ERROR = {"error_kind", "error_message"}


def test_parquet_has_types(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    write(tmp_path / "x.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table.schema.field("face").type == pyarrow.int32()
    assert table.schema.field("box").type.value_type == pyarrow.float64()
    assert table["landmarks"].to_pylist() == [row["landmarks"] for row in ROWS]
    assert table["face"].to_pylist() == [row["face"] for row in ROWS]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_photograph_cut_off_anywhere_is_answered_again(tmp_path, suffix):
    """The same bytes, whether the file ends behind a line, before its line feed, or within it."""
    path = tmp_path / f"x.{suffix}"
    whole = write(path)
    state = json.loads(get_state_path(path).read_text()) | {"rows": 0, "bytes": 0, "sha256": ""}
    ends = [0]  # of whole photographs, in rows
    for rows in PICTURES:
        ends.append(ends[-1] + len(rows))
    line_ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in sorted({end - back for end in line_ends for back in (0, 1, 30)} - {0}):
        path.write_bytes(whole[:length])
        get_state_path(path).write_text(json.dumps(state))
        with opened(path, resume=True) as file:
            lines = max(0, whole[:length].count(b"\n") - (suffix == "csv"))
            kept = sum(end <= lines for end in ends) - 1
            assert file.finished.total() == kept
            assert [*file.read_rows()] == ROWS[: ends[kept]]
            for rows in PICTURES[kept:]:
                file.write(rows)
        assert path.read_bytes() == whole, length


def test_an_output_cut_within_a_photograph_goes_on(scenes):
    """By the command line: two of three faces are in the file when it is killed."""
    command = ["infer", "--faces", "scenes", "--output", "x.jsonl"]
    run(*command)
    whole = Path("x.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    state = json.loads(get_state_path(Path("x.jsonl")).read_text())
    assert state["faces"] is True
    assert (state["min_score"], state["search_size"]) == (0.6, None)
    for kept, told in ((b"".join(lines[:2]), None), (whole[: len(whole) - 5], 2), (b"".join(lines[:4]), 2)):
        Path("x.jsonl").write_bytes(kept)
        get_state_path(Path("x.jsonl")).write_text(json.dumps(state | {"rows": 0, "bytes": 0, "sha256": ""}))
        _, err = run(*command, "--resume")
        assert Path("x.jsonl").read_bytes() == whole
        assert (f"{told} had a row already" in err) if told else "3 pictures" in err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_failed_photographs_are_tried_again(scenes, suffix):
    shutil.move("scenes/pair.jpg", "pair.jpg")
    (scenes / "pair.jpg").write_bytes(b"no picture")
    command = ["infer", "--faces", "scenes", "--output", f"x.{suffix}"]
    run(*command, code=3)
    assert "3 had a row already, 1 of them failed" in run(*command, "--resume", code=3)[1]
    shutil.move("pair.jpg", "scenes/pair.jpg")
    assert "1 picture: 2 faces" in run(*command, "--resume", "--retry-failed")[1]
    run(*command[:-1], "y.jsonl")
    with (
        claim(Path(f"x.{suffix}"), resume=True) as target,
        open_output(target, LABELS, identity_of(target.path)) as file,
    ):
        assert [*file.read_rows()] == json_rows(Path("y.jsonl").read_text())


def identity_of(path: Path) -> dict:
    """What an output says that made it."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        metadata = json.loads(pyarrow.parquet.read_schema(path).metadata[b"fmengine"])
        return {key: value for key, value in metadata.items() if key != "version"}
    state = json.loads(get_state_path(path).read_text())
    return {key: value for key, value in state.items() if key not in ("version", "rows", "bytes", "sha256")}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_another_runs_output_is_refused(scenes, suffix):
    run("infer", "--faces", "scenes", "--output", f"x.{suffix}")
    run("infer", "scenes", "--output", f"y.{suffix}")
    before = Path(f"x.{suffix}").read_bytes(), Path(f"y.{suffix}").read_bytes()
    resume = ("--resume", "--output")
    assert "exists" in refused("infer", "--faces", "scenes", "--output", f"x.{suffix}")
    assert "made with faces True" in refused("infer", "scenes", *resume, f"x.{suffix}")
    assert "made with faces None" in refused("infer", "--faces", "scenes", *resume, f"y.{suffix}")
    assert "made with max_faces None, now it is 1" in refused(
        "infer", "--faces", "--max-faces", 1, "scenes", *resume, f"x.{suffix}"
    )
    if suffix == "jsonl":
        assert before == (Path("x.jsonl").read_bytes(), Path("y.jsonl").read_bytes())
    else:
        assert get_journal_path(Path("x.parquet")).exists(), "nothing is lost"


@pytest.mark.parametrize(
    "line", ['{"face": "0"}', '{"face": 0, "faces": null}', '{"face": 0.5, "faces": 1}', "{}"]
)
def test_a_line_that_is_no_row_of_a_face_is_refused(tmp_path, line):
    path = tmp_path / "x.jsonl"
    write(path, [])
    row = {key: value for key, value in ROWS[0].items() if line != "{}" or key not in FACE_KEYS}
    path.write_text(json.dumps(row | json.loads(line)) + "\n")
    with pytest.raises(OutputError, match="line 1 is not a result row"), opened(path, resume=True):
        pass


def test_a_label_that_is_a_column_of_faces(tmp_path):
    with claim(tmp_path / "x.csv") as target, pytest.raises(OutputError, match="column 'score'"):
        open_output(target, ("score", "happy"), IDENTITY)


def test_tally():
    tally = FaceTally()
    assert tally.describe() == "no new pictures"
    for rows in PICTURES:
        tally.add(rows)
    assert tally.describe() == (
        "6 pictures: 7 faces (5 happy, 2 sad), 2 without a face, 1 failed; not to be trusted: 1 unsure"
    )
    assert tally.count() == "6 pictures, 7 faces"
    assert to_face_text(ROWS[2]) == "a.png  2  happy  0.750  50,0,65,20  unsure"


# The contact sheet.


def report(folder: Path, rows: list[Row]) -> Page:
    with Engine.load() as engine:
        write_face_report(folder / "x.html", rows, engine.spec, engine.backend.describe())
    return Page(folder / "x.html")


def test_a_photograph_with_boxes_and_a_card_a_face(scenes, found):
    run("infer", "--faces", "scenes", "--report", "x.html")
    page = Page(Path("x.html"))
    photos = [card for card in page.cards if "boxes" in card]
    assert [photo["path"] for photo in photos] == ["scenes/group.png", "scenes/pair.jpg"]
    boxes = [box["box"] for photo in photos for box in photo["boxes"]]
    expected = [(a, b, c - a, d - b) for a, b, c, d in (row["box"] for row in found if row["box"])]
    np.testing.assert_allclose(boxes, expected, atol=0.011)
    assert [photo["size"] for photo in photos] == [[560, 300]] * 2
    assert [photo["count"] for photo in photos] == ["3 faces", "2 faces"]
    assert page.shown_by() == {"answer happy": [0, 1, 2, 3, 5, 6, 7], "reason no_face": [4]}
    assert [card.get("face") for card in page.cards] == [None, 0, 1, 2, None, None, 0, 1]
    assert "<h1>3 pictures, 5 faces</h1>" in page.text


def test_thumbnails_are_bounded_and_nothing_else_is_loaded(tmp_path):
    draw_scene(tmp_path / "wide.png", [(500, 100, 1)], (3000, 500))
    with Engine.load() as engine:
        rows = to_face_rows(engine.find_faces(str(tmp_path / "wide.png"), search_size=1500))
    page = report(tmp_path, rows)
    assert len(page.thumbnails) == 2
    assert sum(map(len, page.thumbnails)) < 30_000
    page.check_that_it_loads_nothing()


def test_names_and_labels_on_the_sheet_are_text(tmp_path):
    name = tmp_path / "\"><script>alert('x')<" / "svg onload=x>.png"
    name.parent.mkdir()
    draw_scene(name, [(10, 10, 1)], (200, 200))
    label = "</text></svg><script>&"
    rows = scene(str(name), Prediction(label, 0.9, {label: 0.9}, "", Reason.FLAT))
    page = report(tmp_path, rows + to_face_rows(Failure(Kind.CORRUPT, label, str(name))))
    page.check_that_it_loads_nothing()
    assert [attributes.get("id") for attributes in page.named("script")] == ["labels", "images", "facts", None]
    (box,) = page.cards[0]["boxes"]
    assert (box["answer"], box["reason"], page.cards[0]["path"]) == (label, "flat", str(name))


def test_a_photograph_that_went_away_keeps_its_cards(scenes, found):
    (scenes / "group.png").unlink()
    page = report(Path(), found)
    assert ["image" in card for card in page.cards] == [False] * 4 + [True] * 4


# Photographs with boxes drawn.


def test_photographs_with_faces_are_annotated(scenes, found):
    run("infer", "--faces", "scenes", "--annotate", "drawn")
    assert sorted(os.listdir("drawn/scenes")) == ["group.png", "pair.jpg"]
    for name, file_format, tolerance in (("group.png", "PNG", 0), ("pair.jpg", "JPEG", 90)):
        with Image.open(f"drawn/scenes/{name}") as drawn, Image.open(scenes / name) as photograph:
            assert (drawn.format, drawn.size) == (file_format, photograph.size)
            orange = np.abs(np.asarray(drawn, int) - ImageColor.getrgb(COLORS[0])).max(axis=2) <= tolerance
            changed = np.abs(np.asarray(drawn, int) - np.asarray(photograph, int)).max(axis=2) > 60
        for row in found:
            if row["path"].endswith(name):
                left, top, right, bottom = map(round, row["box"])
                assert orange[bottom - 1, left:right].mean() > 0.9, "the lower edge of the box"
                assert orange[top:bottom, left].mean() > 0.9, "its left edge"
                assert not changed[top + 30 : bottom - 10, left + 10 : right - 10].any(), "what is in it stays"


def test_an_annotated_photograph_is_upright(scenes):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    with Image.open(scenes / "pair.jpg") as photograph:
        photograph.rotate(90, expand=True).save("turned.jpg", exif=exif, quality=95)
    out, _ = run("infer", "--faces", "turned.jpg", "--annotate", "drawn", "--json")
    assert len(json_rows(out)) == 2
    with Image.open("drawn/turned.jpg") as drawn:
        assert drawn.size == (560, 300)
        assert 0x0112 not in drawn.getexif()


def annotated(folder: Path, rows: list[Row], roots: list[str] | None = None) -> list[str]:
    folder.mkdir()
    for _, error in annotate_pictures(folder, rows, LABELS, Limits(), roots or []):
        assert error is None
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_lead_out_of_no_folder_and_are_taken_once(tmp_path, monkeypatch):
    inside, other = tmp_path / "a", tmp_path / "b" / "deep"
    inside.mkdir()
    other.mkdir(parents=True)
    monkeypatch.chdir(inside)
    names = ["x.jpg", "X.JPG", "../b/x.jpg", "../b/deep/y.webp", str(other / "y.webp"), "z", "p.jpg", "é" * 120]
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        file_format = "WEBP" if name.endswith("webp") else "PNG" if name == "p.jpg" else "JPEG"
        Image.new("RGB", (120, 40)).save(name, file_format)
    rows = [row for name in [*names, "x.jpg"] for row in scene(name, answer())]
    assert annotated(tmp_path / "plain", rows) == sorted(
        ["x.jpg", "X-2.JPG", "x-3.jpg", "y.jpg", "y-2.jpg", "z.jpg", "p.png", "é" * 50 + ".jpg", "x-4.jpg"]
    )
    rows = scene(str(other / "y.webp"), answer()) + scene(str(inside / "x.jpg"), answer())
    assert annotated(tmp_path / "below", rows, [str(tmp_path / "b"), str(inside / "x.jpg")]) == [
        "deep/y.jpg",
        "x.jpg",
    ]


def test_a_folder_that_holds_files_is_left_alone(scenes):
    Path("drawn").mkdir()
    Path("drawn/mine.txt").write_text("mine")
    command = ["infer", "--faces", "scenes", "--annotate", "drawn"]
    assert "drawn holds files" in refused(*command)
    run(*command, "--overwrite")
    run(*command, "--overwrite")
    assert Path("drawn/mine.txt").read_text() == "mine"
    assert sorted(os.listdir("drawn")) == ["mine.txt", "scenes"]
    assert sorted(os.listdir("drawn/scenes")) == ["group.png", "pair.jpg"], "no temporary files"


@pytest.mark.parametrize("folder", ["scenes", "scenes/below", ".", "missing/drawn", "file"])
def test_where_photographs_cannot_be_written_is_noticed_before_the_work(scenes, folder):
    Path("file").write_text("a file")
    before = sorted(Path().rglob("*"))
    err = refused("infer", "--faces", "scenes", "--annotate", folder, "--output", "x.csv", "--overwrite")
    assert f"cannot write into {folder}" in err
    assert sorted(Path().rglob("*")) == before


def test_no_picture_of_a_list_is_replaced(scenes):
    whole = (scenes / "pair.jpg").read_bytes()
    _, err = run("infer", "--faces", "-", "--annotate", ".", "--overwrite", stdin=b"scenes/pair.jpg\n", code=2)
    assert "scenes/pair.jpg lies there" in err
    assert (scenes / "pair.jpg").read_bytes() == whole


def test_a_photograph_that_went_away_is_warned_of(scenes):
    """Of a run that is resumed, say: its rows are all there."""
    command = ["infer", "--faces", "scenes", "--output", "x.jsonl"]
    run(*command)
    (scenes / "group.png").unlink()
    _, err = run(*command, "--resume", "--annotate", "drawn")
    assert "scenes/group.png: not annotated: no such file" in err
    assert os.listdir("drawn/scenes") == ["pair.jpg"]


def test_coordinates_are_finite_and_in_the_picture(found):
    for row in found:
        if row["box"]:
            left, top, right, bottom = row["box"]
            assert 0 <= left < right <= 560
            assert 0 <= top < bottom <= 300
            assert all(math.isfinite(value) for point in row["landmarks"] for value in point)
