"""The console of every command: data on stdout; messages and progress on stderr, as text or as JSON lines."""

import codecs
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from ..errors import OutputError
from .streams import LogStream, discard_stdout, take_descriptor

T = TypeVar("T")

INTERRUPTED = 130  # the exit code, as shells have it: 128 + SIGINT

logger = logging.getLogger("fmengine.cli")


# Settings.


def configure(*, as_json: bool, debug: bool) -> None:
    """Set up stderr and logging for a command.

    Args:
        as_json: write JSON lines, also of fmengine's information; whatever anybody writes to `sys.stderr` becomes
            one too. Otherwise warnings and errors are text.
        debug: log everything.
    """
    if not debug:
        logging.getLogger("PIL").addHandler(logging.NullHandler())  # it logs what becomes error rows
    handler = _CurrentStderr()
    handler.setFormatter(
        _JsonLines() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else None)
    )
    logging.captureWarnings(True)  # Python's own, under the name of `py.warnings`
    for name in ("fmengine", "py.warnings"):
        root = logging.getLogger(name)
        root.addHandler(handler)
        root.setLevel(logging.DEBUG if debug else logging.INFO if as_json else logging.WARNING)
        root.propagate = False
    if as_json:
        sys.stderr = LogStream(take_descriptor(sys.stderr), logger.info)


def is_structured() -> bool:
    """Return whether stderr holds JSON lines."""
    return isinstance(sys.stderr, LogStream)


class _CurrentStderr(logging.Handler):
    """Writes records to the current `sys.stderr`: a handler of `logging` keeps the one that it was made with."""

    def emit(self, record: logging.LogRecord) -> None:
        below = sys.stderr.below if isinstance(sys.stderr, LogStream) else sys.stderr
        with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
            print(self.format(record).rstrip(), file=below, flush=True)


class _JsonLines(logging.Formatter):
    """Writes one JSON object a record: `time`, `level`, `logger`, `message`, and the record's own `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().rstrip(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_replace_non_finite(line), default=str)


# Messages.


def inform(message: str, **fields: Any) -> None:
    """Write a message to stderr: a line of text, or a JSON line with `fields`."""
    _write_message(logging.INFO, message, fields)


def warn(message: str, **fields: Any) -> None:
    """Write a warning to stderr, as `inform` does."""
    _write_message(logging.WARNING, message, fields)


def report_error(message: str, **fields: Any) -> None:
    """Write an error to stderr, as `inform` does; a JSON line holds the traceback of `exc_info`."""
    _write_message(logging.ERROR, message, fields)


def _write_message(level: int, message: str, fields: dict[str, Any]) -> None:
    if is_structured():
        exc_info = fields.pop("exc_info", None)
        logger.log(level, message, extra={"fields": fields}, exc_info=exc_info)
        return
    with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
        print(message, file=sys.stderr, flush=True)


# Data.


def print_data(text: str) -> None:
    """Write lines of data to stdout.

    Raises:
        OutputError: if it does not take them, as on a full disk.
    """
    with _convert_stdout_errors():
        print(text, flush=True)


def print_path(path: Path) -> None:
    """Write a path to stdout as the bytes that it is: a name need not be UTF-8. Errors as of `print_data`."""
    with _convert_stdout_errors():
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.flush()


def print_json(document: Any) -> None:
    """Write a document to stdout as JSON, indented. Errors as of `print_data`."""
    print_data(to_json(document, indent=2))


def to_json(document: Any, indent: int | None = None) -> str:
    """Encode a document for stdout as JSON that every reader takes: null for NaN and infinity.

    Where stdout is not UTF-8, it is ASCII only.
    """
    ascii_alone = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    return json.dumps(_replace_non_finite(document), indent=indent, ensure_ascii=ascii_alone, allow_nan=False)


def _replace_non_finite(value: Any) -> Any:
    """Return the value with null for each NaN and infinity in it."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _replace_non_finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_replace_non_finite(item) for item in value]
    return value


def flush() -> None:
    """Write out what stdout buffers: at the interpreter's exit it is too late to report an error."""
    with _convert_stdout_errors():
        sys.stdout.flush()


@contextmanager
def _convert_stdout_errors() -> Iterator[None]:
    """Turn an error of stdout into an OutputError, except BrokenPipeError, of a reader that left."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise OutputError(f"cannot write to stdout: {error.strerror}; rows printed before it are whole") from error


# Progress.


class Progress:
    """A bar on stderr that shows how much is done, where stderr is a terminal; a context manager.

    Elsewhere, and among JSON lines, nothing is shown.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        *,
        caption: str = "",
        initial: int = 0,
        keep: bool = True,
        shown: bool = True,
    ) -> None:
        """Draw the bar.

        Args:
            total: how much there is to do; None where it is not known.
            unit: of what is counted, such as `pictures`.
            caption: in front of the bar.
            initial: how much of `total` was done before.
            keep: leave the bar on the screen at its end.
            shown: whether there is a bar at all, as in one process of several.
        """
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm  # here: importing it takes a tenth of a short run

            self._bar = tqdm(desc=caption or None, total=total, unit=f" {unit}", initial=initial, leave=keep)

    def advance(self, count: int = 1) -> None:
        """Count some more as done."""
        if self._bar is not None:
            self._bar.update(count)

    def move_to(self, done: int, total: int) -> None:
        """Set how much is done, and of how much."""
        if self._bar is not None:
            self._bar.n, self._bar.total = done, total
            self._bar.refresh()

    def annotate(self, **figures: str) -> None:
        """Show figures behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix(figures)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and count each as done after it; close the bar at the end."""
        with self:
            for item in items:
                yield item
                self.advance()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def track(items: Iterable[T], total: int, unit: str, *, caption: str = "", keep: bool = True) -> Iterator[T]:
    """Yield items under a bar of their own; see `Progress`."""
    return Progress(total, unit, caption=caption, keep=keep).track(items)
