"""Faces in photographs: found where they are, cut out as they should be, answered as pictures of their own."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmengine import Engine, Face, Failure, Scene, SourceError
from fmengine.detect.scenes import compute_crop
from fmengine.image.decode import decode
from fmengine.image.scene import choose_search_size, turn, turn_back
from fmengine.options import Limits

GROUND = (96, 118, 110)
Box = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(backend="onnxruntime", threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def face(portrait_pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(portrait_pixels)


def paste(face: Image.Image, size: tuple[int, int], places: list[tuple[int, int, int]]) -> Image.Image:
    """Paste the face onto a canvas, at left and top, so many pixels wide."""
    canvas = Image.new("RGB", size, GROUND)
    for left, top, width in places:
        canvas.paste(face.resize((width, width * face.height // face.width)), (left, top))
    return canvas


def to_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def compute_iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def check_places(faces: tuple[Face, ...], expected: list[Box]) -> None:
    assert len(faces) == len(expected)
    for box in expected:
        assert max(compute_iou(each.box, box) for each in faces) > 0.6


PLACES = [(30, 60, 100), (250, 100, 130), (460, 200, 90)]
IN_PORTRAIT = (0.16, 0.15, 0.86, 0.84)  # of its width, and of its height: where the face is


def boxes_of(places: list[tuple[int, int, int]]) -> list[Box]:
    left, top, right, bottom = IN_PORTRAIT
    height = 160 / 130
    return [(x + left * w, y + top * w * height, x + right * w, y + bottom * w * height) for x, y, w in places]


@pytest.fixture(scope="module")
def scene(face: Image.Image) -> Image.Image:
    return paste(face, (640, 480), PLACES)


def test_every_face_is_found_and_answered(engine: Engine, scene: Image.Image) -> None:
    found = engine.find_faces(scene)
    assert found.size == (640, 480)
    assert found.source is scene
    check_places(found.faces, boxes_of(PLACES))
    assert [face.score for face in found.faces] == sorted((face.score for face in found.faces), reverse=True)
    assert {face.prediction.label for face in found.faces} == {"happy"}
    assert json.loads(json.dumps(found.faces[0].to_dict()))["label"] == "happy"


def test_whatever_the_source_is_the_faces_are_the_same(engine: Engine, scene: Image.Image, tmp_path: Path) -> None:
    pixels, data = np.asarray(scene), to_bytes(scene)
    (tmp_path / "scene.png").write_bytes(data)
    expected = engine.find_faces(pixels).faces
    for source in (str(tmp_path / "scene.png"), tmp_path / "scene.png", data, io.BytesIO(data), scene):
        assert engine.find_faces(source).faces == expected
    assert engine.find_faces(pixels[..., ::-1], channels="bgr").faces == expected
    assert engine.find_faces(pixels[..., ::-1]).faces != expected
    gray = engine.find_faces(np.asarray(scene.convert("L")))
    check_places(gray.faces, boxes_of(PLACES))


def test_many_are_as_one_bit_for_bit_and_in_order(engine: Engine, face: Image.Image, tmp_path: Path) -> None:
    sources: list[object] = []
    for number in range(12):
        places = [(20 + 10 * number, 30, 60 + 5 * number), (300, 200 - 5 * number, 80)][: number % 3]
        picture = paste(face, (500 + number, 400), places)
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(to_bytes(picture, "JPEG", quality=90))
        sources.append(str(path) if number % 2 else np.asarray(picture))
    sources.insert(5, b"no picture")
    sources.insert(9, str(tmp_path / "missing.jpg"))
    for given_as in (sources, tuple(sources), iter(sources)):
        found = list(engine.predict_scenes(given_as))
        assert [type(each).__name__ for each in found].count("Failure") == 2
        for source, each in zip(sources, found, strict=True):
            assert each.source is source
            if isinstance(each, Failure):
                with pytest.raises(SourceError, match=each.message[:20]):
                    engine.find_faces(source)
            else:
                assert each == engine.find_faces(source)
    kinds = [each.kind for each in found if isinstance(each, Failure)]
    assert kinds == ["not_an_image", "not_found"]


def test_a_crop_holds_what_predict_reads(engine: Engine, face: Image.Image) -> None:
    """Of a JPEG its luma plane: the label is that of the crop of those levels, and no pixel beside it."""
    for kind, options in (("JPEG", {"quality": 60}), ("PNG", {}), ("WEBP", {"quality": 50})):
        data = to_bytes(paste(face, (700, 520), PLACES), kind, **options)
        levels = decode(data, "gray", Limits())
        for found in engine.find_faces(data).faces:
            left, top, right, bottom = found.crop
            crop = levels[top:bottom, left:right]
            assert engine.predict(np.ascontiguousarray(crop)).probabilities == found.prediction.probabilities
            beside = levels[top:bottom, left + 1 : right + 1]
            assert engine.predict(np.ascontiguousarray(beside)).probabilities != found.prediction.probabilities


@given(st.tuples(*[st.floats(-50, 150)] * 2), st.tuples(*[st.floats(0.1, 120)] * 2))
def test_a_crop_is_a_square_on_the_boxs_centre_clipped(
    corner: tuple[float, float], size: tuple[float, float]
) -> None:
    box = (*corner, corner[0] + size[0], corner[1] + size[1])
    left, top, right, bottom = compute_crop(box, (100, 80))
    assert 0 <= left < right <= 100
    assert 0 <= top < bottom <= 80
    side = max(1, round((size[0] * size[1]) ** 0.5))
    if left > 0 and right < 100 and top > 0 and bottom < 80:
        assert right - left == bottom - top == side
        assert abs((left + right) / 2 - (box[0] + box[2]) / 2) <= 1
        assert abs((top + bottom) / 2 - (box[1] + box[3]) / 2) <= 1


def test_the_crop_of_a_known_box() -> None:
    assert compute_crop((10.0, 20.0, 50.0, 110.0), (640, 480)) == (0, 35, 60, 95)  # √(40 · 90) = 60 on (30, 65)
    assert compute_crop((600.0, 400.0, 660.0, 500.0), (640, 480)) == (592, 412, 640, 480)  # 77 on (630, 450)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_coordinates_are_those_of_the_upright_picture(
    engine: Engine, scene: Image.Image, orientation: int
) -> None:
    """Stored so that its EXIF orientation makes it upright again."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    found = engine.find_faces(to_bytes(scene.transpose(stored), "JPEG", quality=95, exif=exif))
    assert found.size == (640, 480)
    check_places(found.faces, boxes_of(PLACES))


