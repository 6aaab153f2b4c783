"""Writes the three files of one family, and checks each before it is left behind."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.check.compare import (
    EXPORTED_LOGITS,
    PARITY_FEATURES,
    PROBABILITY_SUM,
    compare_features,
    compare_logits,
)
from fmengine.errors import FmengineError, ModelError
from fmengine.model.file import load_model_file
from fmengine.model.spec import ModelSpec, Precision
from fmengine.options import BackendOptions
from fmengine.system.files import get_temporary_path, open_atomic
from fmengine.types import InputBatch
from fmengine_train.checkpoint import weights_sha256
from fmengine_train.model import AlexNet

from .fold import fold
from .graph import build_float, build_int8
from .quantize import calibrate


def path_of(folder: Path, name: str, precision: Precision) -> Path:
    """Return where a file of a family is written."""
    return folder / f"{name}.{precision}.onnx"


class CheckError(FmengineError):
    """An exported file does not answer as the network that it was made from."""

    exit_code = 1


def make_spec(model: AlexNet, document: dict[str, Any], name: str, precision: Precision) -> ModelSpec:
    """Make the metadata of a model file from the checkpoint's document."""
    config = model.config
    return ModelSpec(
        name=name,
        labels=tuple(document["labels"]),
        height=config.height,
        width=config.width,
        color="gray" if config.channels == 1 else "rgb",
        fit=document["fit"],
        precision=precision,
        mean=(config.mean,) * config.channels,
        std=(config.std,) * config.channels,
        temperature=document["temperature"],
        unsure_below=document["unsure_below"],
        training_data=document["training_data"],
        accuracy={
            source: {key: _as_json(scores[key]) for key in ("count", "accuracy", "balanced_accuracy")}
            for source, scores in document["validation"].items()
        },
        weights_sha256=weights_sha256(model),
        features=config.hidden[1],
    )


def _as_json(value: float) -> float | None:
    """Return a score for JSON, which has no number for NaN."""
    return value if math.isfinite(value) else None


def export(
    model: AlexNet,
    document: dict[str, Any],
    name: str,
    folder: Path,
    precisions: tuple[Precision, ...],
    calibration: InputBatch | None,
) -> Iterator[Path]:
    """Write `name.precision.onnx` for each precision; yields each path once its file is checked.

    Args:
        model: in evaluation mode, from `fmengine_train.checkpoint.load_model`.
        document: of the checkpoint.
        name: the family's.
        folder: to write into.
        precisions: to write.
        calibration: real pictures, preprocessed, uint8 `[N, C, H, W]`; INT8 needs them.

    Raises:
        CheckError: if a file does not answer as PyTorch does; it is not left behind.
    """
    network = fold(model)
    # A seeded picture set for the check, where no real pictures are given.
    shape = (16, model.config.channels, model.config.height, model.config.width)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pictures = InputBatch(noise if calibration is None else calibration[:64])
    with torch.inference_mode():
        features = model.embed(torch.from_numpy(pictures))
        expected = model.last(features).numpy()
    for precision in precisions:
        spec = make_spec(model, document, name, precision)
        if precision == "int8":
            if calibration is None:
                raise ModelError("INT8 needs real pictures to calibrate on: give --calibrate FOLDER")
            scales = calibrate(network, calibration, spec.mean[0], spec.std[0])
            data = build_int8(network, spec, scales)
        else:
            data = build_float(network, spec)
        path = path_of(folder, name, precision)
        with open_atomic(path) as file:
            file.write(data)
            file.flush()
            _check(get_temporary_path(path), pictures, expected, features.numpy(), precision)
        yield path


def _check(
    path: Path,
    pictures: InputBatch,
    expected: "np.ndarray[Any, Any]",
    features: "np.ndarray[Any, Any]",
    precision: Precision,
) -> None:
    """Read the file back, run it, and compare its logits and features with PyTorch's."""
    file = load_model_file(path)
    backend = OnnxRuntimeBackend.open(file, BackendOptions())
    outputs = backend.run(pictures)
    backend.close()
    off = compare_logits(outputs.logits, expected).max / max(1e-6, float(np.abs(expected).max()))
    limit = EXPORTED_LOGITS[precision]
    if not off <= limit:
        raise CheckError(
            f"the {precision} file's logits are off by {off:.3g} of the largest one; allowed is {limit}"
        )
    if not np.allclose(outputs.probabilities.sum(axis=1), 1, atol=PROBABILITY_SUM):
        raise CheckError(f"the {precision} file's probabilities do not add up to 1")
    assert outputs.features is not None
    alike, least = compare_features(outputs.features, features).cosine, PARITY_FEATURES[precision]
    if not alike >= least:
        raise CheckError(f"the {precision} file's features have a cosine of {alike:.4f}; expected {least} or more")
