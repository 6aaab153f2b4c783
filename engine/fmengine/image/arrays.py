"""Convert pixels that are decoded already: NumPy arrays, and arrays in host memory over DLPack."""

from typing import Any, cast

import numpy as np

from ..errors import Kind, SourceError
from ..options import Limits
from ..types import CHANNELS, Channels, DecodedImage, DLPackArray
from .cost import check_pixels
from .faults import describe_exception


def convert_array(array: np.ndarray[Any, Any], limits: Limits, channels: Channels) -> DecodedImage:
    """Check an array and convert it to `[H, W]` or RGB `[H, W, 3]`; alpha is dropped, as Pillow drops it.

    Raises:
        SourceError: of the kind `unsupported`, `empty` or `too_large`.
    """
    if array.dtype != np.uint8:
        raise SourceError(Kind.UNSUPPORTED, f"array of {array.dtype}; expected uint8 levels from 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise SourceError(
            Kind.UNSUPPORTED,
            f"array of shape {array.shape}; expected [H, W] or [H, W, C] with C of 1, 3 or 4",
        )
    if not array.size:
        raise SourceError(Kind.EMPTY, f"array of shape {array.shape} has no pixels")
    check_pixels(array.shape[1], array.shape[0], limits)
    if array.ndim == 3 and (channels == "bgr" or array.shape[2] == 4):
        # Channel by channel: a copy of `array[..., 2::-1]` moves 3 bytes at a time, and takes 3 times as long.
        array = np.stack([array[..., i] for i in ((2, 1, 0) if channels == "bgr" else (0, 1, 2))], axis=-1)
    return DecodedImage(np.ascontiguousarray(array))


def import_dlpack(source: DLPackArray) -> np.ndarray[Any, Any]:
    """Import an array of another library, without a copy where it shares its memory.

    Raises:
        SourceError: of the kind `unsupported`, for one that its library keeps, such as a tensor with gradients.
    """
    try:
        return np.from_dlpack(cast(Any, source))
    except Exception as error:  # of the library that holds it
        message = f"its library does not hand the picture over: {describe_exception(error)}"
        raise SourceError(Kind.UNSUPPORTED, message) from error


def check_channels(channels: Channels) -> None:
    """Check that an order of channels exists: another would silently count as `rgb`.

    Raises:
        ValueError: if it does not.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels {channels!r}; expected 'rgb' or 'bgr'")
