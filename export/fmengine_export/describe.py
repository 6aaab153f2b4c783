"""Add metadata to an ONNX model that was made elsewhere."""

import json
from pathlib import Path

import onnx

from fmengine.cli.console import warn
from fmengine.errors import ModelError
from fmengine.model.spec import FORMAT_VERSION, ModelSpec
from fmengine.system.files import check_target, write_file
from fmengine_train.checks import check_labels, list_label_notes

from .export import path_of
from .graph import describe


def describe_file(model_file: Path, spec_file: Path, folder: Path, overwrite: bool) -> Path:
    """Write a copy of a foreign ONNX, which has the inputs and outputs of a model file, with metadata.

    Args:
        model_file: the ONNX.
        spec_file: JSON, such as `fmengine info --json` prints.
        folder: for the copy.
        overwrite: whether a copy that exists may be replaced.

    Raises:
        ModelError: for files that cannot be read, or metadata that are not whole.
        DataError: for labels that could not be shown.
        OutputError: if the copy exists, or cannot be written.
    """
    spec = _read_spec(spec_file)
    check_labels(spec.labels)
    for note in list_label_notes(spec.labels):
        warn(f"note: {note}")
    target = path_of(folder, spec.name, spec.precision)
    check_target(target, [target.suffix], overwrite=overwrite)
    try:
        model = onnx.load(str(model_file), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base
        raise ModelError(f"cannot read {model_file}: {error}") from error
    write_file(target, describe(model, spec))
    return target


def _read_spec(path: Path) -> ModelSpec:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no JSON object; `fmengine info --json` prints one to start from")
    # `fmengine info --json` adds the file's path and engine, and the digest is of the file that is written here.
    values = {key: value for key, value in values.items() if key not in ("path", "file_sha256", "engine")}
    return ModelSpec.from_json(json.dumps({"version": FORMAT_VERSION} | values))


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no JSON")
