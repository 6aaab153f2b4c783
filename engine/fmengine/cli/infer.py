"""`fmengine infer`: label pictures, one row each."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from ..backend.registry import BACKENDS
from ..engine import Engine
from ..image.pillow import raise_pillow_limit
from ..jobs.face_rows import FaceTally, to_face_text
from ..jobs.journal import Target
from ..jobs.output import claim, open_output
from ..jobs.rows import Tally, to_text
from ..jobs.sources import STDIN, exclude, exclude_matching, expand, require_paths
from ..jobs.state import list_output_files
from ..options import FaceOptions, Isolation, Limits
from ..pages.images import check_folder, match_thumbnails
from ..pipeline.executor import Feed
from ..system.files import check_target, get_temporary_path
from ..system.lock import get_lock_path, hold
from .console import inform, logger, to_json
from .explain import check_explain, draw_explanations, take_explain_option
from .faces import answer_photographs, draw_photographs, take_face_options
from .parameters import Size, allow_untrusted_engine, parse_threshold, parse_workers
from .run import answer_pictures, draw_bar, look_ahead, prepare_workers, summarise, write_rows
from .streams import silence_decoders

SOME_FAILED = 3


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
    help="Write rows to x.jsonl, x.csv or x.parquet, as results arrive, and not to stdout.",
)
@click.option("--resume", is_flag=True, help="Go on with an output file after any interruption.")
@click.option("--retry-failed", is_flag=True, help="With --resume: also try again what failed before.")
@click.option("--overwrite", is_flag=True, help="Replace output files, reports and photographs that exist.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write a contact sheet, x.html, to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON lines.")
@take_explain_option
@take_face_options
@click.option("--model", help="A model file, an engine file, or the name of a shipped model.")
@allow_untrusted_engine
@click.option(
    "--unsure-below",
    metavar="CONFIDENCE",
    callback=parse_threshold,
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
@click.option(
    "--workers",
    callback=parse_workers,
    default="auto",
    show_default=True,
    metavar="NUMBER|auto|threads",
    help="Processes that decode, and on a CPU answer; `auto` starts one a core where a job is long.",
)
@click.option(
    "--in-flight", type=click.IntRange(1), help="Pictures in flight at most.  [default: some batches a thread]"
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=Limits().max_pixels,
    show_default=True,
    help="Of a picture, before it is decoded; those of formats that cost more to decode count more than once.",
)
@click.option("--max-bytes", type=Size(), default="256M", show_default=True, help="Of a file; more is not read.")
@click.option(
    "--isolate",
    is_flag=True,
    help="Decode in worker processes: a decoder that crashes, hangs or takes all memory costs one picture.",
)
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), help="Of a file, isolated.  [default: 10]")
@click.option("--max-memory", type=Size(), help="Of a file, isolated.  [default: 2G]")
def infer(
    sources: tuple[str, ...],
    folders: tuple[str, ...],
    output: Path | None,
    resume: bool,
    retry_failed: bool,
    overwrite: bool,
    report: Path | None,
    as_json: bool,
    faces: FaceOptions | None,
    annotate: Path | None,
    explain: Path | None,
    model: str | None,
    allow_untrusted_engine: bool,
    unsure_below: float | Literal["recommended"],
    backend: str,
    jpeg: Literal["cpu", "gpu"],
    scaled_jpeg: bool,
    device: int,
    batch_size: int,
    threads: int,
    workers: int | Literal["auto", "threads"],
    in_flight: int | None,
    max_pixels: int,
    max_bytes: int,
    isolate: bool,
    max_seconds: float | None,
    max_memory: int | None,
) -> None:
    """Label pictures: SOURCE is a file, a folder, a glob, or `-` for a list of paths on stdin.

    One line a picture: path, label, confidence; with --faces one a face: path, number, label, confidence, box. A
    picture that cannot be read is a row too; the exit code is then 3.
    """
    if not sources and not folders:
        raise click.UsageError("nothing to do: give a SOURCE, or --batch DIR")
    _check_resume(output, resume=resume, retry_failed=retry_failed, overwrite=overwrite)
    limits = Limits(max_bytes, max_pixels)
    raise_pillow_limit(max_pixels)
    isolation = _make_isolation(isolate, max_seconds, max_memory)
    if isolation is not None and workers == "threads":
        raise click.UsageError("--isolate decodes in worker processes: leave --workers threads out")
    if isolation is not None and jpeg == "gpu":
        raise click.UsageError("--isolate decodes in worker processes on the CPU: leave --jpeg gpu out")
    check_explain(explain, faces=faces is not None, isolated=isolate)
    with ExitStack() as stack:
        # Whatever could keep the rows from being written is found before the work.
        target = _claim_files(stack, output, report, resume=resume, overwrite=overwrite)
        for folder in filter(None, (annotate, explain)):
            from ..jobs.picture_folder import prepare_folder  # here: most runs draw none

            prepare_folder(folder, [*folders, *sources], overwrite=overwrite or resume)
        listed = expand(sources, folders=folders)
        unwritten = exclude(listed, _list_written(output, report))
        if report is not None:
            unwritten = exclude_matching(unwritten, match_thumbnails(report))
        paths = require_paths(unwritten, folders)
        feed: Feed = "auto" if STDIN in sources else "caller"
        if feed == "caller":
            paths, is_long = look_ahead(paths)
            if faces is None and (is_long or isolation is not None):
                prepare_workers(workers, threads, isolated=isolation is not None)
        engine = _load_engine(
            stack,
            model,
            backend,
            device=device,
            max_batch=batch_size,
            threads=threads,
            workers=workers,
            limits=limits,
            isolate=isolation,
            unsure_below=unsure_below,
            jpeg=jpeg,
            scaled_jpeg=scaled_jpeg,
            hint="latency" if len(sources) == 1 and not folders and os.path.isfile(sources[0]) else "throughput",
            allow_untrusted_engine=allow_untrusted_engine,
        )
        file = None
        if target is not None:
            identity = _identify(engine, faces) | {"jpeg": jpeg, "scaled_jpeg": scaled_jpeg}
            opened = open_output(target, engine.spec.labels, identity, retry_failed=retry_failed)
            file = stack.enter_context(opened)
        pending: Iterable[str] = file.select_unfinished(paths) if file else paths
        if isinstance(listed, list):
            pending = list(pending)
        bar = draw_bar(listed, pending, file)
        if faces is None:
            rows, tally, to_line = answer_pictures(engine, pending, in_flight, feed), Tally(), to_text
        else:
            rows = answer_photographs(engine, pending, faces, in_flight, feed)
            tally, to_line = FaceTally(), to_face_text
        keep = any(path is not None for path in (report, annotate, explain))
        kept = write_rows(rows, file, bar, tally, to_json if as_json else to_line, keep=keep)
        read_rows = file.read_rows if file else lambda: kept
        maps = {} if explain is None else draw_explanations(explain, read_rows, engine, [*folders, *sources])
        thumbnails = None
        if report is not None:
            write = _choose_report(faces, isolation, maps)
            thumbnails = write(report, read_rows(), engine.spec, engine.backend.describe(), limits)
        if annotate is not None:
            draw_photographs(annotate, read_rows, engine, [*folders, *sources])
        summarise(tally, file)
    named = {
        "rows": output,
        "report": report,
        "its thumbnails": thumbnails,
        "annotated": annotate,
        "explained": explain,
    }
    for name, path in named.items():
        if path:
            inform(f"{name}: {path}")
    if tally.failed or (file and file.failed):
        sys.exit(SOME_FAILED)


def _load_engine(stack: ExitStack, model: str | None, backend: str, **options: Any) -> Engine:
    """Load an engine until the stack is closed, log what it is, and keep decoders off stderr meanwhile."""
    engine = stack.enter_context(Engine.load(model, backend, **options))
    fields = {"model": str(engine.model_path), "model_sha256": engine.spec.file_sha256}
    logger.info("model loaded", extra={"fields": fields | engine.backend.describe()})
    if not logger.isEnabledFor(logging.DEBUG):
        stack.enter_context(silence_decoders())
    return engine


def _identify(engine: Engine, faces: FaceOptions | None) -> dict[str, Any]:
    """Return what an engine's answers depend on, by which `--resume` recognises a run.

    Whether decoding is isolated is left out: a run that crashed may be resumed with `--isolate`.
    """
    made_by = {"model": engine.spec.file_sha256, "backend": engine.backend.name}
    made_by |= {"unsure_below": engine.unsure_below} | asdict(engine.limits)
    return made_by | ({"faces": None} if faces is None else {"faces": True} | asdict(faces))


def _choose_report(
    faces: FaceOptions | None, isolation: Isolation | None, maps: dict[str, Path]
) -> Callable[..., Path | None]:
    """Return what writes the contact sheet; imported here, for most runs write none."""
    if faces is not None:
        from ..jobs.face_report import write_face_report

        return write_face_report
    from ..jobs.report import write_report

    return partial(write_report, isolate=isolation, maps=maps)


def _make_isolation(isolate: bool, seconds: float | None, memory: int | None) -> Isolation | None:
    default = Isolation()
    if isolate:
        return Isolation(seconds or default.seconds, memory or default.memory)
    if seconds or memory:
        raise click.UsageError("--max-seconds and --max-memory limit the workers of --isolate: add it")
    return None


def _check_resume(output: Path | None, *, resume: bool, retry_failed: bool, overwrite: bool) -> None:
    if resume and output is None:
        raise click.UsageError("--resume goes on with an output file: give --output x.jsonl")
    if retry_failed and not resume:
        raise click.UsageError("--retry-failed goes on with an output file: add --resume")
    if resume and overwrite:
        raise click.UsageError("--resume goes on with an output file, --overwrite replaces it: give one of them")


def _claim_files(
    stack: ExitStack, output: Path | None, report: Path | None, *, resume: bool, overwrite: bool
) -> Target | None:
    """Check that the files of this run can be written, and hold them until the stack is closed."""
    if report is not None:
        stack.enter_context(hold(report))
        check_target(report, (".html",), overwrite=overwrite or resume)
        check_folder(report, overwrite=overwrite or resume)
    return None if output is None else stack.enter_context(claim(output, resume=resume, overwrite=overwrite))


def _list_written(output: Path | None, report: Path | None) -> list[Path]:
    """List the files that this run writes, and those that one before it may have left behind."""
    own = [] if report is None else [report, get_temporary_path(report), get_lock_path(report)]
    return own if output is None else own + list_output_files(output)
