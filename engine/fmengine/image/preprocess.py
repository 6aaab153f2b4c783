"""Preprocess decoded pixels to the network's input: one definition, bit for bit.

The definition is Pillow's 8-bit arithmetic with the order of the passes fixed:

1. luma, `(19595 R + 38470 G + 7471 B + 0x8000) >> 16`, where the model is gray and the pixels are not;
2. the fit policy: `crop` cuts the centre out, `pad` adds black borders, `stretch` does neither;
3. the triangle filter with antialiasing (Pillow's `BILINEAR`: 22-bit fixed-point coefficients, 8-bit
   rounding after each pass), **horizontal first, then vertical**; a pass that changes no size is skipped.

Step 3 is two calls of Pillow and not one, because Pillow 13 began to run the vertical pass first on tall
pictures (python-pillow/Pillow #9549), which moves pixels by one level.

Training, every runtime and every exported model use this definition.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..model.spec import InputSpec
from ..types import DecodedImage, InputBatch, NetworkInput
from .flatness import is_flat_input
from .geometry import MAX_BETWEEN, check_resize

MAX_GROUP_BYTES = 200_000  # resized in one call: more do not fit a core's cache, and are newly mapped each time
MAX_STRIP_BYTES = 4_000_000  # of one picture in one call of Pillow, which copies its input


def preprocess(image: DecodedImage, spec: InputSpec) -> NetworkInput:
    """Turn a decoded picture into the network's input.

    Args:
        image: uint8, `[H, W]` luma or `[H, W, 3]` RGB, any size from 1×1.
        spec: the network's input.

    Returns:
        uint8 `[C, H, W]` of `spec.shape`.

    Raises:
        SourceError: of the kind `too_large`, as `check_resize`.
    """
    return NetworkInput(np.ascontiguousarray(_resize(_fit(image, spec)[np.newaxis], spec)[0]))


def preprocess_batch(images: Sequence[DecodedImage], spec: InputSpec, out: InputBatch | None = None) -> InputBatch:
    """Turn decoded pictures into a batch of the network's input.

    Those of one size are resized together, in two calls of Pillow: the overhead of a call is that of a small face.

    Args:
        images: each as for `preprocess`.
        spec: the network's input.
        out: where the rows are written, uint8 `[N, C, H, W]`; a new batch by default.

    Returns:
        uint8 `[N, C, H, W]`; `out` where it is given.

    Raises:
        SourceError: as `preprocess`, where one of them is too large; then nothing is written.
        ValueError: for an `out` of another shape or dtype.
    """
    shape = (len(images), *spec.shape)
    if out is not None and (out.shape != shape or out.dtype != np.uint8):
        raise ValueError(f"out is {out.dtype} {out.shape}; expected uint8 {shape}")
    if len(images) == 1:
        resized = _resize(_fit(images[0], spec)[np.newaxis], spec)
        if out is None:
            return InputBatch(np.ascontiguousarray(resized))
        out[...] = resized
        return out
    groups: dict[tuple[int, ...], tuple[list[int], list[npt.NDArray[np.uint8]]]]
    groups = defaultdict(lambda: ([], []))
    for index, image in enumerate(images):
        fitted = _fit(image, spec)
        indices, group = groups[fitted.shape]
        indices.append(index)
        group.append(fitted)
    if out is None:
        out = InputBatch(np.empty(shape, np.uint8))
    for indices, group in groups.values():
        count = max(1, MAX_GROUP_BYTES // group[0].size)
        for begin in range(0, len(group), count):
            part = group[begin : begin + count]
            rows = indices[begin : begin + count]
            out[rows] = _resize(np.stack(part) if len(part) > 1 else part[0][np.newaxis], spec)
    return out


def preprocess_rows(
    images: Sequence[DecodedImage], spec: InputSpec, inputs: npt.NDArray[np.uint8], flat: npt.NDArray[np.bool_]
) -> None:
    """Write rows of a batch: each picture's input for the network, and whether it is flat.

    Args:
        images: as for `preprocess_batch`.
        spec: the network's input.
        inputs: uint8 `[N, C, H, W]`, written.
        flat: bool `[N]`, written.

    Raises:
        SourceError: as `preprocess_batch`; then nothing is written.
    """
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    flat[:] = is_flat_input(preprocess_batch(images, spec, InputBatch(inputs)), sizes, spec)


def _fit(image: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Do steps 1 and 2, in either order the same: to `[H, W]` where the model is gray, else `[H, W, 3]`."""
    height, width = image.shape[:2]
    # A picture of the input's aspect ratio is its own box, as faces are that a detector cut out.
    if height * spec.width != width * spec.height or height * max(width, spec.width) > MAX_BETWEEN:
        image = _apply_fit(image, spec)
    gray = spec.color == "gray"
    if image.ndim == (2 if gray else 3):
        return image
    return _apply_in_strips(image, lambda strip: strip.convert("L" if gray else "RGB"))


def _apply_fit(image: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Do step 2: cut the box of the fit policy out, or pad the picture to it."""
    height, width = image.shape[:2]
    left, top, right, bottom = check_resize((width, height), spec)
    if (right - left, bottom - top) == (width, height):
        return image
    if spec.fit == "pad":
        padded = np.zeros((bottom - top, right - left, *image.shape[2:]), np.uint8)
        padded[-top : height - top, -left : width - left] = image
        return padded
    return image[top:bottom, left:right].copy()  # which does not keep the whole picture in memory


def _resize(images: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Do step 3, from `[N, H, W]` or `[N, H, W, 3]` to `[N, C, H, W]`, which may be a view of other strides."""
    width, height = spec.size
    if images.size > MAX_STRIP_BYTES and images.shape[2] != width:
        below = images.reshape(-1, *images.shape[2:])
        narrow = _apply_in_strips(
            below, lambda strip: strip.resize((width, strip.height), Image.Resampling.BILINEAR)
        )
        images = narrow.reshape(*images.shape[:2], width, *images.shape[3:])
    count, rows, columns, *channels = images.shape
    if (rows, columns) != (height, width):
        image = Image.fromarray(images.reshape(count * rows, columns, *channels))  # one below the other
        if columns != width:
            image = image.resize((width, count * rows), Image.Resampling.BILINEAR)
        if rows != height:
            if count > 1:  # now side by side
                images = np.asarray(image).reshape(count, rows, width, *channels)
                image = Image.fromarray(images.swapaxes(0, 1).reshape(rows, count * width, *channels))
            image = image.resize((count * width, height), Image.Resampling.BILINEAR)
            images = np.asarray(image).reshape(height, count, width, *channels).swapaxes(0, 1)
        else:
            images = np.asarray(image).reshape(count, height, width, *channels)
    return images.transpose(0, 3, 1, 2) if channels else images[:, np.newaxis]


def _apply_in_strips(
    image: npt.NDArray[np.uint8], change: Callable[[Image.Image], Image.Image]
) -> npt.NDArray[np.uint8]:
    """Apply a change of Pillow's that treats each row alone, to a strip of rows at a time."""
    rows = max(1, MAX_STRIP_BYTES // image[0].size)
    strips = [np.asarray(change(Image.fromarray(image[top : top + rows]))) for top in range(0, len(image), rows)]
    return strips[0] if len(strips) == 1 else np.concatenate(strips)
