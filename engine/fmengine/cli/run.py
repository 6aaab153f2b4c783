"""Run `fmengine infer`: answer the pictures, write and count their rows, and show how far it is."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Literal

from ..engine import Engine
from ..jobs.journal import Journal
from ..jobs.rows import Row, Tally, to_rows
from ..pipeline.chunk import find_failures
from ..pipeline.executor import Feed
from ..pipeline.worker_count import choose_worker_count
from ..system.cores import usable_cores
from .console import Progress, inform, logger, print_data
from .interrupt import end_soon_after_interrupt

LONG_JOB = 2000  # paths, of which workers are worth while where their server is forked ahead


def look_ahead(paths: Iterable[str]) -> tuple[Iterator[str], bool]:
    """Return the same paths, and whether they are so many that worker processes pay."""
    rest = iter(paths)
    first = list(islice(rest, LONG_JOB))
    return chain(first, rest), len(first) == LONG_JOB


def prepare_workers(workers: int | Literal["auto", "threads"], threads: int, *, isolated: bool) -> None:
    """Have a server of worker processes ready, if there will be any, before the engine is loaded.

    Here it can be forked: nothing of this process runs yet that could be harmed.
    """
    if choose_worker_count(workers, threads or usable_cores(), isolated=isolated).number:
        from ..pipeline.forkserver import fork_ahead  # needs Linux

        fork_ahead()


def answer_pictures(
    engine: Engine, paths: Iterable[str], in_flight: int | None, feed: Feed
) -> Generator[Sequence[Row], None, None]:
    """Yield the rows of pictures in order, some at a time, and log the failures.

    Args:
        engine: that answers.
        paths: of the pictures.
        in_flight: pictures that are in flight at most; None for the engine's default.
        feed: `caller` for a listing, which is read without waiting; `auto` for a list on stdin.
    """
    if feed == "caller":
        paths, is_long = look_ahead(paths)
        if is_long:
            engine.start_workers()
        else:
            paths = list(paths)  # by whose length the engine sees that the job is short
    for results in engine.predict_chunks(paths, in_flight=in_flight, feed=feed):
        for failure in find_failures(results):
            logger.info(failure.message, extra={"fields": {"path": failure.source, "kind": failure.kind}})
        yield to_rows(results)


def write_rows(
    chunks: Generator[Sequence[Row], None, None],
    file: Journal | None,
    bar: Progress,
    tally: Tally,
    format_row: Callable[[Row], str],
    *,
    keep: bool,
) -> list[Row]:
    """Write rows to the file, or else to stdout, as they arrive, and count them.

    Args:
        chunks: rows of whole pictures.
        file: that holds them; None for stdout.
        bar: of the pictures.
        tally: that counts them.
        format_row: makes the line of a row on stdout.
        keep: whether to return the rows that went to stdout.
    """
    kept: list[Row] = []
    with end_soon_after_interrupt(), closing(chunks), bar:
        try:
            for rows in chunks:
                before = tally.total
                tally.add(rows)
                if file is not None:
                    file.write(rows)
                else:
                    print_data("\n".join(map(format_row, rows)))
                    kept += rows if keep else ()
                bar.advance(tally.total - before)
        except KeyboardInterrupt:
            if file is not None:
                inform(f"fmengine: {file.path} holds every finished row; go on with --resume")
            raise
    return kept


def draw_bar(listed: Iterable[str], pending: Iterable[str], file: Journal | None) -> Progress:
    """Draw a bar on the terminal, unless rows are printed there; with a total where all sources are listed."""
    shown = file is not None or not sys.stdout.isatty()
    if isinstance(listed, list) and isinstance(pending, list):
        initial = max(0, len(listed) - len(pending))
        return Progress(initial + len(pending), "pictures", initial=initial, shown=shown)
    return Progress(None, "pictures", shown=shown)


def summarise(tally: Tally, file: Journal | None) -> None:
    """Report how many pictures got which answer in this run, and how many had a row before it."""
    earlier = f"; {file.finished.total():,} had a row already" if file and file.finished else ""
    earlier += f", {file.failed:,} of them failed" if file and file.failed else ""
    inform(tally.describe() + earlier, **tally.to_dict())
