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
    """Logits and probabilities of every picture, float64 `[N, K]`."""

    logits: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]


def answer_in_fp32(model: AlexNet, inputs: npt.NDArray[np.uint8], temperature: float) -> Answers:
    """Run the network on inputs, uint8 `[N, C, H, W]`."""
    with torch.inference_mode():
        parts = [model(torch.from_numpy(batch)).double() for batch in split_batches(inputs)]
    return _apply_softmax(torch.cat(parts).numpy(), temperature)


def answer_in_fp16(model: AlexNet, inputs: npt.NDArray[np.uint8], temperature: float) -> Answers:
    """Run the exported layers in half precision: every layer's activations are rounded to FP16."""
    network = fold(model)
    with torch.inference_mode():
        parts = [
            activations(_normalise(model, batch).half(), network)[-1].double() for batch in split_batches(inputs)
        ]
    return _apply_softmax(torch.cat(parts).numpy(), temperature)


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


def _apply_softmax(logits: npt.NDArray[np.float64], temperature: float) -> Answers:
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return Answers(logits, exponentials / exponentials.sum(axis=1, keepdims=True))
