"""Times whole jobs from outside: from the start of a process to the file of answers, ours and peers' in turn.

    python -m fmengine_bench.jobs faces/ --against torch,fer,face-api --base ../fmengine-before

Ours is `fmengine infer --batch FOLDER --output rows.jsonl`, as a user runs it; `base` is the same of another
checkout: old and new on one machine, in turn.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from fmengine.cli import main
from fmengine.cli.console import inform, print_data
from fmengine.errors import DataError, UnavailableError
from fmengine.jobs.sources import walk
from fmengine.system.cores import usable_cores

from .contenders import OURS, prepare_network
from .peers import PEERS, check_peers, find_folder, parse_names, select_device
from .peers import build_command as build_start
from .timing import estimate_median

BASE = "base"


def build_command(name: str, folder: Path, output: Path, options: tuple[str, ...], device: str) -> list[str]:
    """Build the command of a whole job."""
    if name in (OURS, BASE):
        job = ["infer", "--batch", str(folder), "--output", str(output), "--overwrite", *options]
        return [sys.executable, "-P", "-m", "fmengine", *job]  # -P: never what lies in the current folder
    peer = PEERS[name]
    command = [*build_start(peer), str(folder), str(output), "--threads", str(usable_cores())]
    command += ["--device", select_device(peer, device)]
    model = prepare_network(name)
    command += ["--model", str(model)] if model else []
    command += [f"--{flag}" for flag in ("compile", "half") if peer.options.get(flag)]
    return command + (["--library", peer.options["library"]] if "library" in peer.options else [])


def make_environment(base: Path) -> dict[str, str]:
    """Make the environment in which Python imports the engine of another checkout.

    Raises:
        DataError: if it imports another one all the same, whose times would pass for the base's.
    """
    engine = (base / "engine").resolve()
    paths = [str(engine), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    program = "import fmengine; print(fmengine.__file__, end='')"
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    if done.returncode or not Path(done.stdout).is_relative_to(engine):
        found = done.stdout or done.stderr.strip()[-500:]
        raise DataError(f"{base} is no checkout of fmengine: Python imports {found}, and nothing in {engine}")
    return environment


def check_device(context: click.Context, option: click.Parameter, value: str) -> str:
    """Check that a device is named as PyTorch names it."""
    if not re.fullmatch(r"cpu|cuda:\d+", value):
        raise click.BadParameter(f"{value!r}; expected cpu, or cuda:N, such as cuda:0")
    return value


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--against", metavar="PEER,…", default="", help=f"Others: {', '.join(PEERS)}.")
@click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Another checkout of fmengine, run in turn.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=check_device,
    help="Of PyTorch and ONNX Runtime: cpu, or cuda:N.",
)
@click.option("--option", "options", multiple=True, help="Of `fmengine infer`, such as --scaled-jpeg.")
def jobs(
    folder: Path, against: str, base: Path | None, rounds: int, device: str, options: tuple[str, ...]
) -> None:
    """Time whole jobs on the pictures of FOLDER, in turn."""
    peers = parse_names(against)
    check_peers(peers, device)
    names = [OURS, *([BASE] if base else []), *peers]
    environments = {BASE: make_environment(base)} if base else {}
    pictures = sum(1 for _ in walk(str(folder)))
    if not pictures:
        raise DataError(f"no files in {folder}; expected pictures")
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "rows.jsonl"
        commands = {name: build_command(name, folder.resolve(), output, options, device) for name in names}
        for number in range(rounds):
            for name, command in commands.items():
                where = find_folder(PEERS[name]) if name in PEERS else None
                began = time.perf_counter()
                done = subprocess.run(
                    command, cwd=where, env=environments.get(name), capture_output=True, text=True
                )
                taken[name].append(time.perf_counter() - began)
                rows = output.read_text(encoding="utf-8").count("\n") if output.exists() else 0
                if rows != pictures:
                    raise UnavailableError(f"{name} wrote {rows} rows of {pictures}: {done.stderr.strip()[-500:]}")
                output.unlink()
                inform(f"… round {number + 1}, {name}: {taken[name][-1]:.2f} s")
    print_data(f"{pictures} pictures, process start to file, {usable_cores()} threads, {rounds} rounds")
    for name in names:
        seconds = estimate_median(taken[name])
        times = estimate_median([theirs / ours for theirs, ours in zip(taken[name], taken[OURS], strict=True)])
        print_data(
            f"{name:<16}{seconds.median:9.2f} s{pictures / seconds.median:12,.0f} pictures/s"
            f"{times.median:9.2f} ×  [{times.low:.2f}, {times.high:.2f}]"
        )


if __name__ == "__main__":
    main(jobs, "python -m fmengine_bench.jobs")
