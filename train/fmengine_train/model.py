"""Defines AlexNet: five convolutions and three fully connected layers, full size or slim, in one class.

Krizhevsky, Sutskever, Hinton: "ImageNet Classification with Deep Convolutional Neural Networks", 2012,
in the layer sizes of torchvision, which follows Krizhevsky: "One weird trick", 2014.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AlexNetConfig:
    """The architecture of an AlexNet. The defaults are the full AlexNet.

    Attributes:
        outputs: number of labels.
        channels: 1 for gray, 3 for RGB.
        height: rows of the input picture.
        width: columns of the input picture.
        stem: kernel, stride and padding of the first convolution.
        widths: output channels of the five convolutions.
        hidden: outputs of the first two fully connected layers.
        batch_norm: BatchNorm after each convolution; `export` folds it into the convolution.
        dropout: before each of the first two fully connected layers.
        mean: the level subtracted from each channel, a whole number.
        std: the levels that become 1.0. A power of two divides exactly in FP16 too.
    """

    outputs: int = 2
    channels: int = 3
    height: int = 224
    width: int = 224
    stem: tuple[int, int, int] = (11, 4, 2)
    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: tuple[int, int] = (4096, 4096)
    batch_norm: bool = False
    dropout: float = 0.5
    mean: int = 128
    std: float = 64.0


# The slim one takes a third of the full one's rows and columns: the faces at hand mostly have 48 to
# 200 pixels. Widths and size are one choice of accuracy and cost: benchmarks/RESULTS.md.
ARCHITECTURES = {
    "alexnet": AlexNetConfig(),
    "alexnet-slim": AlexNetConfig(
        channels=1,
        height=80,
        width=80,
        stem=(5, 2, 2),
        widths=(24, 96, 192, 128, 128),
        hidden=(256, 256),
        batch_norm=True,
    ),
}


class AlexNet(nn.Module):
    """Levels from 0 to 255 in, logits out: normalisation is part of the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: AlexNetConfig) -> None:
        super().__init__()
        self.config = config
        c1, c2, c3, c4, c5 = config.widths
        kernel, stride, padding = config.stem
        self.register_buffer("mean", torch.full((1, config.channels, 1, 1), float(config.mean)))
        self.register_buffer("std", torch.full((1, config.channels, 1, 1), float(config.std)))
        self.features = nn.Sequential(
            *self._convolution(config.channels, c1, kernel, stride, padding),
            nn.MaxPool2d(3, 2),
            *self._convolution(c1, c2, 5, 1, 2),
            nn.MaxPool2d(3, 2),
            *self._convolution(c2, c3, 3, 1, 1),
            *self._convolution(c3, c4, 3, 1, 1),
            *self._convolution(c4, c5, 3, 1, 1),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(c5 * self._map_size(config.height) * self._map_size(config.width), config.hidden[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden[0], config.hidden[1]),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden[1], config.outputs),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classifier[-1].get_parameter("weight"), std=0.01)  # start undecided

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[N, outputs]` from uint8 or float levels `[N, C, H, W]`."""
        logits: Tensor = self.last(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Compute the last layer's input, `[N, hidden[1]]`, from the same levels."""
        features = self.features((images.to(self.mean.dtype) - self.mean) / self.std)
        embedding: Tensor = self.classifier[:-1](features.flatten(1))
        return embedding

    @property
    def last(self) -> nn.Linear:
        """The layer that computes logits from an embedding."""
        return self.classifier[-1]  # type: ignore[return-value]

    def _convolution(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
        norm = self.config.batch_norm
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not norm)
        return [convolution, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True)]

    def _map_size(self, size: int) -> int:
        """Compute the rows or columns of the last feature map for an input of `size`."""
        kernel, stride, padding = self.config.stem
        size = (size + 2 * padding - kernel) // stride + 1
        for _ in range(3):  # the three max pools, 3×3 with stride 2
            size = (size - 3) // 2 + 1
        if size < 1:
            raise ValueError(
                f"an input of {self.config.height}×{self.config.width} pixels is too small for a stem of "
                f"{kernel}×{kernel} with stride {stride} and three pools; the smallest that fits has "
                f"{14 * stride + kernel - 2 * padding} rows and columns"
            )
        return size
