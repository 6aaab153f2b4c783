"""The part of `fmengine infer` that explains answers: its option, and its run."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from ..engine import Engine
from ..jobs.rows import Row
from .console import Progress, warn

take_explain_option = click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write every picture into DIR with what its answer rests on: orange speaks for it, blue against it. "
    "--report shows it too. Takes some 360 runs of the network each.",
)


def check_explain(explain: Path | None, *, faces: bool, isolated: bool) -> None:
    """Raise UsageError for options that do not go with `--explain`."""
    if explain is not None and faces:
        raise click.UsageError("--explain is about pictures of one face each: leave --faces out")
    if explain is not None and isolated:
        raise click.UsageError("--explain decodes in this process: leave --isolate out")


def draw_explanations(
    folder: Path, read_rows: Callable[[], Iterable[Row]], engine: Engine, sources: Sequence[str]
) -> dict[str, Path]:
    """Write the pictures with what their answers rest on, and warn of those that cannot be read any more.

    Args:
        folder: of `picture_folder.prepare_folder`.
        read_rows: gives the rows, each time from the first.
        engine: that answered.
        sources: of the command line.

    Returns:
        The files, by the paths of their pictures' rows.
    """
    from ..jobs.explain import explain_pictures  # here: most runs explain none
    from ..jobs.picture_folder import check_sources

    check_sources(folder, read_rows())
    drawn = explain_pictures(folder, read_rows(), engine, sources)
    files = {}
    for row, file, error in Progress(None, "pictures", caption="explaining").track(drawn):
        if error is None:
            files[row["path"]] = file
        else:
            warn(f"{row['path']}: not explained: {error.message}", path=row["path"], kind=error.kind)
    return files
