"""The tiny network's three model files."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fmengine_export.cli import export


@pytest.fixture(scope="session")
def tiny_models(tiny_run: Path, drawn_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.fp32.onnx`, `tiny.fp16.onnx` and `tiny.int8.onnx`."""
    folder = tmp_path_factory.mktemp("tiny-models")
    options = ["--calibrate", str(drawn_faces / "train"), "--name", "tiny", "--output", str(folder)]
    result = CliRunner().invoke(export, [str(tiny_run), *options])
    assert result.exit_code == 0, result.output
    return folder
