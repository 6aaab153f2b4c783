"""`fmengine parity` and `fmengine eval`."""

import dataclasses
import sys
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import click

from fmengine.backend.registry import BACKENDS
from fmengine.cli.console import inform, print_data, print_json, warn
from fmengine.cli.parameters import allow_untrusted_engine
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.jobs.rows import escape_path
from fmengine.pages.images import check_folder
from fmengine.system.files import check_target, write_file
from fmengine.system.lock import hold
from fmengine_train.data import PARTS

CHECK_FAILED, SOME_FAILED = 1, 3


@click.command("eval")
@click.argument("model")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Only the share that `fmengine train --validation SHARE` holds out.  [default: all pictures]",
)
@click.option(
    "--part",
    type=click.Choice(["all", *PARTS]),
    default="all",
    show_default=True,
    help="Half of the pictures, by a hash of their names: choose a model on one, state its figures on the other.",
)
@click.option("--corruptions", is_flag=True, help="Also under blur, noise, JPEG, rotation, … at five severities.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    help="Also write a page, x.html: plots, and every picture, mistakes first.",
)
@click.option(
    "--explain",
    type=click.IntRange(1),
    metavar="N",
    help="With --html: show what the N surest mistakes rest on; some 360 runs of the network each.",
)
@click.option("--svg", type=click.Path(path_type=Path), help="Also write the plots alone, of one DATA, to x.svg.")
@click.option(
    "--rows",
    type=click.Path(path_type=Path),
    help="Also write a row a picture to x.jsonl, x.csv or x.parquet, with its label and whether it is right.",
)
@click.option(
    "--groups",
    type=click.Path(path_type=Path),
    help="Also by group: a CSV file that names pictures, with columns of your own such as age or camera.",
)
@click.option(
    "--gap",
    type=click.FloatRange(0, 1, min_open=True),
    help="With --groups: how probably a gap of this size would be found, such as 0.05.",
)
@click.option("--overwrite", is_flag=True, help="Replace a page, plots or rows that exist.")
@click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True)
@allow_untrusted_engine
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def evaluate(
    model: str,
    data: tuple[Path, ...],
    held_out: float,
    part: str,
    corruptions: bool,
    page: Path | None,
    explain: int | None,
    svg: Path | None,
    rows: Path | None,
    groups: Path | None,
    gap: float | None,
    overwrite: bool,
    backend: str,
    allow_untrusted_engine: bool,
    as_json: bool,
) -> None:
    """Score MODEL (a model or engine file, or a shipped model's name) on DATA, folders with one for each label.

    Example: fmengine eval alexnet-slim faces/val
    """
    from .answer_rows import check_rows_file, open_rows
    from .evaluate import as_text, evaluate
    from .groups import assign_groups, read_table

    if gap is not None and groups is None:
        raise click.UsageError("--gap is one between groups: add --groups groups.csv")
    if explain is not None and page is None:
        raise click.UsageError("--explain shows mistakes on the page: add --html x.html")
    if svg is not None and len(data) > 1:
        raise click.UsageError("--svg takes one DATA; --html shows several")
    for target, suffix in ((page, ".html"), (svg, ".svg")):
        if target is not None:
            check_target(target, [suffix], overwrite=overwrite)
    if rows is not None:
        check_rows_file(rows, overwrite=overwrite)
    if page is not None:
        check_folder(page, overwrite=overwrite)
    table = None if groups is None else read_table(groups)
    with (
        nullcontext() if page is None else hold(page),
        Engine.load(model, backend, allow_untrusted_engine=allow_untrusted_engine) as engine,
        nullcontext() if rows is None else open_rows(rows, engine.spec.labels) as write,
    ):
        grouped = None if table is None else assign_groups(table, data, engine.spec.labels)
        for note in grouped.notes if grouped else ():
            warn(note)
        columns = grouped.columns if grouped else ()
        evaluations = [evaluate(engine, root, held_out, part, corruptions, columns, gap) for root in data]
        if write is not None:
            for row in chain.from_iterable(evaluation.rows for evaluation in evaluations):
                write(row)
        if page is not None or svg is not None:
            from .page import format_plots, write_page

            if page is not None and (thumbnails := write_page(page, engine, evaluations, explain or 0)):
                inform(f"thumbnails of {page}: {thumbnails}")
            if svg is not None:
                write_file(svg, format_plots(evaluations[0]))
    if as_json:
        print_json(
            [
                {
                    "data": e.data,
                    "part": part,
                    **dataclasses.asdict(e.report),
                    "robustness": dataclasses.asdict(e.robustness) if e.robustness else None,
                    "groups": dataclasses.asdict(e.groups) if e.groups else None,
                    "unreadable": [escape_path(path) for path, _ in e.failures],
                }
                for e in evaluations
            ]
        )
    else:
        print_data("\n".join(map(as_text, evaluations)))
    failures = [failure for e in evaluations for failure in e.failures]
    for path, failure in failures:
        warn(f"left out {escape_path(path)}: {failure.message}")
    if failures:
        sys.exit(SOME_FAILED)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Path(path_type=Path))
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of real pictures; a folder for each label gives accuracies too.",
)
@click.option("--limit", type=click.IntRange(1), default=2000, show_default=True, help="Pictures at most.")
@allow_untrusted_engine
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def parity(
    checkpoint: Path,
    models: tuple[Path, ...],
    pictures: Path,
    limit: int,
    allow_untrusted_engine: bool,
    as_json: bool,
) -> None:
    """Compare CHECKPOINT in PyTorch with each exported MODEL, on pixels, logits and decisions.

    Exits with 1 if any of them is off by more than its tolerance.

    Example: fmengine parity runs/mine models/*.onnx --pictures faces/val
    """
    # Here and not above: `fmengine eval` does without torch.
    from fmengine_train.checkpoint import load_model

    from .parity import as_text, list_pictures, run_parity

    model, document = load_model(checkpoint)
    if not pictures.is_dir():
        raise DataError(f"{pictures} is no folder; expected one of pictures")
    files = list_pictures(pictures, tuple(document["labels"]))
    if not files:
        raise DataError(f"no files in {pictures}; expected pictures")
    files = files[:: max(1, -(-len(files) // limit))]
    engines = [Engine.load(path, allow_untrusted_engine=allow_untrusted_engine) for path in models]
    report = run_parity(model, document, engines, files)
    if as_json:
        print_json(dataclasses.asdict(report) | {"passed": report.passed})
    else:
        print_data(as_text(report))
        print_data("parity holds" if report.passed else "parity is broken")
    if not report.passed:
        sys.exit(CHECK_FAILED)
