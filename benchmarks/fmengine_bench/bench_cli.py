"""`fmengine bench`, `fmengine bench compare` and `fmengine bench install`."""

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from fmengine.backend.registry import BACKENDS
from fmengine.cli.console import inform, print_data, print_json, to_json, warn
from fmengine.cli.parameters import allow_untrusted_engine, parse_workers
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.jobs.sources import walk
from fmengine.pipeline.worker_count import choose_worker_count
from fmengine.system.cores import usable_cores
from fmengine.system.files import check_target, write_file

from .peers import PEERS, check_peers, parse_names

CHECK_FAILED = 1


@click.group(invoke_without_command=True)
@click.pass_context
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder; one for each label in it gives accuracies too.  [default: drawn ones, that are no faces]",
)
@click.option("--limit", type=click.IntRange(1), default=2000, show_default=True, help="Pictures at most.")
@click.option("--model", help="A model file, an engine file, or the name of a shipped model.")
@allow_untrusted_engine
@click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True)
@click.option("--device", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of the CPU.  [default: all cores]")
@click.option(
    "--workers",
    callback=parse_workers,
    metavar="N|auto|threads",
    default="auto",
    show_default=True,
    help="Processes that answer for files: how many, as many as a long job takes, or threads in their place.",
)
@click.option("--max-batch", type=click.IntRange(1, 4096), default=64, show_default=True)
@click.option("--against", metavar="PEER,…", default="", help=f"Others, in turn: {', '.join(PEERS)}.")
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True, help="Of each measurement."
)
@click.option(
    "--least", "min_calls", type=click.IntRange(10), default=1000, show_default=True, help="Calls of each latency."
)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Of turns.")
@click.option("--deadline", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Of the server, ms.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write the report as a .json file, for `bench compare`."
)
@click.option("--html", "page", type=click.Path(path_type=Path), help="Also write an .html page with plots.")
@click.option("--overwrite", is_flag=True, help="Replace a report or page that exists.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout.")
def bench(
    context: click.Context,
    pictures: Path | None,
    limit: int,
    model: str | None,
    allow_untrusted_engine: bool,
    backend: str,
    device: int,
    threads: int,
    workers: int | Literal["auto", "threads"],
    max_batch: int,
    against: str,
    seconds: float,
    min_calls: int,
    rounds: int,
    deadline: float,
    output: Path | None,
    page: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure this machine: parity first, then latency by stage, scenarios, and the distance to its limit.

    Exits with 1, and gives no figures, if the answers are not right.

    Example: fmengine bench --pictures faces/val --against torch,fer --html bench.html
    """
    if context.invoked_subcommand is not None:
        return
    load = os.getloadavg()[0]  # before anything of ours adds to it
    peers = parse_names(against)
    check_peers(peers)
    for path, suffix in ((output, ".json"), (page, ".html")):
        if path is not None:
            check_target(path, [suffix], overwrite=overwrite)
    files = [] if pictures is None else _pictures(pictures, limit)
    # Here and not above: `fmengine bench --help` does without. What the end needs is imported before the work.
    from .bench import Effort, run
    from .bench_page import format_page
    from .bench_text import as_text
    from .drawn import draw_pictures
    from .machine import warn_of_load

    for warning in warn_of_load(load):
        warn(f"warning: {warning}")
    if workers == "auto":  # from the first picture on: what is measured stands for a long job
        workers = choose_worker_count("auto", threads or usable_cores()).number or "threads"
    effort = Effort(seconds, min_calls, rounds, deadline, threads or usable_cores())
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine.load(
            model,
            backend,
            device=device,
            threads=threads,
            workers=workers,
            max_batch=max_batch,
            queue_size=4096,
            allow_untrusted_engine=allow_untrusted_engine,
        ) as engine,
    ):
        targets = {} if pictures is None else _targets(files, pictures, engine.spec.labels)
        paths = files or draw_pictures(Path(folder))
        report = run(engine, paths, effort, peers, targets, lambda text: inform(f"… {text}"), load)
    document = to_json(report.as_document(), indent=2)
    print_data(document if as_json else as_text(report))
    if output is not None:
        write_file(output, document + "\n")
    if page is not None:
        write_file(page, format_page(report))
    if not report.verdict.passed:
        sys.exit(CHECK_FAILED)


def _pictures(root: Path, limit: int) -> list[str]:
    """List pictures spread over a folder."""
    files = list(walk(str(root)))
    if not files:
        raise DataError(f"no files in {root}; expected pictures")
    return files[:: -(-len(files) // limit)]


def _targets(files: list[str], root: Path, labels: tuple[str, ...]) -> dict[str, str]:
    """Find the label of each picture in a folder that bears a label's name."""
    folders = {path: Path(path).relative_to(root).parts[0] for path in files}
    return {path: folder for path, folder in folders.items() if folder in labels}


@bench.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The changes as JSON.")
def compare(before: Path, after: Path, as_json: bool) -> None:
    """Show what changed from report BEFORE to AFTER; exits with 1 where it is worse beyond noise."""
    from .changes import as_text, compare_reports, list_differences, load

    old, new = load(before), load(after)
    for difference in list_differences(old, new):
        warn(f"note: not the same machine or settings: {difference}")
    for name, report in (("before", old), ("after", new)):
        for warning in report["warnings"]:
            warn(f"note: {name}: {warning}")
    changes = compare_reports(old, new)
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        print_data(as_text(changes))
    worse = [change for change in changes if change.worse]
    inform(f"{len(worse)} of {len(changes)} figures are worse beyond noise")
    if worse:
        sys.exit(CHECK_FAILED)


@bench.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(list(PEERS)), metavar="PEER...")
def install(names: tuple[str, ...]) -> None:
    """Install peers, each into an environment of its own: torch, fer, face-api, …"""
    from .peers import find_folder, install

    for peer in {PEERS[name].environment: PEERS[name] for name in names}.values():  # some share one
        install(peer)
        inform(f"{peer.name}: {find_folder(peer)}")
