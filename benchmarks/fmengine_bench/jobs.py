"""Whole jobs by an outside clock: from the start of a process to the file of answers, ours and peers' in turn.

    python -m fmengine_bench.jobs faces/ --against torch,fer,face-api

Ours is `fmengine infer --batch FOLDER --output rows.jsonl`, as a user runs it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from fmengine.cli import main
from fmengine.cores import usable_cores
from fmengine.errors import UnavailableError
from fmengine.sources import walk

from .contenders import OURS, network_for
from .peers import PEERS, device_for, folder_of, installed
from .peers import command_of as start_of
from .timing import figure


def command_of(name: str, folder: Path, output: Path, options: tuple[str, ...], device: str) -> list[str]:
    """The command of a whole job.

    Raises:
        UnavailableError: for a peer that is unknown or not installed.
    """
    if name == OURS:
        job = ["infer", "--batch", str(folder), "--output", str(output), "--overwrite", *options]
        return [sys.executable, "-m", "fmengine", *job]
    if name not in PEERS or not installed(PEERS[name]):
        raise UnavailableError(
            f"{name} is not installed; available with `fmengine bench install`: {', '.join(PEERS)}"
        )
    peer = PEERS[name]
    command = [*start_of(peer), str(folder), str(output), "--threads", str(usable_cores())]
    command += ["--device", device_for(peer, device)]
    model = network_for(name)
    command += ["--model", str(model)] if model else []
    command += [f"--{flag}" for flag in ("compile", "half") if peer.options.get(flag)]
    return command + (["--library", peer.options["library"]] if "library" in peer.options else [])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--against", metavar="PEER,…", default="", help=f"Others: {', '.join(PEERS)}.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Of PyTorch and ONNX Runtime: cpu, or cuda:N.")
@click.option("--option", "options", multiple=True, help="Of `fmengine infer`, such as --scaled-jpeg.")
def jobs(folder: Path, against: str, rounds: int, device: str, options: tuple[str, ...]) -> None:
    """Time whole jobs on the pictures of FOLDER, in turn."""
    names = [OURS, *(name.strip() for name in against.split(",") if name.strip())]
    pictures = sum(1 for _ in walk(str(folder)))
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
                click.echo(f"… round {number + 1}, {name}: {taken[name][-1]:.2f} s", err=True)
    click.echo(f"{pictures} pictures, process start to file, {usable_cores()} threads, {rounds} rounds")
    for name in names:
        seconds = figure(taken[name])
        times = figure([theirs / ours for theirs, ours in zip(taken[name], taken[OURS], strict=True)])
        click.echo(
            f"{name:<16}{seconds.median:9.2f} s{pictures / seconds.median:12,.0f} pictures/s"
            f"{times.median:9.1f} ×  [{times.low:.1f}, {times.high:.1f}]"
        )


if __name__ == "__main__":
    main(jobs, "python -m fmengine_bench.jobs")
