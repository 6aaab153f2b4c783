"""Predictions by the million in one process, some of them failures, and what they cost in memory.

python -m tests.fuzz.soak --count 1000000
"""

import argparse
import resource
import sys
import time
from itertools import cycle, islice

from fmengine import Engine, Failure

from .corpus import pictures

FIRST = 10_000  # after which memory is compared


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    options = parser.parse_args()
    sources = [
        data for name, data in pictures(48).items() if name.startswith(("jpeg-L", "jpeg-RGB", "png-L", "png-RGB"))
    ]
    sources += [b"no picture", sources[0][:-40]]
    failed, before, started = 0, 0, time.perf_counter()
    with Engine.load() as engine:
        for number, answer in enumerate(engine.predict_many(islice(cycle(sources), options.count)), 1):
            failed += isinstance(answer, Failure)
            if number == FIRST:
                before = resident()
            if number % 100_000 == 0:
                print(f"{number:,}: {resident() / 1e6:.1f} MB", file=sys.stderr)
        after = resident()
    seconds = time.perf_counter() - started
    growth = after / before - 1
    print(
        f"{options.count:,} predictions, {failed:,} of them failures, in {seconds:.0f} s: "
        f"{before / 1e6:.1f} MB after {FIRST:,}, {after / 1e6:.1f} MB at the end ({growth:+.2%})"
    )
    sys.exit(growth >= 0.01)


if __name__ == "__main__":
    main()
