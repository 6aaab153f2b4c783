"""`fmengine infer`: label pictures, one row each."""

import json
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import click
from tqdm import tqdm

from ..backends import BACKENDS
from ..engine import Engine
from ..errors import FmengineError, OutputError
from ..output import OutputFile, state_of, temporary_of
from ..rows import Row, to_row, to_text
from ..sources import expand, walk

SOME_FAILED = 3


def _threshold(context: click.Context, option: click.Parameter, value: str) -> float | Literal["recommended"]:
    if value == "recommended":
        return "recommended"
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise click.BadParameter(f"{value!r}; expected a confidence from 0 to 1, or `recommended`")
    return threshold


@click.command()
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@click.option(
    "--batch",
    "folders",
    multiple=True,
    metavar="DIR",
    help="A folder: every regular file below it is a row, hidden ones too.  May be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write rows to x.jsonl or x.csv, which grows as results arrive, and not to stdout.",
)
@click.option("--resume", is_flag=True, help="Go on with an output file after any interruption.")
@click.option("--overwrite", is_flag=True, help="Replace an output file or report that exists.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write a contact sheet, x.html, to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON lines.")
@click.option("--model", help="A model file, or the name of a shipped model.")
@click.option(
    "--unsure-below",
    metavar="CONFIDENCE",
    callback=_threshold,
    default="0",
    help="Answer `unsure` under this confidence, 0 to 1; `recommended` takes the model's own.  [default: never]",
)
@click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True)
@click.option(
    "--jpeg",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where JPEG files are decoded; a GPU's pixels may differ by some levels.",
)
@click.option(
    "--scaled-jpeg",
    is_flag=True,
    help="Decode large JPEG files at 1/2 to 1/8 of their size: faster; pixels differ by some levels.",
)
@click.option("--device", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Pictures a run of the network.",
)
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Of the network on a CPU.  [default: all cores]"
)
def infer(
    sources: tuple[str, ...],
    folders: tuple[str, ...],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    report: Path | None,
    as_json: bool,
    model: str | None,
    unsure_below: float | Literal["recommended"],
    backend: str,
    jpeg: Literal["cpu", "gpu"],
    scaled_jpeg: bool,
    device: int,
    batch_size: int,
    threads: int,
) -> None:
    """Label pictures: SOURCE is a file, a folder, a glob, or `-` for a list of paths on stdin.

    One line a picture: path, label, confidence. A picture that cannot be read is a row too; the exit code
    is then 3.
    """
    if not sources and not folders:
        raise click.UsageError("nothing to do: give a SOURCE, or --batch DIR")
    if resume and output is None:
        raise click.UsageError("--resume goes on with an output file: give --output x.jsonl")
    if report is not None:
        _check_report(report, replace=overwrite or resume)
    paths = _first_or_error(_without(_paths(sources, folders), _written(output, report)), folders)
    with ExitStack() as stack:
        engine = Engine.load(
            model,
            backend,
            device=device,
            max_batch=batch_size,
            threads=threads,
            unsure_below=unsure_below,
            jpeg=jpeg,
            scaled_jpeg=scaled_jpeg,
        )
        stack.enter_context(engine)
        file = None
        if output is not None:
            identity: dict[str, Any] = {"model": engine.spec.file_sha256, "backend": engine.backend.name}
            identity |= {"unsure_below": engine.unsure_below, "scaled_jpeg": scaled_jpeg}
            opened = OutputFile(output, engine.spec.labels, identity, resume=resume, overwrite=overwrite)
            file = stack.enter_context(opened)
        rows = _rows(engine, _unfinished(paths, file.finished) if file else paths)
        counts, kept = _consume(rows, file, as_json=as_json, keep=report is not None)
        if report is not None:
            from ..report import write_report  # a few milliseconds that most runs need not pay

            write_report(report, file.rows() if file else kept, engine.spec, engine.backend.describe())
        _summarise(counts, file, report)
    if counts["error"] or (file and file.failed):
        sys.exit(SOME_FAILED)


