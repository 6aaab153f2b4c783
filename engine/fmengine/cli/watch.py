"""`fmengine watch`: the faces of a video, a stream or a camera, one row a face and frame."""

import os
import shutil
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import click

from ..backend.registry import BACKENDS
from ..engine import Engine
from ..jobs.rows import escape_text
from ..media.annotate import ENCODERS, AnnotatedVideo, Codec
from ..media.rows import FORMATS, RowFile, to_rows, to_text
from ..media.video import import_av
from ..media.watch import Watch
from ..system.files import check_target
from ..system.lock import hold
from ..types import Frame
from ..wording import pluralise
from .console import inform, is_structured, print_data, to_json
from .interrupt import end_soon_after_interrupt
from .parameters import allow_untrusted_engine, parse_threshold
from .streams import silence_decoders

REFRESH = 0.1  # seconds between two states of the live line


@click.command()
@click.argument("source")
@click.option(
    "--every", type=click.FloatRange(0), default=0.0, help="Seconds from frame to frame.  [default: all frames]"
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop once the video is so far.")
@click.option("--max-frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write rows to x.jsonl or x.csv, as they come.",
)
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON lines.")
@click.option(
    "--annotated", type=click.Path(path_type=Path), help="Also write the frames, with the faces, to x.mp4."
)
@click.option(
    "--codec",
    type=click.Choice(list(ENCODERS)),
    default="mpeg4",
    show_default=True,
    help="Of --annotated; h264 is x264, which is under the GPL.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output file that exists.")
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
@click.option("--device", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of a network on a CPU.  [default: all cores]")
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.6,
    show_default=True,
    help="Of the detector; half of it is enough for a face that is followed already.",
)
@click.option("--min-size", type=click.FloatRange(0), default=0.0, help="Pixels of a face.  [default: any]")
@click.option("--max-faces", type=click.IntRange(1), help="Of a frame, the highest scores.  [default: all]")
@click.option(
    "--search-size",
    type=click.IntRange(32, 8192),
    help="Pixels of the long side that a frame is searched at.  [default: 640; 160 for small frames]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that a server may be mute.",
)
@click.option(
    "--reconnect",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Tries in a row to open a camera or a stream again that is lost.",
)
def watch(
    source: str,
    every: float,
    seconds: float | None,
    max_frames: int | None,
    output: Path | None,
    as_json: bool,
    annotated: Path | None,
    codec: Codec,
    overwrite: bool,
    model: str | None,
    allow_untrusted_engine: bool,
    unsure_below: float | Literal["recommended"],
    backend: str,
    device: int,
    threads: int,
    min_score: float,
    min_size: float,
    max_faces: int | None,
    search_size: int | None,
    timeout: float,
    reconnect: int,
) -> None:
    """Follow the faces of a video: SOURCE is a file, a URL (rtsp, http, …), a camera such as /dev/video0, or
    `lavfi:` and a graph of FFmpeg's filters.

    One line a face and frame: time, id, label, confidence, box. A frame without a face gives none; a face has an
    id (or else `-`) from its third frame on. Ctrl-C ends it, and finishes the files.
    """
    with ExitStack() as stack:
        # Whatever could keep the files from being written is found before the work.
        import_av()
        for path, suffixes in ((output, FORMATS), (annotated, (".mp4",))):
            if path is not None:
                stack.enter_context(hold(path))
                if check_target(path, suffixes, overwrite=overwrite) and _is_same(path, source):
                    raise click.UsageError(f"{path} is what is watched; choose another name to write")
        video = None if annotated is None else stack.enter_context(AnnotatedVideo(annotated, codec))
        with end_soon_after_interrupt():  # a server may be waited for, and nothing is to be finished yet
            engine = stack.enter_context(
                Engine.load(
                    model,
                    backend,
                    device=device,
                    threads=threads,
                    workers="threads",
                    unsure_below=unsure_below,
                    hint="latency",
                    allow_untrusted_engine=allow_untrusted_engine,
                )
            )
            stack.enter_context(silence_decoders())
            frames = stack.enter_context(
                engine.watch(
                    source,
                    every=every,
                    min_score=min_score,
                    min_size=min_size,
                    max_faces=max_faces,
                    search_size=search_size,
                    timeout=timeout,
                    reconnect=reconnect,
                )
            )
        file = None if output is None else stack.enter_context(RowFile(output, engine.spec.labels))
        stack.callback(_summarise, frames)
        line = stack.enter_context(LiveLine(shown=output is not None or (sys.stdout.isatty() and not as_json)))
        _write_frames(frames, file, video, line, as_json=as_json, seconds=seconds, max_frames=max_frames)
    for name, written in (("rows", output), ("annotated", annotated)):
        if written is not None and written.exists():
            inform(f"{name}: {written}")


def _write_frames(
    frames: Watch,
    file: RowFile | None,
    video: AnnotatedVideo | None,
    line: "LiveLine",
    *,
    as_json: bool,
    seconds: float | None,
    max_frames: int | None,
) -> None:
    """Write the rows of each frame to the file, or else to stdout, and the frame to the annotated video."""
    begin: float | None = None
    for frame in frames:
        begin = frame.time if begin is None else begin
        rows = to_rows(frame)
        if file is not None:
            file.write(rows)
        elif rows and not line.is_shown:
            print_data("\n".join(map(to_json if as_json else to_text, rows)))
        if video is not None and frames.image is not None:
            video.write(frame, frames.image)
        line.show(frame)
        if frames.frames == max_frames or (seconds is not None and frame.time - begin >= seconds):
            return


def _is_same(path: Path, source: str) -> bool:
    return os.path.exists(source) and os.path.samefile(path, source)


def _summarise(frames: Watch) -> None:
    counts: dict[str, Any] = {
        "frames": frames.frames,
        "dropped": frames.dropped,
        "damaged": frames.damaged,
        "faces": frames.faces,
        "tracks": frames.tracks,
    }
    lost = f"{frames.dropped:,} dropped, {frames.damaged:,} damaged"
    found = f"{pluralise(frames.faces, 'face')}, {pluralise(frames.tracks, 'track')}"
    inform(f"{pluralise(frames.frames, 'frame')}, {lost}, {found}", **counts)


class LiveLine:
    """One line on a terminal that is written over: the time, the faces and their labels; a context manager.

    Attributes:
        is_shown: whether there is one: only where stderr is a terminal.
    """

    def __init__(self, *, shown: bool) -> None:
        self.is_shown = shown and sys.stderr.isatty() and not is_structured()
        self._next, self._width = 0.0, 0

    def show(self, frame: Frame) -> None:
        """Show a frame, unless another was shown a moment ago."""
        now = time.monotonic()
        if not self.is_shown or now < self._next:
            return
        self._next = now + REFRESH
        labels = Counter(face.prediction.label for face in frame.faces)
        found = ", ".join(f"{count} {escape_text(label)}" for label, count in sorted(labels.items()))
        minutes, rest = divmod(frame.time, 60)
        text = f"{minutes:.0f}:{rest:04.1f}  {pluralise(len(frame.faces), 'face')}{': ' + found if found else ''}"
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def __enter__(self) -> "LiveLine":
        return self

    def __exit__(self, *error: object) -> None:
        if self._width:
            print(file=sys.stderr, flush=True)
