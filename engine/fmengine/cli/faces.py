"""The part of `fmengine infer` that is about faces in photographs: its options, and its run."""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..engine import Engine
from ..jobs.face_rows import to_face_rows
from ..jobs.rows import Row, escape_path
from ..options import MAX_SEARCH, FaceOptions
from ..pipeline.executor import Feed
from ..types import Failure
from .console import Progress, logger, warn
from .run import look_ahead

Command = TypeVar("Command", bound=Callable[..., None])

DETAILS = ("min_score", "min_size", "max_faces", "search_size", "annotate")
# Photographs are decoded by the threads of this process, whole and on the CPU, and their faces are the batches.
REFUSED = ("isolate", "workers", "jpeg", "scaled_jpeg", "batch_size")


def take_face_options(command: Command) -> Callable[..., None]:
    """Give a command the options of faces; it gets `faces`, None for pictures of one face each, and `annotate`."""

    @click.option("--faces", is_flag=True, help="Find the faces of photographs; a row is a face.")
    @click.option(
        "--min-score",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="With --faces: of a face, by the detector.  [default: 0.6]",
    )
    @click.option(
        "--min-size",
        type=click.FloatRange(0),
        metavar="PIXELS",
        help="With --faces: width and height of a face at least.  [default: all]",
    )
    @click.option(
        "--max-faces", type=click.IntRange(1), help="With --faces: of a photograph, the surest.  [default: all]"
    )
    @click.option(
        "--search-size",
        type=click.IntRange(32, MAX_SEARCH),
        metavar="PIXELS",
        help="With --faces: long side at which a photograph is searched; twice as much finds faces half as large, "
        "and takes four times as long.  [default: 640, 160 for pictures under 300]",
    )
    @click.option(
        "--annotate",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="With --faces: also write every photograph that has faces into DIR, with boxes and labels drawn.",
    )
    @wraps(command)
    def take(*arguments: Any, faces: bool, **options: Any) -> None:
        given = {name: value for name in DETAILS if (value := options.pop(name)) is not None}
        if not faces:
            for name in given:
                raise click.UsageError(f"{_name_option(name)} is about faces in photographs: add --faces")
            command(*arguments, faces=None, annotate=None, **options)
            return
        get_source = click.get_current_context().get_parameter_source
        for name in REFUSED:
            if get_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    "--faces decodes photographs in this process, whole and on the CPU: "
                    f"leave {_name_option(name)} out"
                )
        annotate = given.pop("annotate", None)
        try:
            wanted = FaceOptions(**given)
        except ValueError as error:  # NaN and infinity pass the ranges above
            raise click.UsageError(str(error)) from error
        command(*arguments, faces=wanted, annotate=annotate, **options)

    return take


def _name_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def answer_photographs(
    engine: Engine, paths: Iterable[str], options: FaceOptions, in_flight: int | None, feed: Feed
) -> Generator[Sequence[Row], None, None]:
    """Yield the rows of each photograph, in order, and log the failures; arguments as of `run.answer_pictures`."""
    if feed == "caller":
        paths, is_long = look_ahead(paths)
        paths = paths if is_long else list(paths)  # by whose length the engine sees how many threads it needs
    scenes = engine.predict_scenes(
        paths,
        in_flight=in_flight,
        feed=feed,
        min_score=options.min_score,
        min_size=options.min_size,
        max_faces=options.max_faces,
        search_size=options.search_size,
    )
    for result in scenes:
        if isinstance(result, Failure):
            logger.info(result.message, extra={"fields": {"path": result.source, "kind": result.kind}})
        yield to_face_rows(result)


def draw_photographs(
    folder: Path, read_rows: Callable[[], Iterable[Row]], engine: Engine, sources: Sequence[str]
) -> None:
    """Write the photographs that have faces with boxes drawn, and warn of those that cannot be read any more.

    Args:
        folder: of `picture_folder.prepare_folder`.
        read_rows: gives the rows, each time from the first.
        engine: that answered.
        sources: of the command line.
    """
    from ..jobs.annotate import annotate_pictures  # here: most runs draw none
    from ..jobs.picture_folder import check_sources

    check_sources(folder, read_rows())
    drawn = annotate_pictures(folder, read_rows(), engine.spec.labels, engine.limits, sources)
    for path, error in Progress(None, "pictures", caption="annotating").track(drawn):
        if error is not None:
            warn(f"{escape_path(path)}: not annotated: {error.message}", path=path, kind=error.kind)
