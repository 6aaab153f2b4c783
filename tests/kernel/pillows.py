"""Hold the definition of preprocessing against the Pillow that is installed: `make kernel-pillows`.

Runs with NumPy and Pillow alone, under each major version of Pillow that the project allows.
"""

import random
import sys
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "benchmarks")]

from fmengine.image.preprocess import preprocess  # noqa: E402
from fmengine.model.spec import InputSpec  # noqa: E402
from fmengine.types import COLORS, FITS  # noqa: E402
from fmengine_bench import definition  # noqa: E402

CASES = 400


def main() -> None:
    rng, differing, once = random.Random(3), 0, 0
    for _ in range(CASES):
        rows, columns, height, width = (rng.randint(1, 400) for _ in range(4))
        shape = rng.choice([(rows, columns), (rows, columns, 3)])
        pixels = np.frombuffer(rng.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
        color, fit = rng.choice(COLORS), rng.choice(FITS)
        spec = InputSpec(height, width, color, fit)
        ours = preprocess(pixels, spec)
        differing += bool((ours != definition.preprocess(pixels, spec)).any())
        gray = Image.fromarray(pixels).convert("L")
        one_call = np.asarray(gray.resize((width, height), Image.Resampling.BILINEAR))
        once += bool((one_call != preprocess(pixels, InputSpec(height, width, "gray", "stretch"))[0]).any())
    print(f"Pillow {PIL.__version__}: {differing} of {CASES} pictures differ from the definition; ", end="")
    print(f"with one call of Pillow instead of two {once} would")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
