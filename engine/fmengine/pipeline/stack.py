"""Answer for many images of one size, which lie in one array: nothing is done for each of them in Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backend.protocol import Backend, DeviceBackend
from ..errors import Kind, SourceError
from ..image.arrays import convert_array
from ..image.preprocess import preprocess_batch
from ..model.spec import InputSpec
from ..options import Limits
from ..types import Channels, Outputs


def run_stack(
    backend: Backend, spec: InputSpec, images: npt.NDArray[Any], limits: Limits, channels: Channels, max_batch: int
) -> Outputs:
    """Preprocess an array of images and run the network.

    Args:
        backend: that runs the network, and preprocesses if it is on a GPU.
        spec: of the network's input.
        images: uint8 `[N, H, W]`, or `[N, H, W, C]` with C of 1, 3 or 4, N from 1.
        limits: of what a picture may cost.
        channels: the order of the channels.
        max_batch: images a run of the network, on a CPU.

    Raises:
        SourceError: for an array that is none of images, as for one image.
    """
    if images.ndim not in (3, 4) or not len(images):
        raise SourceError(
            Kind.EMPTY if images.ndim in (3, 4) else Kind.UNSUPPORTED,
            f"array of shape {images.shape}; expected [N, H, W] or [N, H, W, C] with C of 1, 3 or 4, N from 1",
        )
    convert_array(images[0], limits, channels)  # which says what is wrong with all of them
    if isinstance(backend, DeviceBackend):
        ordered = images[..., 2::-1] if images.ndim == 4 and images.shape[3] > 1 and channels == "bgr" else images
        answers = backend.run_pictures(ordered)
        return Outputs(answers.logits, answers.probabilities)
    parts: list[Outputs] = []
    for start in range(0, len(images), max_batch):
        decoded = [convert_array(image, limits, channels) for image in images[start : start + max_batch]]
        parts.append(backend.run(preprocess_batch(decoded, spec)))
    return concatenate_outputs(parts)


def concatenate_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Join what the batches of one model gave, row behind row."""
    features = [part.features for part in parts if part.features is not None]
    return Outputs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(features) if features else None,
    )
