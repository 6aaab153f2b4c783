"""`fmengine export`."""

import json
from pathlib import Path

import click
import numpy as np
import onnx

from fmengine.decode import Limits, decode
from fmengine.errors import DataError, ModelError, OutputError, SourceError
from fmengine.model_file import FORMAT_VERSION, PRECISIONS, ModelSpec, Precision
from fmengine.preprocess import Color, Fit, Pixels, preprocess
from fmengine.sources import walk
from fmengine_train.checkpoint import load_model, write_atomic
from fmengine_train.model import AlexNetConfig

from .export import export as export_files
from .graph import describe as describe_model

# Enough that no scale moves any more, few enough to calibrate in seconds.
CALIBRATION_PICTURES = 512


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the model files.  [default: here]",
)
@click.option("--name", help="Name of the family.  [default: the recipe's model]")
@click.option(
    "--precision",
    "precisions",
    default=",".join(PRECISIONS),
    show_default=True,
    help="Which files to write, with commas.",
)
@click.option(
    "--calibrate",
    "calibration",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder of real pictures to calibrate INT8 on, such as the training data; may be repeated.",
)
@click.option(
    "--describe",
    "spec_file",
    type=click.Path(path_type=Path),
    help="Add the metadata in this JSON file to CHECKPOINT, an ONNX model made elsewhere.",
)
def export(
    checkpoint: Path,
    folder: Path,
    name: str | None,
    precisions: str,
    calibration: tuple[Path, ...],
    spec_file: Path | None,
) -> None:
    """Turn CHECKPOINT (the run folder or model.safetensors of `fmengine train`) into ONNX model files.

    Example: fmengine export runs/mine --calibrate faces/train --output models
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    if spec_file is not None:
        click.echo(_describe(checkpoint, spec_file, folder))
        return
    wanted = tuple(part.strip() for part in precisions.split(",") if part.strip())
    if unknown := [part for part in wanted if part not in PRECISIONS]:
        raise click.BadParameter(f"unknown {', '.join(unknown)}; available are {', '.join(PRECISIONS)}")
    if not wanted:
        raise click.BadParameter(f"--precision names none; available are {', '.join(PRECISIONS)}")
    chosen: tuple[Precision, ...] = tuple(p for p in PRECISIONS if p in wanted)
    if "int8" in chosen and not calibration:
        raise click.UsageError(
            "INT8 is calibrated on real pictures: give --calibrate FOLDER, or --precision fp32,fp16"
        )
    model, document = load_model(checkpoint)
    pictures = _pictures(calibration, model.config, document["fit"]) if calibration else None
    name = name or str(document["recipe"]["model"])
    try:
        for path in export_files(model, document, name, folder, chosen, pictures):
            click.echo(path)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from error


def _pictures(folders: tuple[Path, ...], config: AlexNetConfig, fit: Fit) -> Pixels:
    """An even choice of the folders' pictures, preprocessed; files that are no pictures are passed over."""
    color: Color = "gray" if config.channels == 1 else "rgb"
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; --calibrate takes a folder of pictures")
    paths = [path for folder in folders for path in walk(str(folder))]
    step = max(1, len(paths) // CALIBRATION_PICTURES)
    pictures = []
    for path in paths[::step]:
        try:
            pictures.append(preprocess(decode(path, color, Limits()), config.height, config.width, color, fit))
        except SourceError as error:
            click.echo(f"note: {path}: {error.message}", err=True)
    if not pictures:
        raise DataError(f"no picture to calibrate on in {', '.join(map(str, folders))}")
    return np.stack(pictures)


def _describe(model_file: Path, spec_file: Path, folder: Path) -> Path:
    """Add metadata to a foreign ONNX that has the inputs and outputs of a model file."""
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
    write_atomic(target, describe_model(model, spec))
    return target
