"""Mutations of valid pictures, from a seed, and each held against the oracle.

python -m tests.fuzz.mutate --count 100000 --seed 7
"""

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np

from fmengine.cli.streams import silence_decoders

from .corpus import pictures
from .oracle import check


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes."""
    some = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if not some:
            break
        start = int(rng.integers(len(some)))
        length = int(rng.integers(1, 17))
        match int(rng.integers(7)):
            case 0 | 1:
                some[start] ^= 1 << int(rng.integers(8))
            case 2:
                some[start] = int(rng.integers(256))
            case 3:
                some[start : start + length] = bytes([rng.choice([0x00, 0x01, 0x7F, 0x80, 0xFF])]) * length
            case 4:
                del some[start : start + length]
            case 5:
                other = int(rng.integers(len(some)))
                some[start:start] = some[other : other + length]
            case 6:
                del some[start + length :]
    return bytes(some)


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Files, each with a name that gives it again."""
    whole = list(pictures().items())
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        name, data = whole[int(rng.integers(len(whole)))]
        yield f"{name}, seed {seed}, mutation {number}", mutated(data, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with silence_decoders():
        run(options.count, options.seed)


def run(count: int, seed: int) -> None:
    """Check so many files, print what is wrong with some, and exit with 1 if anything is."""
    wrong, slowest = 0, (0.0, "")
    for number, (name, data) in enumerate(mutations(count, seed), 1):
        started = time.perf_counter()
        if fault := check(data):
            wrong += 1
            print(f"{name}: {fault}\n{data!r}", flush=True)
        slowest = max(slowest, (time.perf_counter() - started, name))
        if number % 10_000 == 0:
            print(f"{number:,} files, {wrong} wrong; slowest {slowest[0]:.2f} s: {slowest[1]}", file=sys.stderr)
    print(f"{count:,} mutations, {wrong} wrong; slowest {slowest[0]:.2f} s ({slowest[1]})")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
