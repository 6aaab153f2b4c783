"""Makes several views of each picture: over their mean, a network is right more often than on one of them."""

import torch
from torch import Tensor

from .augment import warp
from .augment_masked import warp_masked


def make_views(images: Tensor, count: int, strength: float, generator: torch.Generator) -> list[Tensor]:
    """Make a batch's views: as it is, mirrored, then turned, scaled and shifted.

    Args:
        images: uint8 `[N, C, H, W]`.
        count: of the views.
        strength: of the warps, against what augmentation does.
        generator: of the device that the images are on.

    Returns:
        Float32 `[N, C, H, W]` each, channels last, as networks take them.
    """
    levels = images.float()
    transform = warp if levels.device.type == "cpu" else warp_masked
    views = [levels, levels.flip(3)][:count]
    views += [transform(levels, generator, strength) for _ in range(2, count)]
    return [view.contiguous(memory_format=torch.channels_last) for view in views]
