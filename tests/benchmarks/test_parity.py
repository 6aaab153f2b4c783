"""`fmengine parity`: it holds for what was exported, and every planted fault breaks it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from fmengine.check.compare import PARITY
from fmengine.cli import cli
from fmengine.engine import Engine
from fmengine.errors import DataError, ModelError
from fmengine.model.file import load_model_file
from fmengine.model.spec import InputSpec
from fmengine_bench.parity import ParityReport, compare_form, list_pictures, run_parity
from fmengine_bench.pytorch import Answers
from fmengine_export.export import make_spec
from fmengine_export.fold import Network, fold
from fmengine_export.graph import build_float, build_int8
from fmengine_export.quantize import calibrate
from fmengine_train.checkpoint import load_model, save_model
from fmengine_train.model import AlexNet

PRECISIONS = ("fp32", "fp16", "int8")
LAYERS = range(8)

Files = list[tuple[str, int | None]]


def run(checkpoint: Path, models: list[Path], pictures: Path, *options: str) -> Result:
    arguments = [str(checkpoint), *map(str, models), "--pictures", str(pictures), *options]
    return CliRunner().invoke(cli, ["parity", *arguments])


@pytest.fixture
def models(tiny_models: Path) -> list[Path]:
    return [tiny_models / f"tiny.{precision}.onnx" for precision in PRECISIONS]


@pytest.fixture
def trained(tiny_run: Path) -> tuple[AlexNet, dict[str, Any]]:
    return load_model(tiny_run)


@pytest.fixture
def files(drawn_faces: Path) -> Files:
    return list_pictures(drawn_faces / "val", ("happy", "sad"))


@pytest.fixture
def against(
    trained: tuple[AlexNet, dict[str, Any]], files: Files, tmp_path: Path
) -> Callable[[bytes], ParityReport]:
    """Holds the bytes of a model file against the trained network."""

    def report(data: bytes) -> ParityReport:
        (tmp_path / "planted.onnx").write_bytes(data)
        return run_parity(*trained, [Engine.load(tmp_path / "planted.onnx", "onnxruntime")], files)

    return report


def with_layer(network: Network, number: int, **changes: np.ndarray) -> Network:
    layers = network.layers
    layers[number] = replace(layers[number], **changes)
    return Network(layers[:5], layers[5:])  # type: ignore[arg-type]


# It holds


def test_parity_holds_for_what_was_exported(tiny_run: Path, models: list[Path], drawn_faces: Path) -> None:
    result = run(tiny_run, models, drawn_faces / "val")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("parity holds\n")
    assert "32 pictures, reference: PyTorch in FP32" in result.stdout
    assert result.stdout.count("pixels     0 of 51,200 differ from the definition") == 3
    assert result.stdout.count("features   max ") == 4
    assert "breach" not in result.stdout.lower()


def test_the_report_as_json_holds_the_same(tiny_run: Path, models: list[Path], drawn_faces: Path) -> None:
    result = run(tiny_run, models, drawn_faces / "val", "--json")
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert [form["name"] for form in report["forms"]] == [*(path.name for path in models), "PyTorch fp16"]
    assert [form["precision"] for form in report["forms"]] == [*PRECISIONS, "fp16"]
    assert all(form["accuracy"]["reference"] >= 0.75 for form in report["forms"])
    assert [*report["activations"]] == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert all(value > 0 for value in report["activations"].values())


def test_no_form_is_exact_but_for_the_pixels(tiny_run: Path, models: list[Path], drawn_faces: Path) -> None:
    # A comparison of the reference with itself would pass everything.
    forms = json.loads(run(tiny_run, models, drawn_faces / "val", "--json").stdout)["forms"]
    fp32, fp16, int8, half = (form["logits"]["max"] for form in forms)
    assert 0 < fp32 < fp16 < int8
    assert fp32 < half < int8
    assert all(form["features"]["max"] > 0 for form in forms)
    assert all(0.98 < form["features"]["min_cosine"] <= form["features"]["cosine"] <= 1 for form in forms)


def test_the_largest_activations_are_those_of_the_network(
    trained: tuple[AlexNet, dict[str, Any]], models: list[Path], files: Files
) -> None:
    model, document = trained
    report = run_parity(model, document, [Engine.load(models[0], "onnxruntime")], files)
    seen: list[float] = []
    model.features.register_forward_hook(lambda layer, inputs, output: seen.append(float(output.max())))
    with Engine.load(models[0], "onnxruntime") as engine, torch.inference_mode():
        model(torch.from_numpy(np.stack([engine.prepare(path) for path, _ in files])))
    assert report.activations["conv5"] == pytest.approx(seen[0], rel=1e-4)


def test_pictures_without_labels_give_no_accuracies(tiny_run: Path, models: list[Path], drawn_faces: Path) -> None:
    result = run(tiny_run, models[:1], drawn_faces / "val" / "happy", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["pictures"] == 16
    assert all(form["accuracy"] is None for form in report["forms"])


def test_a_limit_takes_pictures_from_all_over(drawn_faces: Path, tiny_run: Path, models: list[Path]) -> None:
    report = json.loads(run(tiny_run, models[:1], drawn_faces / "val", "--limit", "5", "--json").stdout)
    assert report["pictures"] == 5
    assert 0 < report["forms"][0]["accuracy"]["reference"] <= 1


def test_unreadable_pictures_are_named(
    tiny_run: Path, models: list[Path], drawn_faces: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn_faces / "val", tmp_path / "val")
    (tmp_path / "val" / "sad" / "broken.png").write_bytes(b"no picture")
    result = run(tiny_run, models[:1], tmp_path / "val")
    assert result.exit_code == 0, result.output
    assert "32 pictures" in result.stdout
    assert f"left out {tmp_path / 'val' / 'sad' / 'broken.png'}: " in result.stdout


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is no folder"), ([], "no files in"), (["x"], "1 file, and none is a picture")]
)
def test_without_pictures_there_is_no_verdict(
    tiny_run: Path, models: list[Path], tmp_path: Path, content: list[str] | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "faces").mkdir()
        for name in content:
            (tmp_path / "faces" / name).write_bytes(b"no picture")
    result = run(tiny_run, models[:1], tmp_path / "faces")
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)


def test_whatever_a_picture_raises_leaves_it_out(
    trained: tuple[AlexNet, dict[str, Any]], drawn_faces: Path, tmp_path: Path
) -> None:
    """Padded to a square, a strip has more pixels than Pillow, or any memory, could hold."""
    model, document = trained
    document["fit"] = "pad"
    save_model(tmp_path / "model.safetensors", model, document)
    (tmp_path / "pad.onnx").write_bytes(build_float(fold(model), make_spec(model, document, "pad", "fp32")))
    shutil.copytree(drawn_faces / "val", tmp_path / "val")
    strip = tmp_path / "val" / "happy" / "strip.png"
    Image.linear_gradient("L").resize((1, 60_000)).save(strip)
    result = run(tmp_path, [tmp_path / "pad.onnx"], tmp_path / "val")
    assert result.exit_code == 0, result.exception
    assert "32 pictures" in result.stdout
    assert f"left out {strip}: " in result.stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_names_need_not_be_utf8(
    tiny_run: Path, models: list[Path], drawn_faces: Path, tmp_path: Path, options: list[str]
) -> None:
    odd = Path(f"{tmp_path}/\udcff")
    shutil.copytree(drawn_faces / "val", odd)
    (odd / "sad" / "a\n\udcfe.png").write_bytes(b"no picture")
    renamed = Path(shutil.copy(models[0], odd.parent / "\udcff.onnx"))
    result = run(tiny_run, [renamed], odd, *options)
    assert result.exit_code == 0, result.exception
    assert f"{tmp_path}/%FF/sad/a%0A%FE.png: no known image format" in result.stdout
    assert "%FF.onnx" in result.stdout
    assert os.fsencode(odd) not in result.stdout_bytes


def test_one_picture_is_one_in_words(
    tiny_run: Path, models: list[Path], drawn_faces: Path, tmp_path: Path
) -> None:
    shutil.copy(drawn_faces / "val" / "sad" / "000.png", tmp_path)
    assert run(tiny_run, models[:1], tmp_path).stdout.startswith("1 picture, reference")


# Planted faults


def test_a_model_that_answers_what_is_no_number_is_a_breach(
    trained: tuple[AlexNet, dict[str, Any]], drawn_faces: Path, tmp_path: Path
) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"the report holds {name}, which is no JSON")

    network = fold(trained[0])
    broken = with_layer(network, 7, bias=np.full_like(network.layers[7].bias, np.nan))
    (tmp_path / "nan.onnx").write_bytes(build_float(broken, make_spec(*trained, "nan", "fp32")))
    save_model(tmp_path / "model.safetensors", *trained)
    for options in ([], ["--json"]):
        result = run(tmp_path, [tmp_path / "nan.onnx"], drawn_faces / "val", *options)
        assert result.exit_code == 1, result.exception
    form, _ = json.loads(result.stdout, parse_constant=refuse)["forms"]
    assert form["breaches"] == ["32 of 32 pictures without a number for an answer; allowed are 0"]
    assert (form["unanswered"], form["flips"], form["accuracy"]["form"]) == (32, 0, 0)


def test_one_changed_weight_makes_it_another_model(
    trained: tuple[AlexNet, dict[str, Any]], models: list[Path], drawn_faces: Path, tmp_path: Path
) -> None:
    model, document = trained
    weight = model.classifier[-1].weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    save_model(tmp_path / "model.safetensors", model, document)
    result = run(tmp_path, models, drawn_faces / "val")
    assert isinstance(result.exception, ModelError)
    assert "comes from other weights than the checkpoint" in str(result.exception)


def test_a_file_that_names_no_weights_is_refused(
    trained: tuple[AlexNet, dict[str, Any]], against: Callable[[bytes], ParityReport]
) -> None:
    spec = replace(make_spec(*trained, "tiny", "fp32"), weights_sha256="")
    with pytest.raises(ModelError, match="none stated"):
        against(build_float(fold(trained[0]), spec))


def test_swapped_passes_move_pixels(
    tiny_run: Path, models: list[Path], drawn_faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vertical_first(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
        image = Image.fromarray(pixels)
        image = image.resize((image.width, spec.height), Image.Resampling.BILINEAR)
        return np.asarray(image.resize(spec.size, Image.Resampling.BILINEAR))[np.newaxis]

    monkeypatch.setattr("fmengine.pipeline.stages.preprocess", vertical_first)
    result = run(tiny_run, models, drawn_faces / "val")
    assert result.exit_code == 1, result.output
    assert result.stdout.endswith("parity is broken\n")
    assert result.stdout.count("pixels differ from the definition of preprocessing; allowed are 0") == 3


def test_one_pixel_is_enough(
    tiny_run: Path, models: list[Path], drawn_faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmengine.image.preprocess import preprocess

    inputs = []

    def off_by_one(image: np.ndarray, spec: InputSpec) -> np.ndarray:
        pixels = preprocess(image, spec).copy()
        inputs.append(pixels)
        pixels[0, 0, 0] ^= len(inputs) == 1
        return pixels

    monkeypatch.setattr("fmengine.pipeline.stages.preprocess", off_by_one)
    result = run(tiny_run, models[:1], drawn_faces / "val")
    assert result.exit_code == 1, result.output
    assert "1 pixel differs" in result.stdout


def test_the_right_network_passes_as_planted(
    trained: tuple[AlexNet, dict[str, Any]], against: Callable[[bytes], ParityReport]
) -> None:
    assert against(build_float(fold(trained[0]), make_spec(*trained, "tiny", "fp32"))).passed


@pytest.mark.parametrize(("precision", "factor"), [("fp32", 0.98), ("fp32", 2.0), ("fp16", 0.9), ("fp16", 2.0)])
def test_a_wrong_temperature_is_a_breach(
    trained: tuple[AlexNet, dict[str, Any]],
    against: Callable[[bytes], ParityReport],
    precision: Any,
    factor: float,
) -> None:
    spec = make_spec(*trained, "tiny", precision)
    form, _ = against(build_float(fold(trained[0]), replace(spec, temperature=spec.temperature * factor))).forms
    assert any("on average" in breach for breach in form.breaches)
    assert form.flips == 0  # a temperature turns no label, and is found all the same


@pytest.mark.parametrize("number", LAYERS)
def test_a_dropped_bias_is_a_breach(
    trained: tuple[AlexNet, dict[str, Any]], against: Callable[[bytes], ParityReport], number: int
) -> None:
    network = fold(trained[0])
    dropped = with_layer(network, number, bias=np.zeros_like(network.layers[number].bias))
    assert not against(build_float(dropped, make_spec(*trained, "tiny", "fp32"))).passed


def test_swapped_outputs_turn_labels(
    trained: tuple[AlexNet, dict[str, Any]], against: Callable[[bytes], ParityReport]
) -> None:
    network = fold(trained[0])
    last = network.linears[-1]
    swapped = with_layer(network, 7, weight=last.weight[::-1].copy(), bias=last.bias[::-1].copy())
    report = against(build_float(swapped, make_spec(*trained, "tiny", "fp32")))
    assert report.forms[0].flips == 32
    assert any("labels turned: 32 of 32" in breach for breach in report.forms[0].breaches)


def test_wrong_int8_scales_are_a_breach(
    trained: tuple[AlexNet, dict[str, Any]],
    models: list[Path],
    files: Files,
    against: Callable[[bytes], ParityReport],
) -> None:
    with Engine.load(models[0], "onnxruntime") as engine:
        pixels = np.stack([engine.prepare(path) for path, _ in files])
    network, spec = fold(trained[0]), make_spec(*trained, "tiny", "int8")
    scales = calibrate(network, pixels, 128, 64.0)
    assert against(build_int8(network, spec, scales)).passed
    assert not against(build_int8(network, spec, [scale / 4 for scale in scales])).passed


def louder(model: AlexNet, factor: float) -> None:
    """The same answers in FP32: what the last convolution gains, the next layer takes back."""
    norm = [layer for layer in model.features if isinstance(layer, nn.BatchNorm2d)][-1]
    norm.weight.data *= factor
    norm.bias.data *= factor
    model.classifier[1].weight.data /= factor


@pytest.fixture
def overflowing(trained: tuple[AlexNet, dict[str, Any]], tmp_path: Path) -> Path:
    """A run folder whose network overflows FP16, with its `loud.onnx` in FP32."""
    model, document = trained
    louder(model, 2.0**17)
    save_model(tmp_path / "model.safetensors", model, document)
    (tmp_path / "loud.onnx").write_bytes(build_float(fold(model), make_spec(model, document, "loud", "fp32")))
    return tmp_path


def test_an_overflow_of_fp16_is_a_breach(overflowing: Path, files: Files) -> None:
    report = run_parity(*load_model(overflowing), [Engine.load(overflowing / "loud.onnx", "onnxruntime")], files)
    fp32, half = report.forms
    assert fp32.breaches == []
    assert half.name == "PyTorch fp16"
    assert half.breaches
    assert any(breach.startswith("conv5: the largest activation") for breach in report.breaches)
    assert not report.passed


def test_an_overflow_is_reported_as_json_that_others_can_read(overflowing: Path, drawn_faces: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"the report holds {name}, which is no JSON")

    result = run(overflowing, [overflowing / "loud.onnx"], drawn_faces / "val", "--json")
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout, parse_constant=refuse)["passed"] is False


def test_activations_near_the_limit_are_a_breach_before_they_overflow(
    trained: tuple[AlexNet, dict[str, Any]], files: Files, tmp_path: Path
) -> None:
    model, document = trained
    (tmp_path / "tiny.onnx").write_bytes(build_float(fold(model), make_spec(model, document, "tiny", "fp32")))
    factor = (
        30_000
        / run_parity(model, document, [Engine.load(tmp_path / "tiny.onnx", "onnxruntime")], files).activations[
            "conv5"
        ]
    )
    louder(model, factor)
    (tmp_path / "loud.onnx").write_bytes(build_float(fold(model), make_spec(model, document, "loud", "fp32")))
    report = run_parity(model, document, [Engine.load(tmp_path / "loud.onnx", "onnxruntime")], files)
    assert report.breaches == ["conv5: the largest activation 30000 is over a quarter of FP16's 65504"]


def test_a_damaged_model_file_is_refused(
    tiny_run: Path, models: list[Path], drawn_faces: Path, tmp_path: Path
) -> None:
    data = bytearray(models[0].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(data)
    result = run(tiny_run, [tmp_path / "damaged.onnx"], drawn_faces / "val")
    assert isinstance(result.exception, ModelError)
    assert load_model_file(models[0]).spec.name == "tiny"


# Tolerances


def answers(happy: np.ndarray) -> Answers:
    """Two labels; `happy` is the first one's probability."""
    probabilities = np.stack([happy, 1 - happy], axis=1)
    return Answers(np.log(probabilities), probabilities)


