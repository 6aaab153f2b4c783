"""`infer` killed at random moments and resumed each time, and its workers killed while it runs.

The rows must be those of a run that nobody disturbed, and no worker may outlive its parent by two seconds. Every
other time that a run is resumed, what failed is tried again, too.

python -m tests.fuzz.kills --count 100
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

from tests.engine.processes import is_running, workers

FILES = 4000
KILLS = 4  # a run: with all of them in one, most would hit a run that has nothing left to do
ORPHAN_SECONDS = 2.0


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
    arguments = [
        "infer",
        "--batch",
        str(pictures),
        "--output",
        str(output),
        "--batch-size",
        "8",
        "--workers",
        "2",
        *more,
    ]
    return [sys.executable, "-m", "fmengine", *arguments]


def rows(output: Path) -> list[str]:
    """What a file holds, in an order that does not depend on when it was written."""
    if output.suffix == ".parquet":
        import pyarrow.parquet

        return sorted(map(str, pyarrow.parquet.read_table(output).to_pylist()))
    return sorted(output.read_text().splitlines())


def kill_parent(pictures: Path, output: Path, rng: random.Random) -> int:
    """Begin a run and kill it, over and over; then let it finish. Returns how many kills hit a run at work."""
    hits = 0
    for number in range(KILLS):
        more = ["--retry-failed"] if number % 2 else []
        process = subprocess.Popen(infer(pictures, output, "--resume", *more), stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, 1.2))
        left = workers(process.pid)
        hits += process.poll() is None
        process.kill()
        process.wait()
        until = time.monotonic() + ORPHAN_SECONDS
        while any(map(is_running, left)):
            if time.monotonic() > until:
                sys.exit(f"workers {left} outlive their parent")
            time.sleep(0.01)
    subprocess.run(infer(pictures, output, "--resume"), stderr=subprocess.DEVNULL, check=False)
    return hits


def kill_workers(pictures: Path, output: Path, rng: random.Random) -> int:
    """Kill random workers of a run that goes on. Returns how many were killed."""
    process = subprocess.Popen(infer(pictures, output), stderr=subprocess.DEVNULL)
    hits = 0
    while process.poll() is None:
        time.sleep(rng.uniform(0.02, 0.2))
        if hits < KILLS and (found := sorted(workers(process.pid))):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                hits += 1
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = make_pictures(folder / "pictures")
        for kill, what in (kill_parent, "parent"), (kill_workers, "random worker"):
            kills = runs = differ = 0
            while kills < options.count:
                suffix = ("jsonl", "csv", "parquet")[runs % 3]
                whole = folder / f"whole.{suffix}"
                if not whole.exists():
                    threads = infer(pictures, whole, "--workers", "threads")
                    subprocess.run(threads, stderr=subprocess.DEVNULL, check=False)
                output = folder / f"{what}{runs}.{suffix}"
                kills += kill(pictures, output, random.Random(options.seed + runs))
                if rows(output) != rows(whole):
                    differ += 1
                    print(f"{output.name}: {len(rows(output))} rows, not {len(rows(whole))}, or others")
                runs += 1
            print(f"{kills} kills of the {what} at work; {differ} of {runs} outputs differ", flush=True)
            wrong |= differ > 0
    sys.exit(wrong)


if __name__ == "__main__":
    main()
