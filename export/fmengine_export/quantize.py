"""Static INT8 quantisation: ranges from real pictures, weights that cannot saturate.

Activations are uint8 with zero point 0, for every layer but the last ends in a ReLU. Weights are int8, one
scale an output channel, within [-63, 63]: x86 without VNNI adds pairs of uint8 × int8 products in 16 bits
and saturates, and 2 · 255 · 63 = 32,130 stays under 32,767 whatever the pixels are. So a CPU with and one
without VNNI give the same answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fmengine.types import InputBatch

from .fold import Convolution, Linear, Network, Weights

WEIGHT_LEVELS = 63
BIAS_LEVELS = 2**30  # half of what int32 holds; the other half is left to the sum of the products
CALIBRATION_BATCH = 64  # pictures; bounds memory, changes no figure
HISTOGRAM_BINS = 4096


@dataclass(frozen=True)
class QuantizedWeights:
    """Integer weights of one layer.

    Attributes:
        weight: int8, of the layer's shape.
        weight_scale: float32 `[outputs]`.
        bias: int32 `[outputs]`, in units of `input_scale * weight_scale`.
    """

    weight: npt.NDArray[np.int8]
    weight_scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.int32]


def quantize_weights(layer: Convolution | Linear, input_scale: float) -> QuantizedWeights:
    """Round a layer's weights to int8 and its bias to int32, one scale an output channel.

    A channel whose weights are next to nothing gets the scale that its bias needs: the bias is its answer.
    """
    largest = np.abs(layer.weight.reshape(len(layer.weight), -1)).max(axis=1)
    for_bias = np.abs(layer.bias) / (input_scale * BIAS_LEVELS)
    scale = np.maximum(np.maximum(largest, 1e-12) / WEIGHT_LEVELS, for_bias).astype(np.float32)
    shaped = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    weight = np.clip(np.rint(layer.weight / shaped), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    bias = np.rint(layer.bias.astype(np.float64) / (input_scale * scale.astype(np.float64)))
    return QuantizedWeights(weight, scale, bias.astype(np.int32))


def calibrate(network: Network, pictures: InputBatch, mean: int, std: float) -> list[float]:
    """Choose the scale of every activation but the logits: level 255 stands for `255 * scale`.

    Each scale minimises the mean squared error of clipping and rounding over the pictures' activations.

    Args:
        network: the folded layers.
        pictures: preprocessed, uint8 `[N, C, H, W]`.
        mean: of the normalisation, in levels.
        std: of the normalisation, in levels.

    Returns:
        One scale a layer, the last layer left out.
    """
    tops = [0.0] * (len(network.layers) - 1)
    for activations in _batches(network, pictures, mean, std):
        tops = [max(top, float(a.max())) for top, a in zip(tops, activations, strict=True)]
    histograms = [torch.zeros(HISTOGRAM_BINS) for _ in tops]
    for activations in _batches(network, pictures, mean, std):
        for histogram, a, top in zip(histograms, activations, tops, strict=True):
            histogram += torch.histc(a, HISTOGRAM_BINS, 0, max(top, 1e-6))
    return [_best_scale(h.double().numpy(), max(top, 1e-6)) for h, top in zip(histograms, tops, strict=True)]


def _best_scale(histogram: npt.NDArray[np.float64], top: float) -> float:
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) * (top / HISTOGRAM_BINS)
    histogram = histogram.copy()
    histogram[0] = 0  # zeros, most of what a ReLU gives, are exact under every scale
    scales = np.linspace(0.3, 1.0, 141) * top / 255
    errors = [float(histogram @ (np.clip(np.rint(centres / s), 0, 255) * s - centres) ** 2) for s in scales]
    return float(np.float32(scales[int(np.argmin(errors))]))


def _batches(network: Network, pictures: InputBatch, mean: int, std: float) -> Iterator[list[Tensor]]:
    for start in range(0, len(pictures), CALIBRATION_BATCH):
        batch = torch.from_numpy(pictures[start : start + CALIBRATION_BATCH])
        with torch.inference_mode():
            yield activations((batch.float() - mean) / std, network)[:-1]


def activations(x: Tensor, network: Network) -> list[Tensor]:
    """What each layer gives for normalised pictures, after ReLU and pooling; the last are the logits.

    Weights, biases and every layer's results are rounded to the type of `x`; inside a layer, sums are FP32, as
    in PyTorch's own half on a CPU, which is thirty times slower where the CPU has no half arithmetic. A GPU may
    also sum in half: the gate of a new engine sees that.
    """

    def rounded(array: Weights) -> Tensor:
        return torch.from_numpy(array).to(x.dtype).float()

    outputs = []
    for layer in network.convolutions:
        sums = F.conv2d(x.float(), rounded(layer.weight), rounded(layer.bias), layer.stride, layer.padding)
        x = F.relu(sums.to(x.dtype))
        x = F.max_pool2d(x, 3, 2) if layer.pool else x
        outputs.append(x)
    x = x.flatten(1)
    for number, linear in enumerate(network.linears, start=1):
        x = F.linear(x.float(), rounded(linear.weight), rounded(linear.bias)).to(x.dtype)
        x = F.relu(x) if number < len(network.linears) else x
        outputs.append(x)
    return outputs
