"""`infer` killed at random moments and resumed each time: the rows must be those of a run that nobody disturbed.

Every other time, what failed is tried again, too.

python -m tests.fuzz.kills --count 100
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

FILES = 4000


def make_pictures(folder: Path, count: int = FILES) -> Path:
    """Pictures, most of them links to some; every hundredth is broken."""
    folder.mkdir(parents=True)
    for shade in range(10):
        Image.new("L", (60, 60), 25 * shade).save(folder / f"{shade:05}.jpg")
    for number in range(10, count):
        path = folder / f"{number:05}.jpg"
        if number % 100 == 0:
            path.write_bytes(b"\xff\xd8\xff broken")
        else:
            path.hardlink_to(folder / f"{number % 10:05}.jpg")
    return folder


def infer(pictures: Path, output: Path, *more: str) -> list[str]:
    arguments = ["infer", "--batch", str(pictures), "--output", str(output), "--batch-size", "8", *more]
    return [sys.executable, "-m", "fmengine", *arguments]


def rows(output: Path) -> list[str]:
    """What a file holds, in an order that does not depend on when it was written."""
    if output.suffix == ".parquet":
        import pyarrow.parquet

        return sorted(map(str, pyarrow.parquet.read_table(output).to_pylist()))
    return sorted(output.read_text().splitlines())


def disturbed(pictures: Path, output: Path, kills: int, seed: int) -> int:
    """Begin a run and kill it, over and over, each time a little later; then let it finish. Kills that hit one."""
    rng, hits = random.Random(seed), 0
    for number in range(kills):
        more = ["--resume", "--retry-failed"] if number % 2 else ["--resume"]
        process = subprocess.Popen(infer(pictures, output, *more), stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, 1.2))
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(infer(pictures, output, "--resume"), stderr=subprocess.PIPE, check=False)
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    wrong = hits = 0
    # Some kills a run: with all of them in one, most would hit a run that has nothing left to do.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = make_pictures(folder / "pictures")
        for number in range(options.count // 4):
            suffix = ("jsonl", "csv", "parquet")[number % 3]
            whole = folder / f"whole.{suffix}"
            if not whole.exists():
                subprocess.run(infer(pictures, whole), stderr=subprocess.DEVNULL, check=False)
            output = folder / f"{number}.{suffix}"
            hits += disturbed(pictures, output, 4, options.seed + number)
            if rows(output) != rows(whole):
                wrong += 1
                print(f"{suffix}, seed {options.seed + number}: {len(rows(output))} rows, not {len(rows(whole))}")
    print(
        f"{options.count} kills, {hits} of them of a run at work; {wrong} of {options.count // 4} outputs differ"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
