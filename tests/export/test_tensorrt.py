"""`fmengine export --to tensorrt-rtx` as a user calls it; TensorRT-RTX builds without a GPU."""

import errno
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fmengine.errors import FmengineError, ModelError, OutputError, UnavailableError
from fmengine.model.file import load_model_file, resolve
from fmengine.trt.profile import BuildError
from fmengine_export.cli import export

pytestmark = pytest.mark.timeout(120)
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; tests/requirements.txt names it")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_a_shipped_model_becomes_an_engine_that_only_its_owner_may_touch(tmp_path: Path) -> None:
    result = run("alexnet-slim", "--to", "tensorrt-rtx", "--compute-capability", "8.6, 12.0", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    assert result.stdout == f"{path}\n"
    assert path.name == "alexnet-slim.tensorrt-rtx.8.6+12.0.engine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file = load_model_file(path)
    assert (file.data, file.engine.backend) == (load_model_file(resolve(None, ("fp16",))).data, "tensorrt-rtx")
    assert (file.engine.capabilities, file.engine.max_batch, file.engine.distrust) == (["8.6", "12.0"], 64, "")
    assert len(file.engine.data) > 1_000_000


def test_a_checkpoint_becomes_a_model_file_and_an_engine(tiny_run: Path, tmp_path: Path) -> None:
    result = run(tiny_run, "--to", "tensorrt-rtx", "--name", "mine", "--max-batch", "4", "--output", tmp_path)
    assert result.exit_code == 0, result.exception
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.fp16.onnx", "mine.tensorrt-rtx.any.engine"]


def test_an_engine_that_exists_is_refused_before_anything_is_built(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "alexnet-slim.tensorrt-rtx.any.engine").write_bytes(b"old")
    for arguments in (["alexnet-slim"], [tiny_run, "--name", "alexnet-slim"]):
        result = run(*arguments, "--to", "tensorrt-rtx", "--output", tmp_path)
        assert isinstance(result.exception, OutputError)
        assert "exists; replace it with --overwrite" in str(result.exception)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    assert run("alexnet-slim", "--to", "tensorrt-rtx", "--output", tmp_path, "--overwrite").exit_code == 0
    assert len(load_model_file(tmp_path / "alexnet-slim.tensorrt-rtx.any.engine").engine.data) > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["alexnet-slim", "--to", "tensorrt-rtx", "--compute-capability", "9.0"], BuildError, "it does for 7.5"),
        (
            [resolve(None, ("int8",)), "--to", "tensorrt-rtx"],
            ModelError,
            "is int8; TensorRT is given the FP16 file",
        ),
        (["nothing", "--to", "tensorrt-rtx"], ModelError, "no model 'nothing' in fp16; shipped are"),
    ],
)
def test_what_cannot_be_built_is_told(
    arguments: list[object], error: type[FmengineError], message: str, tmp_path: Path
) -> None:
    result = run(*arguments, "--output", tmp_path)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_tensorrt_itself_needs_its_library(tmp_path: Path) -> None:
    result = run("alexnet-slim", "--to", "tensorrt", "--output", tmp_path)
    if result.exit_code == 0:
        pytest.skip("TensorRT is installed here")
    assert isinstance(result.exception, UnavailableError)


def test_an_architecture_is_not_for_tensorrt_itself(tmp_path: Path) -> None:
    result = run("alexnet-slim", "--to", "tensorrt", "--compute-capability", "8.6", "--output", tmp_path)
    assert result.exit_code == 2
    assert "--compute-capability is for --to tensorrt-rtx" in result.output


def test_a_full_disk_leaves_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = run("alexnet-slim", "--to", "tensorrt-rtx", "--output", tmp_path)
    assert isinstance(result.exception, OutputError)
    assert "No space left on device" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_model_that_nobody_here_made_builds(tmp_path: Path, tiny_run: Path) -> None:
    """Other widths, another size: nothing in the builder knows the shipped model."""
    assert run(tiny_run, "--precision", "fp16", "--name", "other", "--output", tmp_path).exit_code == 0
    model = load_model_file(tmp_path / "other.fp16.onnx")
    assert model.spec.input_shape(1) != load_model_file(resolve(None, ("fp16",))).spec.input_shape(1)
    assert run(tmp_path / "other.fp16.onnx", "--to", "tensorrt-rtx", "--output", tmp_path).exit_code == 0
