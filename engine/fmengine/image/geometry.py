"""Compute the box of a picture that is resized to the network's input, and check how large the resize is.

A box is `(left, top, right, bottom)` in whole pixels of the picture's coordinates; a size is `(width, height)`.
"""

from ..errors import Kind, SourceError
from ..model.spec import InputSpec

Size = tuple[int, int]
Box = tuple[int, int, int, int]

# A strip of a million rows may have few pixels, and each row becomes as wide as the input or the padded picture.
MAX_BETWEEN = 2**25  # pixels between the two passes
MAX_PADDED = 2**27  # pixels with the borders


def compute_crop_box(size: Size, target: Size) -> Box:
    """Compute the centred box of `target`'s aspect ratio inside a picture.

    Args:
        size: of the picture.
        target: size of the network's input.

    Returns:
        One pixel or more wide and high. Sizes round to the nearest pixel, and an odd margin puts the extra pixel
        right or below.
    """
    (w, h), (tw, th) = size, target
    if w * th > h * tw:
        width, height = max(1, (2 * h * tw + th) // (2 * th)), h
    else:
        width, height = w, max(1, (2 * w * th + tw) // (2 * tw))
    left, top = (w - width) // 2, (h - height) // 2
    return left, top, left + width, top + height


def compute_pad_box(size: Size, target: Size) -> Box:
    """Compute the smallest centred box of `target`'s aspect ratio around a picture.

    Args and rounding as in `compute_crop_box`; left and top are zero or negative.
    """
    (w, h), (tw, th) = size, target
    if w * th > h * tw:
        width, height = w, max(h, (2 * w * th + tw) // (2 * tw))
    else:
        width, height = max(w, (2 * h * tw + th) // (2 * th)), h
    left, top = -((width - w) // 2), -((height - h) // 2)
    return left, top, left + width, top + height


def compute_fit_box(size: Size, spec: InputSpec) -> Box:
    """Compute the box that the fit policy of an input resizes."""
    if spec.fit == "crop":
        return compute_crop_box(size, (spec.width, spec.height))
    if spec.fit == "pad":
        return compute_pad_box(size, (spec.width, spec.height))
    return (0, 0, *size)


def check_resize(size: Size, spec: InputSpec) -> Box:
    """Compute the box as `compute_fit_box` does, and refuse a strip that takes far more work than its pixels.

    Raises:
        SourceError: of the kind `too_large`.
    """
    box = left, top, right, bottom = compute_fit_box(size, spec)
    rows, padded = bottom - top, (right - left) * (bottom - top)
    if spec.fit == "pad" and padded > MAX_PADDED:
        excess = f"{right - left}×{rows} with its borders; the limit is {MAX_PADDED:,} pixels"
    elif rows * spec.width > MAX_BETWEEN:
        excess = f"{rows:,} rows, resized to {spec.width} pixels each; the limit is {MAX_BETWEEN:,} pixels"
    else:
        return box
    raise SourceError(Kind.TOO_LARGE, f"a strip of {size[0]}×{size[1]} pixels makes {excess}")