def sure(count: int = 1000) -> np.ndarray:
    return np.where(np.arange(count) % 2 == 0, 0.9, 0.1)


def breaches(precision: str, happy: np.ndarray, reference: np.ndarray) -> list[str]:
    return compare_form("form", precision, answers(happy), answers(reference), None).breaches


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_answers_are_no_breach(precision: str) -> None:
    assert breaches(precision, sure(), sure()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_confidence_may_move_so_far(precision: str) -> None:
    moved, allowed = sure(), PARITY[precision].probability
    moved[3] += 0.9 * allowed
    assert breaches(precision, moved, sure()) == []
    moved[3] += 0.2 * allowed
    (breach,) = breaches(precision, moved, sure())
    assert breach.startswith("a confidence moves by")


def test_one_confidence_may_move_far_in_int8() -> None:
    moved = sure()
    moved[3] += 0.35
    assert breaches("int8", moved, sure()) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_confidences_may_move_less(precision: str) -> None:
    allowed = PARITY[precision].mean_probability
    assert breaches(precision, sure() - 0.9 * allowed, sure()) == []
    (breach,) = breaches(precision, sure() - 1.1 * allowed, sure())
    assert "on average" in breach


@pytest.mark.parametrize(
    ("precision", "pictures", "allowed"),
    [("fp32", 1000, 0), ("fp16", 100, 1), ("fp16", 3000, 3), ("int8", 20, 1), ("int8", 1000, 15)],
)
def test_so_many_labels_may_turn(precision: str, pictures: int, allowed: int) -> None:
    reference = np.full(pictures, 0.5 + 1e-6)  # so even that a turn moves no confidence to speak of

    def turned(flips: int) -> list[str]:
        return breaches(precision, np.where(np.arange(pictures) < flips, 0.5 - 1e-6, reference), reference)

    assert turned(allowed) == []
    assert [breach for breach in turned(allowed + 1) if f"labels turned: {allowed + 1} of {pictures}" in breach]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_is_a_breach(precision: str) -> None:
    broken, targets = sure(), (sure() < 0.5).astype(np.int64)
    broken[5] = np.nan
    form = compare_form("form", precision, answers(broken), answers(sure()), targets)
    assert form.breaches == ["1 of 1,000 pictures without a number for an answer; allowed are 0"]
    assert (form.unanswered, form.flips, form.probability["max"]) == (1, 0, 0)
    assert form.accuracy["form"] == 0.999
    assert compare_form("form", precision, answers(sure()), answers(broken), targets).breaches == form.breaches


def test_a_differing_pixel_is_a_breach() -> None:
    form = compare_form("form", "int8", answers(sure()), answers(sure()), None, (1, 10_000))
    assert form.breaches == ["1 pixel differs from the definition of preprocessing; allowed are 0"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_that_point_elsewhere_are_a_breach(precision: str) -> None:
    reference = replace(answers(sure()), features=np.tile([1.0, 0.0], (1000, 1)))
    turned = replace(reference, features=np.tile([0.95, np.sqrt(1 - 0.95**2)], (1000, 1)))
    (breach,) = compare_form("form", precision, turned, reference, None).breaches
    assert breach.startswith("features have a cosine of 0.950000 on average; expected 0.9")
    same = compare_form("form", precision, reference, reference, None)
    assert (same.breaches, same.features) == ([], {"max": 0, "cosine": 1, "min_cosine": 1})


def test_where_a_form_has_no_features_none_are_compared() -> None:
    reference = replace(answers(sure()), features=np.ones((1000, 2)))
    form = compare_form("form", "int8", answers(sure()), reference, None)
    assert (form.features, form.breaches) == (None, [])


def test_figures_are_golden() -> None:
    reference = Answers(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.75, 0.25], [0.375, 0.625]]))
    form = Answers(np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.7, 0.3], [0.6, 0.4]]))
    figures = compare_form("form", "int8", form, reference, np.array([0, 1]))
    assert figures.logits["max"] == 1
    assert figures.logits["mean"] == pytest.approx(1.5 / 4)
    assert figures.logits["p99"] == pytest.approx(1 - 0.03 * 0.5)
    assert figures.logits["cosine"] == pytest.approx(3 / (np.sqrt(2.25) * np.sqrt(5)))
    assert (figures.flips, figures.flip_margins) == (1, [0.25])
    assert figures.probability == {"max": pytest.approx(0.225), "mean": pytest.approx((0.05 + 0.225) / 2)}
    assert figures.accuracy == {
        "form": 0.5,
        "reference": 1.0,
        "difference": -0.5,
        "half_interval": pytest.approx(1.959964 * 0.5 / np.sqrt(2)),
    }
