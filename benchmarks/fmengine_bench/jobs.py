"""Time whole jobs by an outside clock: from a process's start to the file of answers, ours and peers' in turn.

    python -m fmengine_bench.jobs faces/ --against torch,fer,face-api

Ours is `fmengine infer --batch FOLDER --output rows.jsonl`, as a user runs it.
"""

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

from .contenders import OURS, network_for
from .peers import PEERS, device_for, folder_of, names_in, require
from .peers import command_of as start_of
from .timing import figure


def command_of(name: str, folder: Path, output: Path, options: tuple[str, ...], device: str) -> list[str]:
    """Return the command of a whole job."""
    if name == OURS:
        job = ["infer", "--batch", str(folder), "--output", str(output), "--overwrite", *options]
        return [sys.executable, "-m", "fmengine", *job]
    peer = PEERS[name]
    command = [*start_of(peer), str(folder), str(output), "--threads", str(usable_cores())]
    command += ["--device", device_for(peer, device)]
    model = network_for(name)
    command += ["--model", str(model)] if model else []
    command += [f"--{flag}" for flag in ("compile", "half") if peer.options.get(flag)]
    return command + (["--library", peer.options["library"]] if "library" in peer.options else [])


def device_name(context: click.Context, option: click.Parameter, value: str) -> str:
    """Check a device, as PyTorch names it."""
    if not re.fullmatch(r"cpu|cuda:\d+", value):
        raise click.BadParameter(f"{value!r}; expected cpu, or cuda:N, such as cuda:0")
    return value


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--against", metavar="PEER,…", default="", help=f"Others: {', '.join(PEERS)}.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=device_name,
    help="Of PyTorch and ONNX Runtime: cpu, or cuda:N.",
)
@click.option("--option", "options", multiple=True, help="Of `fmengine infer`, such as --scaled-jpeg.")
def jobs(folder: Path, against: str, rounds: int, device: str, options: tuple[str, ...]) -> None:
    """Time whole jobs on the pictures of FOLDER, in turn."""
    peers = names_in(against)
    require(peers, device)
    names = [OURS, *peers]
    pictures = sum(1 for _ in walk(str(folder)))
    if not pictures:
        raise DataError(f"no files in {folder}; expected pictures")
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "rows.jsonl"
        commands = {name: command_of(name, folder.resolve(), output, options, device) for name in names}
        for number in range(rounds):
            for name, command in commands.items():
                where = None if name == OURS else folder_of(PEERS[name])
                began = time.perf_counter()
                done = subprocess.run(command, cwd=where, capture_output=True, text=True)
                taken[name].append(time.perf_counter() - began)
                rows = output.read_text(encoding="utf-8").count("\n") if output.exists() else 0
                if rows != pictures:
                    raise UnavailableError(f"{name} wrote {rows} rows of {pictures}: {done.stderr.strip()[-500:]}")
                output.unlink()
                inform(f"… round {number + 1}, {name}: {taken[name][-1]:.2f} s")
    print_data(f"{pictures} pictures, process start to file, {usable_cores()} threads, {rounds} rounds")
    for name in names:
        seconds = figure(taken[name])
        times = figure([theirs / ours for theirs, ours in zip(taken[name], taken[OURS], strict=True)])
        print_data(
            f"{name:<16}{seconds.median:9.2f} s{pictures / seconds.median:12,.0f} pictures/s"
            f"{times.median:9.1f} ×  [{times.low:.1f}, {times.high:.1f}]"
        )


if __name__ == "__main__":
    main(jobs, "python -m fmengine_bench.jobs")
