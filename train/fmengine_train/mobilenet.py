"""Defines the teacher, a MobileNet that begins with the weights of a face recogniser. It never ships.

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017;
padded as TensorFlow pads, so that weights from there mean the same. `faceres.py` brings such weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channels and stride of the blocks: a depthwise convolution that strides, and one of 1×1 that mixes channels.
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


@dataclass(frozen=True)
class MobileNetConfig:
    """The architecture of a MobileNet.

    Attributes:
        outputs: number of labels.
        channels: 1 for gray, 3 for RGB.
        height: rows of the input picture, 32 or more.
        width: columns of the input picture, 32 or more.
        dropout: before the last layer.
        mean: the level subtracted from each channel.
        std: the levels that become 1.0; the face recogniser saw whole levels.
    """

    outputs: int = 2
    channels: int = 1
    height: int = 112
    width: int = 112
    dropout: float = 0.2
    mean: int = 115
    std: float = 1.0


# 3.2 M parameters; 142 million multiplications a picture.
MOBILENETS = {"mobilenet-112": MobileNetConfig()}


class MobileNet(nn.Module):
    """Levels from 0 to 255 in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: MobileNetConfig) -> None:
        super().__init__()
        if min(config.height, config.width) < 32:
            raise ValueError(f"an input of {config.height}×{config.width} pixels; expected 32 or more a side")
        self.config = config
        self.register_buffer("mean", torch.full((1, config.channels, 1, 1), float(config.mean)))
        self.register_buffer("std", torch.full((1, config.channels, 1, 1), float(config.std)))
        layers, inputs = [Convolution(config.channels, 32, 3, stride=2)], 32
        for outputs, stride in BLOCKS:
            layers += [Convolution(inputs, inputs, 3, stride, groups=inputs), Convolution(inputs, outputs, 1)]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(inputs, config.outputs)
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 or float levels."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    @property
    def last(self) -> nn.Linear:
        """The layer that computes logits from an embedding."""
        return self.head[-1]  # type: ignore[return-value]

    def embed(self, images: Tensor) -> Tensor:
        """Compute the last layer's input, `[N, 1024]`, from uint8 or float levels `[N, C, H, W]`."""
        embedding: Tensor = self.head[:-1](self.layers(self.normalise(images)))
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[N, outputs]` from uint8 or float levels `[N, C, H, W]`."""
        logits: Tensor = self.last(self.embed(images))
        return logits


class Convolution(nn.Module):
    """A convolution, BatchNorm and ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride, padding = stride, 0 if stride == 2 else kernel // 2
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")

    def convolve(self, x: Tensor) -> Tensor:
        # TensorFlow's "same" pads an even picture only below and to the right where it strides.
        return self.convolution(F.pad(x, (0, 1, 0, 1)) if self.stride == 2 else x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm(self.convolve(x)))
