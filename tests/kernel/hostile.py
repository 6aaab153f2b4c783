"""Give the kernel descriptors of random bytes: nothing outside the batch may be read. Run it under the sanitizers.

Prints how many pictures were refused, and how many were taken.
"""

import sys
from pathlib import Path

import numpy as np

from fmengine.gpu.launch import BATCH, PICTURE, InputShape
from fmengine.gpu.tables import LONGEST, Tables

from .host import HostKernel

EDGES = (0, 1, 2, 3, 4, 30, 600, LONGEST, LONGEST + 1, 2**30, 2**31 - 1, 2**61, 2**63 - 1)
PICTURES = 8


def draw(rng: np.random.Generator, name: str) -> int:
    """A number as an attacker might choose it: small, at an edge, or any."""
    kind = PICTURE[name]
    most = int(np.iinfo(kind).max)
    value = int(
        rng.choice(
            [int(rng.integers(0, 40)), int(rng.choice(EDGES)), int(rng.integers(0, most))], p=[0.8, 0.1, 0.1]
        )
    )
    return max(-most, min(most, -value if rng.random() < 0.15 else value))


def main() -> None:
    kernel, rng = HostKernel(Path(sys.argv[1])), np.random.default_rng(5)
    tables = Tables.for_input(InputShape(1, 24, 24))
    buffer = rng.integers(0, 256, 2000, np.uint8)
    batch = np.zeros(1, BATCH)
    batch["base"], batch["end"], batch["count"] = buffer.ctypes.data, len(buffer), PICTURES
    refused = taken = 0
    for _ in range(400):
        pictures = np.zeros(PICTURES, PICTURE)
        for name in PICTURE.names or ():
            pictures[name] = [draw(rng, name) for _ in range(PICTURES)]
        pictures["channels"] = rng.choice([1, 1, 3, 4, 2], PICTURES)
        _, shown = kernel.launch_preprocess(tables, batch, pictures, bands=2, more=1)
        refused += int((shown["refused"] == 1).sum())
        taken += int((shown["refused"] == 0).sum())
    print(refused, taken)


if __name__ == "__main__":
    main()