def test_a_large_photograph_is_searched_small_and_cut_out_at_full_size(engine: Engine, face: Image.Image) -> None:
    """Twelve megapixels, a JPEG, which its decoder makes smaller for the search: faces of 4 % of its long side."""
    places = [(400, 500, 220), (2000, 1400, 240), (3600, 2500, 230)]
    data = to_bytes(paste(face, (4000, 3000), places), "JPEG", quality=90)
    found = engine.find_faces(data)
    assert found.size == (4000, 3000)
    check_places(found.faces, boxes_of(places))
    levels = decode(data, "gray", Limits())
    for each in found.faces:
        left, top, right, bottom = each.crop
        assert right - left > 140
        assert engine.predict(np.ascontiguousarray(levels[top:bottom, left:right])) == each.prediction


def test_a_picture_that_is_a_face_is_searched_small(engine: Engine, face: Image.Image) -> None:
    assert [choose_search_size(size) for size in ((48, 48), (299, 100), (300, 100), (4000, 3000))] == [
        160,
        160,
        640,
        640,
    ]
    for side in (48, 96, 290):
        assert len(engine.find_faces(face.resize((side, side))).faces) == 1


@pytest.mark.parametrize("degrees", [45, -45, 60])
def test_a_face_that_is_turned_is_found_by_a_second_look(engine: Engine, face: Image.Image, degrees: int) -> None:
    turned = face.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=GROUND)
    canvas = Image.new("RGB", (640, 480), GROUND)
    canvas.paste(turned, (260, 150))
    (found,) = engine.find_faces(canvas).faces
    centre = (found.box[0] + found.box[2]) / 2, (found.box[1] + found.box[3]) / 2
    assert abs(centre[0] - (260 + turned.width / 2)) < 20
    assert abs(centre[1] - (150 + turned.height / 2)) < 20
    for x, y in found.landmarks:
        assert found.box[0] - 20 < x < found.box[2] + 20
        assert found.box[1] - 20 < y < found.box[3] + 20


def test_what_is_turned_is_turned_back() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((90, 140, 3), np.uint8)
    for degrees in (45.0, -45.0, 30.0):
        x, y = int(rng.integers(20, 120)), int(rng.integers(20, 70))
        marked = image.copy()
        marked[y - 2 : y + 3, x - 2 : x + 3] = 255
        turned = turn(marked, degrees)
        rows, columns = np.nonzero(turned[..., 0] > 127)
        there = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        back = turn_back(there, degrees, (140, 90), turned.shape[1::-1])
        np.testing.assert_allclose(back, (x + 0.5, y + 0.5), atol=1)


