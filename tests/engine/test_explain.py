"""What an answer rests on: the map, its drawing over the picture, and `infer --explain`."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import json_rows, refused, run
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests.page import Page

from fmengine.engine import Engine
from fmengine.errors import Kind, SourceError
from fmengine.explain.occlusion import compute_effect, explain
from fmengine.explain.overlay import AGAINST, FOR, draw_overlay
from fmengine.image.geometry import compute_fit_box
from fmengine.model.spec import InputSpec, ModelSpec
from fmengine.types import FITS, Outputs
from fmengine_export.graph import describe

SIZE = 20


def look_at_corner(images: np.ndarray) -> Outputs:
    """A network whose first label's probability is the mean brightness of the corner of 5×5, left above."""
    assert images.dtype == np.uint8
    bright = images[:, :, :5, :5].mean(axis=(1, 2, 3), dtype=np.float32) / 255
    probabilities = np.stack([bright, 1 - bright], axis=1)
    return Outputs(probabilities, probabilities)


def bright_corner(channels: int = 1, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    image = np.zeros((channels, height, width), np.uint8)
    image[:, :5, :5] = 255
    return image


# The map


@pytest.mark.parametrize("channels", [1, 3])
def test_what_decides_has_the_largest_effect(channels):
    effect = compute_effect(look_at_corner, bright_corner(channels), 0, 4, 1)
    assert (effect.dtype, effect.shape) == (np.float32, (SIZE, SIZE))
    assert effect[:5, :5].min() > 0.1
    assert effect[:5, :5].min() > effect[5:, :].max()
    assert effect[:5, :5].min() > effect[:, 5:].max()
    assert not effect[9:, :].any(), "no patch that covers this pixel reaches the corner"
    assert not effect[:, 9:].any()


def test_the_other_label_has_the_opposite_effect():
    image = bright_corner()
    happy, sad = (compute_effect(look_at_corner, image, label, 4, 2) for label in (0, 1))
    assert happy == pytest.approx(-sad, abs=1e-6)


def test_a_map_is_golden():
    """A patch of two, one at a time, over a corner of two, of a picture whose mean level is 64."""

    def run_small(images: np.ndarray) -> Outputs:
        bright = images[:, 0, :2, :2].mean(axis=(1, 2)) / 255
        return Outputs(bright[:, None], bright[:, None])

    image = np.zeros((1, 4, 4), np.uint8)
    image[0, :2, :2] = 255
    covered = (255 - 64) / 255  # as much less bright is what is covered
    # A pixel of the corner is under four patches, which cover 1, 2, 2 and 4 quarters of it, and so on.
    corner, beside, diagonal = 9 / 16 * covered, 3 / 16 * covered, 1 / 16 * covered
    expected = [
        [corner, corner, beside, 0],
        [corner, corner, beside, 0],
        [beside, beside, diagonal, 0],
        [0, 0, 0, 0],
    ]
    assert compute_effect(run_small, image, 0, 2, 1) == pytest.approx(np.array(expected), abs=1e-6)


def test_the_map_is_the_same_in_batches_of_any_size():
    sizes = []

    def run_and_count(images: np.ndarray) -> Outputs:
        sizes.append(len(images))
        return look_at_corner(images)

    image = np.random.default_rng(0).integers(0, 256, (1, 11, 17), np.uint8)
    whole = compute_effect(look_at_corner, image, 0, 5, 3, 10_000)
    assert np.array_equal(compute_effect(run_and_count, image, 0, 5, 3, 7), whole)
    assert max(sizes) == 7


@pytest.mark.parametrize(("patch", "stride"), [(0, 0), (4, 5), (SIZE + 1, 1), (4, 0), (4, -1)])
def test_a_patch_that_cannot_be_is_refused(patch, stride):
    with pytest.raises(ValueError, match="expected a patch of 1 to 20 pixels"):
        compute_effect(look_at_corner, bright_corner(), 0, patch, stride)


def test_a_network_that_has_no_number_is_reported():
    def run_blind(images: np.ndarray) -> Outputs:
        covered = np.array([[0.5 if image[:, 5, 5] == 0 else np.nan, 0.5] for image in images])
        return Outputs(covered, covered)

    with pytest.raises(SourceError, match="no number for the picture with a part covered") as caught:
        compute_effect(run_blind, bright_corner(), 0, 4, 1)
    assert caught.value.kind is Kind.NOT_FINITE


# A model file


def write_model(
    folder: Path, color: str = "gray", fit: str = "crop", height: int = SIZE, width: int = SIZE
) -> Path:
    """A model that is sure of `bright` where the corner of 5×5 of its input is, left above."""
    channels = 1 if color == "gray" else 3
    weight = np.zeros((channels, height, width), np.float32)
    weight[:, :5, :5] = 8 / (channels * 25 * 255)
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["levels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    columns = np.stack([weight.ravel(), np.zeros(weight.size, np.float32)], axis=1)
    graph = helper.make_graph(
        nodes,
        "corner",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", channels, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("logits", "probabilities")],
        [
            numpy_helper.from_array(columns, "weight"),
            numpy_helper.from_array(np.array([-4, 0], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    zeros, ones = (0,) * channels, (1.0,) * channels
    spec = ModelSpec("corner", ("bright", "dark"), height, width, color, fit, "fp32", zeros, ones)
    path = folder / f"corner-{color}-{fit}.fp32.onnx"
    path.write_bytes(describe(model, spec))
    return path


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("fit", FITS)
def test_a_model_files_answer_is_explained(tmp_path, color, fit):
    """Through the runtime: a bright spot where the network looks, in a picture of another shape."""
    spec = InputSpec(SIZE, SIZE, color, fit)
    left, top, right, bottom = compute_fit_box((80, 40), spec)
    picture = np.full((40, 80), 30, np.uint8)
    columns, rows = ((right - left) // 4, (bottom - top) // 4)
    picture[max(0, top) : top + rows + 1, left : left + columns] = 250
    with Engine.load(write_model(tmp_path, color, fit), "onnxruntime") as engine:
        explanation = explain(engine, picture)
        assert explanation.prediction == engine.predict(picture)
        if fit == "pad":  # the corner is a border, black whatever the picture shows
            assert explanation.label == "dark"
            return
        assert explanation.label == "bright"
        assert np.unravel_index(explanation.effect.argmax(), (SIZE, SIZE)) < (5, 5)
        assert explanation.effect[:5, :5].mean() > 10 * np.abs(explanation.effect[10:, 10:]).mean()
        drawn = draw_overlay(picture, explanation.effect, engine.spec.input, side=80)
    assert drawn.shape == (40, 80, 3)
    orange = drawn[..., 0].astype(int) - drawn[..., 2] > 60
    y, x = np.nonzero(orange)
    assert left <= x.mean() < left + (right - left) / 3
    assert y.mean() < 40 / 3


def test_any_source_is_explained_alike(tmp_path):
    image = Image.fromarray(bright_corner()[0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with Engine.load(write_model(tmp_path), "onnxruntime") as engine:
        sources = [tmp_path / "a.png", buffer.getvalue(), image, np.asarray(image), io.BytesIO(buffer.getvalue())]
        first, *others = [explain(engine, source).effect for source in sources]
        assert first.max() > 0.1
        assert all(np.array_equal(first, other) for other in others)
        with pytest.raises(SourceError, match="no such file"):
            explain(engine, tmp_path / "none.png")


# The drawing


def effect_of(spec: InputSpec) -> np.ndarray:
    """The left half of the input speaks for the label, the right half against it."""
    effect = np.full((spec.height, spec.width), 0.5, np.float32)
    effect[:, spec.width // 2 :] = -0.5
    return effect


def tints(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a picture is orange, and where it is blue."""
    red, _, blue = (drawn[..., channel].astype(int) for channel in range(3))
    return red - blue > 60, blue - red > 60


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (40, 40), (200, 100), (7, 90)])
@pytest.mark.parametrize("fit", FITS)
def test_the_map_lies_where_the_network_looked(size, fit):
    spec = InputSpec(16, 16, "gray", fit)
    width, height = size
    drawn = draw_overlay(np.full((height, width), 128, np.uint8), effect_of(spec), spec, side=120)
    scale = 120 / max(size)
    assert drawn.shape == (round(height * scale), round(width * scale), 3)
    orange, blue = tints(drawn)
    left, top, right, bottom = (edge * scale for edge in compute_fit_box(size, spec))
    middle = (left + right) / 2
    y, x = np.indices(drawn.shape[:2]) + 0.5
    seen = (x > left) & (x < right) & (y > top) & (y < bottom)
    margin = 0.1 * (right - left)  # where the halves meet, they are mixed
    assert orange[seen & (x < middle - margin)].all()
    assert blue[seen & (x > middle + margin)].all()
    away = (x < left - 1) | (x > right + 1) | (y < top - 1) | (y > bottom + 1)
    assert not (orange | blue)[away].any()
    assert drawn[away].max(initial=0) < 80, "what the network does not see is dark"
    assert away.any() == (fit == "crop" and width != height)


@pytest.mark.parametrize("fit", FITS)
def test_gray_and_rgb_pictures_are_drawn_alike(fit):
    spec = InputSpec(16, 12, "rgb", fit)
    gray = np.random.default_rng(1).integers(0, 256, (33, 47), np.uint8)
    drawn = draw_overlay(gray, effect_of(spec), spec)
    assert np.array_equal(drawn, draw_overlay(np.repeat(gray[..., None], 3, axis=2), effect_of(spec), spec))
    assert (drawn.dtype, drawn.shape) == (np.uint8, (270, 384, 3))


def test_colours_are_golden():
    spec, gray = InputSpec(2, 2, "gray", "stretch"), np.full((2, 2), 100, np.uint8)
    drawn = draw_overlay(gray, np.array([[0.4, -0.4], [0.2, 0]], np.float32), spec, side=2)
    mix = lambda color, share: [round(100 * (1 - share) + share * level) for level in color]  # noqa: E731
    assert drawn.tolist() == [[mix(FOR, 0.75), mix(AGAINST, 0.75)], [mix(FOR, 0.375), [100] * 3]]


def test_a_map_of_nothing_but_noise_stays_pale():
    spec, gray = InputSpec(4, 4, "gray", "crop"), np.full((4, 4), 100, np.uint8)
    drawn = draw_overlay(gray, np.full((4, 4), 0.001, np.float32), spec, side=8)
    assert np.abs(drawn.astype(int) - 100).max() <= 5


# The command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def test_pictures_are_written_with_what_their_answers_rest_on(faces, model):
    (faces / "broken.png").write_bytes(b"no picture")
    out, err = run("infer", faces, "--model", model, "--explain", "why", "--report", "x.html", "--json", code=3)
    assert err.endswith("report: x.html\nexplained: why\n")
    answered = [row["path"] for row in json_rows(out) if not row["error"]]
    written = sorted(str(path.relative_to("why")) for path in Path("why").rglob("*") if path.is_file())
    assert written == sorted(answered)
    with Image.open("why/faces/a.png") as drawn, Image.open("why/faces/b.jpg") as photograph:
        assert (drawn.format, photograph.format) == ("PNG", "JPEG")
        assert (drawn.size, drawn.mode) == ((384, 384), "RGB")
    cards = Page(Path("x.html")).cards
    assert {card["path"] for card in cards if "map" in card} == set(answered)
    assert len({card["map"] for card in cards if "map" in card}) == len(answered)


def test_a_bright_corner_is_orange(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(bright_corner()[0]).save("a.png")
    run("infer", "a.png", "--model", model, "--explain", "why")
    with Image.open("why/a.png") as drawn:
        orange, blue = tints(np.asarray(drawn))
    assert orange[:80, :80].mean() > 0.9
    assert not orange[200:, 200:].any()
    assert not blue.any()


def test_explaining_is_refused_where_it_cannot_be(faces, model):
    assert "leave --faces out" in refused("infer", faces, "--explain", "why", "--faces")
    assert "leave --isolate out" in refused("infer", faces, "--explain", "why", "--isolate")
    assert "pictures are read from there" in refused("infer", faces, "--explain", "faces/below")
    Path("why").mkdir()
    Path("why/mine.txt").write_text("mine")
    assert "why holds files" in refused("infer", faces, "--model", model, "--explain", "why")
    assert os.listdir("why") == ["mine.txt"]


def test_a_run_that_is_resumed_explains_all_its_rows(faces, model):
    command = ["infer", faces, "--model", model, "--output", "x.jsonl"]
    run(*command)
    shutil.rmtree("faces/below")
    _, err = run(*command, "--resume", "--explain", "why")
    assert "faces/below/e.png: not explained: no such file" in err
    assert len(list(Path("why/faces").iterdir())) == 5
