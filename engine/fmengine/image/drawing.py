"""Draw boxes with a text each into a copy of an image."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..types import DecodedImage, FaceBox

INK = "#1d1c1a"
SMALLEST_TEXT = 12  # pixels


class DrawnBox(NamedTuple):
    """A box, the text above it, and the colour of both as Pillow takes it."""

    box: FaceBox
    text: str
    color: str


def draw_boxes(image: DecodedImage, boxes: Sequence[DrawnBox]) -> Image.Image:
    """Draw boxes on whole pixels, each with its text above it, or below the picture's upper edge.

    A text is as large as its box allows, up to a fortieth of the picture.
    """
    drawn = Image.fromarray(image).convert("RGB")
    pen, largest = ImageDraw.Draw(drawn), max(drawn.size) // 40
    for box, text, color in boxes:
        left, top, right, bottom = map(round, box)
        size = max(SMALLEST_TEXT, min(largest, (right - left) // 4))
        font = ImageFont.load_default(size)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=1 + size // 8)
        width, height = pen.textlength(text, font) + size / 2, size * 1.3
        x, y = max(0, min(left, drawn.width - width)), max(0, top - height)
        pen.rectangle((x, y, x + width, y + height), fill=color)
        pen.text((x + size / 4, y + height / 2), text, fill=INK, font=font, anchor="lm")
    return drawn
