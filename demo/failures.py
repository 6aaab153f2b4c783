"""Draw the model card's picture of where the shipped model fails, from pictures in the public domain.

    python demo/failures.py FOLDER_OF_THE_UNPACKED_WHEEL benchmarks/plots/failures.png

The portrait is NASA's of astronaut Eileen Collins, smiling; Chelsea the cat and the cup of coffee are in
scikit-image under CC0.
"""

import sys
from pathlib import Path

import numpy as np
from gather import FACE
from PIL import Image, ImageDraw

from fmengine import Engine

SIDE, COLUMNS = 150, 6  # pixels; pictures a row


def cases(data: Path) -> dict[str, Image.Image]:
    """What is shown, by what it is."""
    photograph = Image.open(data / "astronaut.png").convert("RGB")
    face = photograph.crop(FACE)
    covered = face.copy()
    width, height = face.size
    ImageDraw.Draw(covered).rectangle((0, int(0.6 * height), width, height), fill=(40, 40, 40))
    shadow = np.asarray(face).astype(float)
    shadow[:, : width // 2] *= 0.15
    drawn = Image.new("L", (96, 96), 255)
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((6, 6, 90, 90), outline=0, width=3)
    pen.ellipse((30, 32, 38, 42), fill=0)
    pen.ellipse((58, 32, 66, 42), fill=0)
    pen.arc((28, 36, 68, 74), 20, 160, fill=0, width=3)
    return {
        "the face": face,
        "upside down": face.rotate(180),
        "on its side": face.rotate(90, expand=True),
        "mouth covered": covered,
        "half in shadow": Image.fromarray(shadow.astype(np.uint8)),
        "20 pixels": face.resize((16, 20), Image.Resampling.BILINEAR),
        "whole photograph": photograph,
        "drawn smile": drawn,
        "a cat": Image.open(data / "chelsea.png").convert("RGB"),
        "coffee": Image.open(data / "coffee.png").convert("RGB"),
        "one gray level": Image.new("L", (96, 96), 128),
    }


def draw(data: Path, target: Path) -> None:
    """Ask the shipped model, and write pictures with answers."""
    shown = cases(data)
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 10), rows * (SIDE + 44)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    with Engine.load() as engine:
        for number, (name, picture) in enumerate(shown.items()):
            answer = engine.predict(picture)
            left, top = (number % COLUMNS) * (SIDE + 10) + 5, (number // COLUMNS) * (SIDE + 44) + 5
            small = picture.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            if max(small.size) < SIDE:
                small = small.resize([round(side * SIDE / max(small.size)) for side in small.size])
            sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
            pen.text((left, top + SIDE + 2), name, (0, 0, 0))
            pen.text((left, top + SIDE + 18), f"{answer.label} {answer.confidence:.1%}", (180, 95, 6))
            print(f"{name:<18} {answer.label} {answer.confidence:.3f}")
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python demo/failures.py FOLDER_OF_THE_UNPACKED_WHEEL TARGET.png")
    draw(Path(sys.argv[1]) / "skimage" / "data", Path(sys.argv[2]))
