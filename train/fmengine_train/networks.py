"""Every network that can be trained, by name."""

from .model import ARCHITECTURES, AlexNet, AlexNetConfig
from .resnet import TEACHERS, ResNet, ResNetConfig

Config = AlexNetConfig | ResNetConfig
Network = AlexNet | ResNet

# AlexNets ship; residual networks teach them.
CONFIGS: dict[str, Config] = {**ARCHITECTURES, **TEACHERS}


def build(config: Config) -> Network:
    """Make the network that a configuration describes, with fresh weights."""
    return AlexNet(config) if isinstance(config, AlexNetConfig) else ResNet(config)
