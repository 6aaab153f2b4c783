"""`fmengine export`."""

import os
from collections.abc import Iterator
from pathlib import Path

import click

from fmengine.cli.console import print_json, print_path
from fmengine.errors import ModelError, OutputError
from fmengine.jobs.rows import escape_path
from fmengine.model.file import load_model_file, resolve
from fmengine.model.spec import PRECISIONS, Precision
from fmengine.system.files import check_target
from fmengine.trt.library import load_library
from fmengine.trt.profile import BuildOptions

from . import tensorrt

# What torch and onnx are needed for is imported where it happens: an engine is built from a model file on
# machines that have neither.


@click.command()
@click.argument("source", metavar="CHECKPOINT")
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the files.  [default: here]",
)
@click.option("--name", help="Name of the family.  [default: the run folder's]")
@click.option(
    "--precision",
    "precisions",
    default=",".join(PRECISIONS),
    show_default=True,
    help="Which ONNX files to write, with commas.",
)
@click.option(
    "--calibrate",
    "calibration",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder of real pictures to calibrate INT8 on, such as the training data; may be repeated.",
)
@click.option(
    "--to",
    "form",
    type=click.Choice(["onnx", *tensorrt.FORMS]),
    default="onnx",
    show_default=True,
    help="Or an engine, from CHECKPOINT or from a model file (.fp16.onnx, or a shipped model's name).",
)
@click.option("--max-batch", type=click.IntRange(1, 4096), default=64, show_default=True, help="Of an engine.")
@click.option(
    "--compute-capability",
    "capabilities",
    default="",
    metavar="LIST",
    help="GPUs to build for ahead of time, as 8.6,8.9,12.0; tensorrt-rtx only, and needs no GPU.",
)
@click.option(
    "--device", type=click.IntRange(0), default=0, show_default=True, help="GPU that an engine is built on."
)
@click.option(
    "--describe",
    "spec_file",
    type=click.Path(path_type=Path),
    help="Add the metadata in this JSON file to CHECKPOINT, an ONNX model made elsewhere.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="The paths of the files as JSON.")
def export(
    source: str,
    folder: Path,
    name: str | None,
    precisions: str,
    calibration: tuple[Path, ...],
    form: str,
    max_batch: int,
    capabilities: str,
    device: int,
    spec_file: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT (the run folder or model.safetensors of `fmengine train`) into model files.

    Examples:

    fmengine export runs/mine --calibrate faces/train --output models

    fmengine export models/mine.fp16.onnx --to tensorrt
    """
    if capabilities and form != "tensorrt-rtx":
        raise click.UsageError("--compute-capability is for --to tensorrt-rtx; TensorRT builds for its own GPU")
    if name is not None and (not name or name != escape_path(name)):
        raise click.BadParameter(f"{escape_path(name)!r}; expected a name in UTF-8, without control characters")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    written: list[str] = []
    for path in _write_files(
        source, folder, name, precisions, calibration, form, max_batch, capabilities, device, spec_file, overwrite
    ):
        written.append(str(path))
        if not as_json:
            print_path(path)
    if as_json:
        print_json({"files": written})


def _write_files(
    source: str,
    folder: Path,
    name: str | None,
    precisions: str,
    calibration: tuple[Path, ...],
    form: str,
    max_batch: int,
    capabilities: str,
    device: int,
    spec_file: Path | None,
    overwrite: bool,
) -> Iterator[Path]:
    """Write what the options of `export` describe; yields each file once it is there."""
    if spec_file is not None:
        from .describe import describe_file

        yield describe_file(Path(source), spec_file, folder, overwrite)
    elif form == "onnx":
        yield from _export_onnx(Path(source), folder, name, _choose_precisions(precisions), calibration, overwrite)
    else:
        load_library(tensorrt.FORMS[form])  # noticed before a checkpoint is exported
        wanted = {part.strip() for part in capabilities.split(",") if part.strip()}
        options = BuildOptions.for_batch(
            max_batch, compute_capabilities=tuple(sorted(wanted, key=lambda c: (len(c), c)))
        )
        if _is_checkpoint(source):
            name = name or _family(Path(source))
            tensorrt.make_engine_target(form, name, options, folder, device, overwrite)
            for path in _export_onnx(Path(source), folder, name, ("fp16",), (), overwrite):
                source = str(path)
                yield path
        model = load_model_file(resolve(source, ("fp16",)))
        target = tensorrt.make_engine_target(form, model.spec.name, options, folder, device, overwrite)
        tensorrt.export_engine(form, model, options, target, device)
        yield target


def _export_onnx(
    checkpoint: Path,
    folder: Path,
    name: str | None,
    precisions: tuple[Precision, ...],
    calibration: tuple[Path, ...],
    overwrite: bool,
) -> Iterator[Path]:
    from fmengine_train.checkpoint import load_model

    from .calibration import read_pictures
    from .export import export as export_files
    from .export import path_of

    if "int8" in precisions and not calibration:
        raise click.UsageError(
            "INT8 is calibrated on real pictures: give --calibrate FOLDER, or --precision fp32,fp16"
        )
    name = name or _family(checkpoint)
    for precision in precisions:
        check_target(path_of(folder, name, precision), [".onnx"], overwrite=overwrite)
    model, document = load_model(checkpoint)
    pictures = read_pictures(calibration, model.config, document["fit"]) if calibration else None
    try:
        yield from export_files(model, document, name, folder, precisions, pictures)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from error


def _family(checkpoint: Path) -> str:
    """Return the family's name where none is given: the run folder's, or the recipe's model if that is no name."""
    from fmengine_train.checkpoint import find_model, read_document

    model = find_model(checkpoint)
    document = read_document(model)
    folder = Path(os.path.abspath(model)).parent.name
    if folder and not folder.startswith(".") and folder == escape_path(folder):
        return folder
    try:
        return str(document["recipe"]["model"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"{checkpoint} does not say what it holds: give it a --name") from error


def _is_checkpoint(source: str) -> bool:
    path = Path(source)
    return path.suffix == ".safetensors" or path.is_dir()


def _choose_precisions(precisions: str) -> tuple[Precision, ...]:
    wanted = {part.strip() for part in precisions.split(",") if part.strip()}
    if unknown := sorted(wanted - set(PRECISIONS)):
        raise click.BadParameter(f"unknown {', '.join(unknown)}; available are {', '.join(PRECISIONS)}")
    if not wanted:
        raise click.BadParameter(f"--precision names none; available are {', '.join(PRECISIONS)}")
    return tuple(precision for precision in PRECISIONS if precision in wanted)
