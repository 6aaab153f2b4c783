"""Hold the kernel against the definition on random pictures: `make kernel-check CASES=20000 SEED=7`.

Prints `cases N, pixels P, differing D`, and exits with 1 if any pixel differs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from .cases import random_case
from .host import HostKernel

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("--cases", type=int, default=2000, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kernel, rng = HostKernel(arguments.library), np.random.default_rng(arguments.seed)
    cases = pixels = differing = 0
    while cases < arguments.cases:
        case = random_case(rng, min(BATCH, arguments.cases - cases))
        expected = case.expected()
        for images in case.run_all(kernel):
            differing += int((images != expected).sum())
            pixels += expected.size
        cases += len(case.pictures)
    print(f"cases {cases}, pixels {pixels}, differing {differing}")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