def test_faces_that_are_wanted(engine: Engine, scene: Image.Image) -> None:
    every = engine.find_faces(scene).faces
    assert engine.find_faces(scene, max_faces=1).faces == every[:1]
    assert {face.crop for face in engine.find_faces(scene, min_size=70).faces} < {face.crop for face in every}
    assert not engine.find_faces(scene, min_score=0.99).faces
    assert next(engine.predict_scenes([scene], max_faces=2)).faces == every[:2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_score": 0.0}, "min_score 0.0; expected more than 0"),
        ({"min_score": float("nan")}, "min_score nan"),
        ({"min_size": -1}, "min_size -1; expected pixels, 0 or more"),
        ({"max_faces": 0}, "max_faces 0; expected 1 or more, or None"),
        ({"search_size": 31}, "search_size 31; expected 32 to 8192 pixels"),
        ({"search_size": 9000}, "search_size 9000"),
        ({"channels": "rbg"}, "channels 'rbg'"),
    ],
)
def test_settings_that_cannot_be(engine: Engine, setting: dict[str, object], message: str) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        engine.find_faces(picture, **setting)
    with pytest.raises(ValueError, match=message):
        engine.predict_scenes([picture], **setting)


def test_odd_pictures(engine: Engine) -> None:
    """None of them has a face, and none is an error."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 2000), (2000, 1, 3), (31, 33, 3), (480, 640, 4), (300, 300)]
    sources = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    sources += [Image.new("P", (50, 40)), Image.new("CMYK", (400, 310)), Image.new("1", (9, 9))]
    for source, found in zip(sources, engine.predict_scenes(sources), strict=True):
        assert isinstance(found, Scene), found
        assert not found.faces
        assert found.size == (source.size if isinstance(source, Image.Image) else source.shape[1::-1])
    with pytest.raises(TypeError, match="sources is one ndarray"):
        engine.predict_scenes(sources[0])


def test_a_picture_on_a_gpu_is_refused_alone(engine: Engine, scene: Image.Image) -> None:
    there = {"shape": (8, 8), "typestr": "|u1", "data": (1 << 30, True), "version": 3}
    refused, found = engine.predict_scenes([SimpleNamespace(__cuda_array_interface__=there), scene])
    assert isinstance(refused, Failure)
    assert (refused.kind, "copy it to the host" in refused.message) == ("unsupported", True)
    assert isinstance(found, Scene)
    assert len(found.faces) == len(PLACES)


@pytest.mark.slow
def test_a_crowd(engine: Engine, face: Image.Image) -> None:
    """500 faces, more than the classifier is given at once."""
    places = [(10 + 50 * column, 10 + 60 * row, 40) for row in range(20) for column in range(25)]
    crowd = paste(face, (1270, 1220), places)
    found = engine.find_faces(crowd, search_size=1280)
    assert len(found.faces) > 450
    assert len({each.crop for each in found.faces}) == len(found.faces)
    for each in found.faces[::40]:
        left, top, right, bottom = each.crop
        assert engine.predict(np.asarray(crowd)[top:bottom, left:right]) == each.prediction


def test_a_closed_engine_says_so(scene: Image.Image) -> None:
    with Engine.load(backend="onnxruntime", threads=1) as engine:
        engine.find_faces(scene)
    with pytest.raises(Exception, match="this engine is closed"):
        engine.find_faces(scene)


@pytest.mark.slow
def test_real_photographs(engine: Engine, shared_scenes: Path) -> None:
    """All faces and no other, in each photograph as it is, and some twice as large."""
    truth = json.loads((shared_scenes / "faces.json").read_text())
    faces = 0
    for number, (name, known) in enumerate(truth.items()):
        with Image.open(shared_scenes / name) as opened:
            picture = opened.convert("RGB")
        for factor in (1, 2) if number % 2 else (1,):
            larger = picture.resize((factor * picture.width, factor * picture.height))
            found = engine.find_faces((shared_scenes / name).read_bytes() if factor == 1 else np.asarray(larger))
            for box in known["faces"]:
                assert any(compute_iou([v / factor for v in each.box], box) > 0.4 for each in found.faces), name
            others = known["faces"] + known["ignore"]
            for each in found.faces:
                assert any(compute_iou([v / factor for v in each.box], box) > 0.2 for box in others), name
        faces += len(known["faces"])
    assert faces == 227
