"""Draw the README's picture: the portrait on its way through fmengine, with the shipped model's answer.

python demo/draw.py .cache/demo/pictures/astronaut.png demo/pipeline.svg
"""

import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fmengine import Engine


def draw(portrait: Path, target: Path) -> None:
    """Run the portrait through the shipped model and write the picture of it."""
    with Engine.load() as engine:
        answer, spec = engine.predict(portrait), engine.spec
        network_input = Image.fromarray(np.squeeze(engine.prepare(portrait)))
    with Image.open(portrait) as image:
        picture = _embed(image.convert("RGB"))
    boxes = [
        (250, "decode", "libjpeg-turbo, Pillow"),
        (430, "preprocess", "one definition, bit for bit"),
        (760, f"AlexNet, {spec.precision.upper()}", "five convolutions, three layers"),
    ]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1130 200" font-family="system-ui, sans-serif">',
        '<rect width="1130" height="200" rx="12" fill="#f6f5f2"/>',
        f'<image href="{picture}" x="30" y="20" width="130" height="160"/>',
        *(_box(x, title, text) for x, title, text in boxes),
        f'<image href="{_embed(network_input)}" x="625" y="44" width="112" height="112"/>',
        *(f'<path d="M{x} 100h{w}" stroke="#6b6862" stroke-width="2" marker-end="url(#tip)"/>'
          for x, w in ((166, 76), (392, 30), (592, 25), (740, 12), (962, 20))),
        f'<text x="995" y="96" font-size="26" font-weight="700" fill="#b45f06">{answer.label}</text>',
        f'<text x="995" y="124" font-size="20" fill="#1d1c1a">{answer.confidence:.1%}</text>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#6b6862"/></marker></defs></svg>',
    ]  # fmt: skip
    target.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _box(x: int, title: str, text: str) -> str:
    width = 140 if title == "decode" else 160 if title == "preprocess" else 200
    return (
        f'<rect x="{x}" y="62" width="{width}" height="76" rx="10" fill="#fff" stroke="#e2dfd8"/>'
        f'<text x="{x + width / 2}" y="96" font-size="17" font-weight="600" text-anchor="middle" '
        f'fill="#1d1c1a">{title}</text>'
        f'<text x="{x + width / 2}" y="118" font-size="11" text-anchor="middle" fill="#6b6862">{text}</text>'
    )


def _embed(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python demo/draw.py PORTRAIT TARGET.svg")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
