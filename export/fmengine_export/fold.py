"""From a trained AlexNet to the plain list of layers that an exported graph is made of."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fmengine_train.model import AlexNet

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Convolution:
    """Convolution, ReLU and, where `pool`, a 3×3 max pool with stride 2.

    Attributes:
        weight: float32 `[outputs, inputs, rows, columns]`, BatchNorm folded in.
        bias: float32 `[outputs]`.
    """

    weight: Weights
    bias: Weights
    stride: int
    padding: int
    pool: bool = False


@dataclass(frozen=True)
class Linear:
    """Fully connected layer; ReLU follows all but the last.

    Attributes:
        weight: float32 `[outputs, inputs]`.
        bias: float32 `[outputs]`.
    """

    weight: Weights
    bias: Weights


@dataclass(frozen=True)
class Network:
    """The eight layers, without anything that only training uses."""

    convolutions: list[Convolution]
    linears: list[Linear]

    @property
    def layers(self) -> list[Convolution | Linear]:
        return [*self.convolutions, *self.linears]


def fold(model: AlexNet) -> Network:
    """Fold BatchNorm into the convolutions and drop dropout; the answers stay the same."""
    convolutions: list[Convolution] = []
    for layer in model.features:
        match layer:
            case nn.Conv2d():
                weight = _float32(layer.weight)
                bias = np.zeros(len(weight), np.float32) if layer.bias is None else _float32(layer.bias)
                convolutions.append(Convolution(weight, bias, int(layer.stride[0]), int(layer.padding[0])))
            case nn.BatchNorm2d():
                convolutions[-1] = _fold_norm(convolutions[-1], layer)
            case nn.MaxPool2d():
                convolutions[-1] = replace(convolutions[-1], pool=True)
    linears = [Linear(_float32(m.weight), _float32(m.bias)) for m in model.classifier if isinstance(m, nn.Linear)]
    return Network(convolutions, linears)


def _fold_norm(layer: Convolution, norm: nn.BatchNorm2d) -> Convolution:
    """`gamma (w x + b - mean) / sqrt(variance + eps) + beta` as one weight and one bias, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gamma, beta, mean, variance = (
        _float32(tensor).astype(np.float64)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    factor = gamma / np.sqrt(variance + norm.eps)
    weight = layer.weight * factor[:, None, None, None]
    bias = (layer.bias - mean) * factor + beta
    return replace(layer, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _float32(tensor: Tensor) -> Weights:
    return tensor.detach().cpu().float().numpy()
