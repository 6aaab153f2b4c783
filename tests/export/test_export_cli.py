"""`fmengine export`: what it asks for, what it refuses, and what it never leaves behind."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from fmengine.cli import cli
from fmengine.engine import Engine
from fmengine.errors import DataError, ModelError, OutputError
from fmengine.model.file import load_model_file
from fmengine.model.spec import METADATA_KEY, ModelSpec
from fmengine_export import export as module
from fmengine_export.export import CheckError
from fmengine_export.fold import Network
from fmengine_train.checkpoint import KEY, load_model, read_tensors, save_model

FOREIGN = {
    "name": "foreign",
    "labels": ["happy", "sad"],
    "height": 8,
    "width": 8,
    "color": "gray",
    "fit": "crop",
    "precision": "fp32",
    "mean": [128],
    "std": [64.0],
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", *(str(argument) for argument in arguments)])


def foreign_model(path: Path) -> Path:
    """Somebody else's network: the darker a picture, the sadder."""
    weight = np.stack([np.full(64, 1 / 64, np.float32), np.zeros(64, np.float32)])
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["levels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("logits", "probabilities")],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([-128, 0], np.float32), "bias"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def spec_file(folder: Path, document: Any) -> Path:
    path = folder / "spec.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


# Files


def test_all_three_files_are_written_and_named(tiny_run: Path, drawn_faces: Path, tmp_path: Path) -> None:
    result = run(tiny_run, "--calibrate", drawn_faces / "train", "--output", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.output
    names = [f"{tiny_run.name}.{precision}.onnx" for precision in ("fp32", "fp16", "int8")]
    assert result.stdout.splitlines() == [str(tmp_path / "new" / "folder" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(names)


def test_the_files_as_json(tiny_run: Path, tmp_path: Path) -> None:
    result = run(tiny_run, "--precision", "fp32,fp16", "--output", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    names = [f"{tiny_run.name}.{precision}.onnx" for precision in ("fp32", "fp16")]
    assert json.loads(result.stdout) == {"files": [str(tmp_path / name) for name in names]}


def test_precisions_and_name_are_chosen(tiny_run: Path, tmp_path: Path) -> None:
    result = run(
        tiny_run / "model.safetensors", "--precision", " fp16,fp32", "--name", "mine", "--output", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"mine.fp32.onnx", "mine.fp16.onnx"}
    assert load_model_file(tmp_path / "mine.fp16.onnx").spec.name == "mine"


def test_files_that_are_no_pictures_are_passed_over_with_a_note(
    tiny_run: Path, drawn_faces: Path, tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "notes.txt").write_text("no picture")
    for path in sorted((drawn_faces / "val" / "happy").iterdir())[:4]:
        (faces / path.name).write_bytes(path.read_bytes())
    result = run(tiny_run, "--calibrate", faces, "--precision", "int8", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"note: {faces / 'notes.txt'}" in result.stderr


def test_whatever_a_picture_raises_is_its_note(tiny_run: Path, drawn_faces: Path, tmp_path: Path) -> None:
    """Padded to a square, a strip has more pixels than Pillow makes."""
    model, document = load_model(tiny_run)
    save_model(tmp_path / "model.safetensors", model, document | {"fit": "pad"})
    faces = tmp_path / "faces"
    faces.mkdir()
    Image.linear_gradient("L").resize((1, 60_000)).save(faces / "strip\udcff.png")
    for path in sorted((drawn_faces / "val" / "happy").iterdir())[:4]:
        (faces / path.name).write_bytes(path.read_bytes())
    result = run(tmp_path, "--calibrate", faces, "--precision", "int8", "--output", tmp_path)
    assert result.exit_code == 0, result.exception
    assert f"note: {faces}/strip%FF.png: " in result.stderr


def test_names_need_not_be_utf8(tiny_run: Path, tmp_path: Path) -> None:
    folders = [Path(f"{tmp_path}/{name}") for name in ("run\udcff", "models\udcff")]
    folders[0].symlink_to(tiny_run)
    result = run(folders[0], "--precision", "fp32", "--output", folders[1])
    assert result.exit_code == 0, result.exception
    assert result.stdout_bytes == os.fsencode(folders[1]) + b"/alexnet-slim.fp32.onnx\n"
    unfit = run(tiny_run, "--precision", "fp32", "--name", "\udcff", "--output", tmp_path)
    assert unfit.exit_code == 2
    assert "'%FF'; expected a name in UTF-8" in unfit.stderr


def test_scores_that_are_no_numbers_are_null_in_the_file(tiny_run: Path, tmp_path: Path) -> None:
    """As an older checkpoint may have them: JSON has no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"the metadata hold {name}, which is no JSON")

    tensors, document = read_tensors(tiny_run / "model.safetensors")
    document["validation"] = {"faces": {"count": 2, "accuracy": 0.5, "balanced_accuracy": float("nan")}}
    save_file(tensors, tmp_path / "model.safetensors", metadata={KEY: json.dumps(document)})
    result = run(tmp_path, "--precision", "fp32", "--output", tmp_path)
    assert result.exit_code == 0, result.exception
    (entry,) = onnx.load(tmp_path / f"{tmp_path.name}.fp32.onnx").metadata_props
    assert entry.key == METADATA_KEY
    accuracy = json.loads(entry.value, parse_constant=refuse)["accuracy"]
    assert accuracy == {"faces": {"count": 2, "accuracy": 0.5, "balanced_accuracy": None}}


# Files that exist


def test_files_that_exist_are_refused_before_anything_is_read(
    tiny_run: Path, drawn_faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.fp16.onnx").write_bytes(b"old")
    for checkpoint in (tiny_run, tmp_path / "none.safetensors"):
        options = ["--calibrate", tmp_path / "none", "--name", "mine", "--output", tmp_path]
        result = run(checkpoint, *options)
        assert isinstance(result.exception, OutputError)
        assert "mine.fp16.onnx exists; replace it with --overwrite" in str(result.exception)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    assert run(tiny_run, "--precision", "fp32", "--name", "mine", "--output", tmp_path).exit_code == 0


def test_the_family_s_own_name_is_looked_for_too(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / f"{tiny_run.name}.fp32.onnx").write_bytes(b"old")
    options = ["--precision", "fp32", "--output", tmp_path]
    assert isinstance(run(tiny_run, *options).exception, OutputError)
    assert run(tiny_run, *options, "--overwrite").exit_code == 0
    assert load_model_file(tmp_path / f"{tiny_run.name}.fp32.onnx").spec.name == tiny_run.name


def test_a_name_that_is_taken_by_a_folder_is_never_replaced(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.fp32.onnx").mkdir()
    result = run(tiny_run, "--precision", "fp32", "--name", "mine", "--output", tmp_path, "--overwrite")
    assert isinstance(result.exception, OutputError)
    assert "it is not a regular file" in str(result.exception)


# Usage


def test_int8_without_calibration_is_a_usage_error(tiny_run: Path, tmp_path: Path) -> None:
    result = run(tiny_run, "--output", tmp_path)
    assert result.exit_code == 2
    assert "INT8 is calibrated on real pictures: give --calibrate FOLDER" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused_with_the_known_ones(tiny_run: Path, tmp_path: Path) -> None:
    result = run(tiny_run, "--precision", "fp32,fp8", "--output", tmp_path)
    assert result.exit_code == 2
    assert "unknown fp8; available are fp32, fp16, int8" in result.stderr


@pytest.mark.parametrize("precision", ["", " , "])
def test_no_precision_at_all_is_a_usage_error(tiny_run: Path, tmp_path: Path, precision: str) -> None:
    assert run(tiny_run, "--precision", precision, "--output", tmp_path).exit_code == 2


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    result = run(tmp_path / "none.safetensors", "--precision", "fp32", "--output", tmp_path)
    assert isinstance(result.exception, ModelError)
    assert "cannot read the checkpoint" in str(result.exception)
    assert "none.safetensors" in str(result.exception)


def test_the_file_to_resume_from_is_not_exported(tiny_run: Path, tmp_path: Path) -> None:
    result = run(tiny_run / "checkpoint.safetensors", "--precision", "fp32", "--output", tmp_path)
    assert isinstance(result.exception, ModelError)
    assert "expected the model.safetensors" in str(result.exception)


def test_calibration_needs_a_folder_with_pictures(tiny_run: Path, tmp_path: Path) -> None:
    missing = run(tiny_run, "--calibrate", tmp_path / "none", "--output", tmp_path)
    assert isinstance(missing.exception, DataError)
    assert "none is no folder" in str(missing.exception)
    (tmp_path / "empty").mkdir()
    empty = run(tiny_run, "--calibrate", tmp_path / "empty", "--output", tmp_path)
    assert isinstance(empty.exception, DataError)
    assert "no picture to calibrate on" in str(empty.exception)


def test_a_folder_that_cannot_be_made_is_told(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(tiny_run, "--precision", "fp32", "--output", tmp_path / "file" / "models")
    assert isinstance(result.exception, OutputError)
    assert "cannot make the folder" in str(result.exception)


# The check


def with_wrong_bias(network: Network) -> Network:
    last = network.linears[-1]
    return replace(network, linears=[*network.linears[:-1], replace(last, bias=last.bias + 1)])


def test_a_file_that_fails_its_check_is_not_left_behind(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.build_float
    monkeypatch.setattr(module, "build_float", lambda network, spec: right(with_wrong_bias(network), spec))
    result = run(tiny_run, "--precision", "fp32", "--output", tmp_path)
    assert isinstance(result.exception, CheckError)
    assert "the fp32 file's logits are off by" in str(result.exception)
    assert result.exception.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failing_check_keeps_the_file_that_was_there(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tiny_run, "--precision", "fp32", "--output", tmp_path).exit_code == 0
    (path,) = tmp_path.iterdir()
    before, right = path.read_bytes(), module.build_float
    monkeypatch.setattr(module, "build_float", lambda network, spec: right(with_wrong_bias(network), spec))
    assert run(tiny_run, "--precision", "fp32", "--output", tmp_path, "--overwrite").exit_code == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_logits_that_are_no_numbers_fail_the_check(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(network: Network, spec: ModelSpec) -> bytes:
        last = network.linears[-1]
        broken = replace(last, bias=np.full_like(last.bias, np.nan))
        return right(replace(network, linears=[*network.linears[:-1], broken]), spec)

    right = module.build_float
    monkeypatch.setattr(module, "build_float", poisoned)
    result = run(tiny_run, "--precision", "fp16", "--output", tmp_path)
    assert isinstance(result.exception, CheckError)
    assert list(tmp_path.iterdir()) == []


# --describe


def test_describe_makes_a_foreign_model_loadable(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match="--describe"):
        load_model_file(model)
    result = run(model, "--describe", spec_file(tmp_path, FOREIGN), "--output", tmp_path)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path == tmp_path / "foreign.fp32.onnx"
    with Engine.load(path, "onnxruntime") as engine:
        assert engine.spec.labels == ("happy", "sad")
        assert engine.predict(np.full((8, 8), 255, np.uint8)).label == "happy"
        assert engine.predict(np.zeros((8, 8), np.uint8)).label == "sad"


def test_describe_takes_what_info_prints_of_an_engine_file(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "foreign.onnx")
    printed = FOREIGN | {"path": "x.engine", "engine": {"backend": "tensorrt"}}
    assert run(model, "--describe", spec_file(tmp_path, printed), "--output", tmp_path).exit_code == 0


def test_describe_does_not_overwrite(tmp_path: Path) -> None:
    model, spec = foreign_model(tmp_path / "foreign.onnx"), spec_file(tmp_path, FOREIGN)
    assert run(model, "--describe", spec, "--output", tmp_path).exit_code == 0
    again = run(model, "--describe", spec, "--output", tmp_path)
    assert isinstance(again.exception, OutputError)
    assert "exists; replace it with --overwrite" in str(again.exception)
    model.unlink()  # it is not even read
    assert isinstance(run(model, "--describe", spec, "--output", tmp_path).exception, OutputError)
    foreign_model(model)
    assert run(model, "--describe", spec, "--output", tmp_path, "--overwrite").exit_code == 0


def test_describe_notes_labels_that_mean_something_else_in_results(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "foreign.onnx")
    spec = spec_file(tmp_path, FOREIGN | {"labels": ["reason", "unsure"]})
    result = run(model, "--describe", spec, "--output", tmp_path)
    assert result.exit_code == 0, result.exception
    assert "note: class reason has the name of a column of CSV results: write jsonl or parquet" in result.stderr
    assert "note: class unsure has the name of what `--unsure-below` answers" in result.stderr


@pytest.mark.parametrize("label", ["", " ", "sad\n", "\x1b[2J", "\udcff"])
def test_describe_refuses_labels_that_could_not_be_shown(tmp_path: Path, label: str) -> None:
    model = foreign_model(tmp_path / "foreign.onnx")
    spec = spec_file(tmp_path, FOREIGN | {"labels": ["happy", label]})
    result = run(model, "--describe", spec, "--output", tmp_path)
    assert isinstance(result.exception, DataError)
    assert "cannot be a label" in str(result.exception)


def test_describe_refuses_what_is_no_json(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "foreign.onnx")
    spec = spec_file(tmp_path, FOREIGN | {"accuracy": {"faces": float("nan")}})
    result = run(model, "--describe", spec, "--output", tmp_path)
    assert isinstance(result.exception, ModelError)
    assert "it holds NaN, which is no JSON" in str(result.exception)


def test_describe_replaces_what_a_file_said_of_itself(tiny_models: Path, tmp_path: Path) -> None:
    old = load_model_file(tiny_models / "tiny.fp32.onnx").spec
    document = json.loads(replace(old, labels=("glad", "blue")).to_json())
    result = run(tiny_models / "tiny.fp32.onnx", "--describe", spec_file(tmp_path, document), "--output", tmp_path)
    assert result.exit_code == 0, result.output
    spec = load_model_file(tmp_path / "tiny.fp32.onnx").spec
    assert (spec.labels, spec.temperature) == (("glad", "blue"), old.temperature)


def test_what_info_prints_is_something_to_start_from(tiny_models: Path, tmp_path: Path) -> None:
    model = str(tiny_models / "tiny.fp32.onnx")
    printed = CliRunner().invoke(cli, ["info", "--json", model])
    document = json.loads(printed.stdout) | {"labels": ["glad", "blue"]}
    result = run(model, "--describe", spec_file(tmp_path, document), "--output", tmp_path)
    assert result.exit_code == 0, result.exception
    assert load_model_file(tmp_path / "tiny.fp32.onnx").spec.labels == ("glad", "blue")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1, 2], "is no JSON object"),
        ({"name": "foreign"}, "unknown or missing fields: .*labels"),
        (FOREIGN | {"mood": 1}, "unknown or missing fields: mood"),
        (FOREIGN | {"labels": ["happy"]}, "two or more different names"),
    ],
)
def test_describe_refuses_a_wrong_document(tmp_path: Path, document: object, message: str) -> None:
    model = foreign_model(tmp_path / "foreign.onnx")
    result = run(model, "--describe", spec_file(tmp_path, document), "--output", tmp_path / "models")
    assert isinstance(result.exception, ModelError)
    with pytest.raises(ModelError, match=message):
        raise result.exception
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("missing", ["model", "spec"])
def test_describe_names_a_file_that_is_missing(tmp_path: Path, missing: str) -> None:
    model, spec = foreign_model(tmp_path / "foreign.onnx"), spec_file(tmp_path, FOREIGN)
    (model if missing == "model" else spec).unlink()
    result = run(model, "--describe", spec, "--output", tmp_path)
    assert isinstance(result.exception, ModelError)
    assert "cannot read" in str(result.exception)


def test_describe_refuses_what_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    result = run(tmp_path / "text.onnx", "--describe", spec_file(tmp_path, FOREIGN), "--output", tmp_path)
    assert isinstance(result.exception, ModelError)
