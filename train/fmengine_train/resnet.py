"""The teacher: a small residual network whose soft answers AlexNet learns from. It never ships.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", 2015, with the shortcut of He, Zhang
et al.: "Bag of Tricks for Image Classification", 2018 (ResNet-D), which averages where it skips.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ResNetConfig:
    """What the network looks like.

    Attributes:
        outputs: number of labels.
        channels: 1 for gray, 3 for RGB.
        height: rows of the input picture, 16 or more.
        width: columns of the input picture, 16 or more.
        stem_stride: of the first convolution.
        widths: channels of the four stages; each but the first halves rows and columns.
        blocks: residual blocks a stage.
        dropout: before the last layer.
        mean: the level subtracted from each channel.
        std: the levels that become 1.0.
    """

    outputs: int = 2
    channels: int = 1
    height: int = 64
    width: int = 64
    stem_stride: int = 2
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    blocks: int = 2
    dropout: float = 0.2
    mean: int = 128
    std: float = 64.0


# 2.8 M and 1.6 M parameters: two views of the same pictures, so that their average knows more than either.
TEACHERS = {
    "resnet-64": ResNetConfig(),
    "resnet-48": ResNetConfig(height=48, width=48, stem_stride=1, widths=(16, 48, 96, 192)),
}


class ResNet(nn.Module):
    """Levels from 0 to 255 in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        if min(config.height, config.width) < 16:
            raise ValueError(f"an input of {config.height}×{config.width} pixels; expected 16 or more a side")
        self.config = config
        self.register_buffer("mean", torch.full((1, config.channels, 1, 1), float(config.mean)))
        self.register_buffer("std", torch.full((1, config.channels, 1, 1), float(config.std)))
        first = config.widths[0]
        self.stem = nn.Sequential(*_convolution(config.channels, first, config.stem_stride), nn.ReLU(inplace=True))
        stages = [_stage(first, first, 1, config.blocks)]
        stages += [_stage(inputs, outputs, 2, config.blocks) for inputs, outputs in pairwise(config.widths)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(config.widths[-1], config.outputs),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[N, outputs]` from uint8 or float levels `[N, C, H, W]`."""
        levels = (images.to(self.mean.dtype) - self.mean) / self.std
        logits: Tensor = self.head(self.stages(self.stem(levels)))
        return logits


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        last, self.norm = _convolution(outputs, outputs, 1)
        nn.init.zeros_(self.norm.weight)  # a new block is its shortcut
        self.residual = nn.Sequential(*_convolution(inputs, outputs, stride), nn.ReLU(inplace=True), last)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, bias=False)).append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.residual(x)) + self.shortcut(x))


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
