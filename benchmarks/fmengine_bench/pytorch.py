"""Answers of the network in PyTorch, in FP32 and in half precision, and how large its activations become."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fmengine.types import InputBatch
from fmengine_export.fold import fold
from fmengine_export.quantize import activations
from fmengine_train.model import AlexNet

BATCH = 64


@dataclass(frozen=True)
class Answers:
    """Logits and probabilities of every picture, float64 `[N, K]`, and features `[N, F]` where there are any."""

    logits: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    features: npt.NDArray[np.float64] | None = None


def answer_in_fp32(model: AlexNet, inputs: npt.NDArray[np.uint8], temperature: float) -> Answers:
    """Run the network on inputs, uint8 `[N, C, H, W]`."""
    with torch.inference_mode():
        parts = [model.embed(torch.from_numpy(batch)) for batch in split_batches(inputs)]
        logits = torch.cat([model.last(part) for part in parts])
    return _make_answers(logits, temperature, torch.cat(parts))


def answer_in_fp16(model: AlexNet, inputs: npt.NDArray[np.uint8], temperature: float) -> Answers:
    """Run the exported layers in half precision: every layer's activations are rounded to FP16."""
    network = fold(model)
    with torch.inference_mode():
        parts = [activations(_normalise(model, batch).half(), network)[-2:] for batch in split_batches(inputs)]
    features, logits = map(torch.cat, zip(*parts, strict=True))
    return _make_answers(logits, temperature, features)


def measure_activations(model: AlexNet, inputs: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Measure the largest absolute value that each layer gives, by its name, before rounding could hide it."""
    network = fold(model)
    largest = [0.0] * len(network.layers)
    with torch.inference_mode():
        for batch in split_batches(inputs):
            outputs = activations(_normalise(model, batch), network)
            largest = [max(old, float(output.abs().max())) for old, output in zip(largest, outputs, strict=True)]
    convolutions = len(network.convolutions)
    return {f"{'conv' if i < convolutions else 'fc'}{i + 1}": value for i, value in enumerate(largest)}


def split_batches(inputs: npt.NDArray[np.uint8]) -> Iterator[InputBatch]:
    """Split inputs into batches of at most `BATCH`."""
    return (InputBatch(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH))


def _normalise(model: AlexNet, batch: InputBatch) -> torch.Tensor:
    return (torch.from_numpy(batch).float() - model.mean) / model.std


def _make_answers(logits: torch.Tensor, temperature: float, features: torch.Tensor) -> Answers:
    """Make answers of logits and features in any precision."""
    given = logits.double().numpy()
    scaled = given / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return Answers(given, exponentials / exponentials.sum(axis=1, keepdims=True), features.double().numpy())
