"""Draw what an answer rests on over its picture.

What is orange speaks for the answer, what is blue against it, and what is striped the network does not see.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..image.geometry import compute_fit_box
from ..model.spec import InputSpec
from ..types import DecodedImage
from .occlusion import EffectMap

Floats = npt.NDArray[np.floating[Any]]

SIDE = 384  # pixels of the longer side
# Told apart with every colour vision (Okabe and Ito, "Color universal design", 2008), and from grays.
FOR, AGAINST = (213, 94, 0), (0, 114, 178)
OPAQUE = 0.75  # of a colour at its strongest
WEAKEST = 0.02  # a change of probability that is shown at full strength at least: where no part matters it is pale
UNSEEN = 0.35  # brightness of what the network does not see, and squared, of every second stripe
DARKEST = 24  # level, so that stripes are seen where the picture is black
STRIPE = 8  # pixels


def draw_overlay(image: DecodedImage, effect: EffectMap, spec: InputSpec, side: int = SIDE) -> DecodedImage:
    """Draw a map over its picture, which becomes gray.

    Args:
        image: the upright picture, or a smaller copy of it.
        effect: float32 `[H, W]` of the network's input, as of `Explanation.effect`.
        spec: of that input, whose fit says where in the picture it lies.
        side: pixels of the longer side.

    Returns:
        uint8 `[h, w, 3]`.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gray = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    drawn = np.repeat(gray[..., np.newaxis], 3, axis=2)
    columns, part_x = _locate(compute_fit_box((width, height), spec)[::2], width, size[0], spec.width)
    rows, part_y = _locate(compute_fit_box((width, height), spec)[1::2], height, size[1], spec.height)
    seen = np.zeros(gray.shape, bool)
    seen[rows, columns] = True
    drawn[~seen] = _draw_stripes(drawn)[~seen]
    part = (part_x[0], part_y[0], part_x[1], part_y[1])
    target = (columns.stop - columns.start, rows.stop - rows.start)
    resized = Image.fromarray(effect).resize(target, Image.Resampling.BILINEAR, box=part)
    strength = np.asarray(resized) / max(WEAKEST, float(np.abs(effect).max()))
    drawn[rows, columns] = _tint(drawn[rows, columns], strength)
    return DecodedImage(np.clip(np.rint(drawn), 0, 255).astype(np.uint8))


def _locate(box: tuple[int, ...], length: int, drawn: int, inputs: int) -> tuple[slice, tuple[float, float]]:
    """Find, along one side, the part of the picture that the network sees.

    Args:
        box: begin and end of what was resized to the network's input, in pixels of the picture.
        length: of the picture.
        drawn: length that it is drawn at.
        inputs: of the network's input.

    Returns:
        Where it is drawn, and which part of the network's input it is: without the borders of `pad`.
    """
    begin, end = max(0, box[0]), min(length, box[1])
    first = min(drawn - 1, round(begin * drawn / length))
    place = slice(first, max(first + 1, round(end * drawn / length)))
    scale = inputs / (box[1] - box[0])
    return place, ((begin - box[0]) * scale, min(inputs, (end - box[0]) * scale))


def _tint(pixels: Floats, strength: Floats) -> Floats:
    """Mix pixels `[h, w, 3]` with the colour of a strength `[h, w]` from -1 to 1, the more the stronger it is."""
    share = OPAQUE * np.minimum(1, np.abs(strength))[..., np.newaxis]
    return pixels * (1 - share) + np.where(strength[..., np.newaxis] > 0, FOR, AGAINST) * share


def _draw_stripes(pixels: Floats) -> Floats:
    """Darken pixels `[h, w, 3]`, in diagonal stripes."""
    y, x = np.indices(pixels.shape[:2])
    brightness = np.where((x + y) // STRIPE % 2, UNSEEN, UNSEEN**2)
    return pixels * brightness[..., np.newaxis] + DARKEST
