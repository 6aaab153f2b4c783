"""Metadata for an ONNX model that was made elsewhere."""

import json
from pathlib import Path

import onnx

from fmengine.errors import ModelError, OutputError
from fmengine.model_file import FORMAT_VERSION, ModelSpec
from fmengine_train.checkpoint import write_atomic

from .graph import describe


def describe_file(model_file: Path, spec_file: Path, folder: Path) -> Path:
    """Write a copy of a foreign ONNX, which has the inputs and outputs of a model file, with metadata.

    Args:
        model_file: the ONNX.
        spec_file: JSON, such as `fmengine info --json` prints.
        folder: for the copy.

    Raises:
        ModelError: for files that cannot be read, or metadata that are not whole.
        OutputError: if the copy exists.
    """
    try:
        model = onnx.load(str(model_file), load_external_data=False)
        values = json.loads(spec_file.read_text(encoding="utf-8"))
    except Exception as error:  # protobuf's and json's own errors have no common base
        raise ModelError(f"cannot read {model_file} and {spec_file}: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{spec_file} is no JSON object; `fmengine info --json` prints one to start from")
    # `fmengine info --json` adds the file's path, and the digest is of the file that is written here.
    values = {key: value for key, value in values.items() if key not in ("path", "file_sha256")}
    spec = ModelSpec.from_json(json.dumps({"version": FORMAT_VERSION} | values))
    target = folder / f"{spec.name}.{spec.precision}.onnx"
    if target.exists():
        raise OutputError(f"{target} exists; choose another --output folder")
    write_atomic(target, describe(model, spec))
    return target