def _consume(
    rows: Generator[Row, None, None], file: OutputFile | None, *, as_json: bool, keep: bool
) -> tuple[Counter[str], list[Row]]:
    """Write each row to the file or to stdout as it arrives; count labels, and keep rows for a report."""
    counts: Counter[str] = Counter()
    kept: list[Row] = []
    # A bar over rows printed on the same terminal would only break them up.
    hidden = True if file is None and sys.stdout.isatty() else None
    try:
        with closing(rows), tqdm(rows, unit=" pictures", disable=hidden) as bar:
            for row in bar:
                counts[row["label"] or "error"] += 1
                if file is not None:
                    file.write(row)
                    continue
                click.echo(json.dumps(row, ensure_ascii=False) if as_json else to_text(row))
                if keep:
                    kept.append(row)
    except KeyboardInterrupt:
        if file is not None:
            click.echo(f"fmengine: {file.path} holds every finished row; go on with --resume", err=True)
        raise
    return counts, kept


def _check_report(report: Path, *, replace: bool) -> None:
    """Notice before the work what would be in the way after it."""
    if report.suffix != ".html":
        raise OutputError(f"cannot write {report}; the name must end in .html")
    if not os.path.isdir(report.parent):
        raise OutputError(f"cannot write {report}; {report.parent} is no folder")
    if os.path.exists(report) and not replace:
        raise OutputError(f"{report} exists; replace it with --overwrite")


def _written(output: Path | None, report: Path | None) -> list[Path]:
    """What this run writes, and what one before it may have left behind."""
    own = [] if report is None else [report]
    own += [] if output is None else [output, state_of(output)]
    return own + [temporary_of(path) for path in own]


def _without(paths: Iterable[str], own: list[Path]) -> Iterator[str]:
    """Leave out our own files: they are no pictures although they may lie in a folder of pictures."""
    names, places = {path.name for path in own}, {_place(path) for path in own}
    return (path for path in paths if os.path.basename(path) not in names or _place(path) not in places)


def _place(path: str | Path) -> str:
    """One name for a file, however its folder was named."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _paths(sources: tuple[str, ...], folders: tuple[str, ...]) -> Iterator[str]:
    for folder in folders:
        if not os.path.isdir(folder):
            what = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise FmengineError(f"--batch {folder} {what}; expected a folder of pictures")
    return chain(chain.from_iterable(map(walk, folders)), expand(sources))


def _first_or_error(paths: Iterator[str], folders: tuple[str, ...]) -> Iterable[str]:
    """Notice that there is nothing to do before a model is loaded or a file is made."""
    first = next(paths, None)
    if first is None:
        raise FmengineError(f"no files in {', '.join(folders) or 'the sources given'}; expected pictures")
    return chain([first], paths)


def _unfinished(paths: Iterable[str], finished: Counter[str]) -> Iterator[str]:
    """Leave out each path as often as it has a row."""
    left = finished.copy()
    for path in paths:
        if left[path]:
            left[path] -= 1
        else:
            yield path


def _rows(engine: Engine, paths: Iterable[str]) -> Generator[Row, None, None]:
    for result in engine.predict_many(paths):
        assert isinstance(result.source, str)
        yield to_row(result.source, result)


def _summarise(counts: Counter[str], file: OutputFile | None, report: Path | None) -> None:
    parts = [f"{count} {label}" for label, count in sorted(counts.items()) if label != "error"]
    text = ", ".join([*parts, f"{counts['error']} failed"])
    earlier = f"; {file.finished.total()} had a row already" if file and file.finished else ""
    click.echo(f"{counts.total()} pictures: {text}{earlier}", err=True)
    for name, path in (("rows", file and file.path), ("report", report)):
        if path:
            click.echo(f"{name}: {path}", err=True)
