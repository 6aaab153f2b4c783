"""What the command line says: data on stdout, everything else on stderr, as text or as structured log lines."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from ..errors import OutputError

logger = logging.getLogger("fmengine.cli")


class _Echo(logging.Handler):
    """Writes to what stderr is now: a handler of `logging` keeps what it was."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


class _JsonLines(logging.Formatter):
    """One JSON object a record: `time`, `level`, `logger`, `message`, and the record's own `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(*, as_json: bool, debug: bool) -> None:
    """Show what fmengine logs: nothing by default, JSON lines if asked for, all of it as text to debug."""
    root = logging.getLogger("fmengine")
    if not debug:
        logging.getLogger("PIL").addHandler(logging.NullHandler())  # it complains of what is answered with a row
    if not (as_json or debug):
        return
    handler = _Echo()
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.propagate = False


def structured() -> bool:
    """Whether stderr is for programs."""
    return any(isinstance(handler.formatter, _JsonLines) for handler in logging.getLogger("fmengine").handlers)


def say(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Tell whoever runs the command: a line of text, or a log line with `fields`."""
    if structured():
        logger.log(level, message, extra={"fields": fields}, exc_info=fields.pop("exc_info", None))
    else:
        click.echo(message, err=True)


def emit(text: str) -> None:
    """Write a line of data to stdout.

    Raises:
        OutputError: if it does not take it, as on a full disk.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _stdout_error(error) from error


def flush() -> None:
    """Write out what stdout holds; at the interpreter's exit it is too late to say what went wrong."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _stdout_error(error) from error


def leave_stdout() -> None:
    """Nothing more can be written there, and nobody is to hear of it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_error(error: OSError) -> OutputError:
    leave_stdout()
    return OutputError(f"cannot write to stdout: {error.strerror}; rows printed before it are whole")


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep decoders written in C off stderr: they complain there, file by file, of what is answered with a row."""
    stderr = sys.stderr
    try:
        sys.stderr.flush()
        kept = os.dup(stderr.fileno())
    except (OSError, ValueError):  # closed, or none of the system's
        yield
        return
    with open(os.devnull, "wb") as nothing, open(kept, "w", buffering=1, errors="backslashreplace") as ours:
        os.dup2(nothing.fileno(), stderr.fileno())
        sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = stderr
            os.dup2(kept, stderr.fileno())
