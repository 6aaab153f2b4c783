"""What the command line says: data on stdout, everything else on stderr, as text or as structured log lines."""

import codecs
import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from ..errors import OutputError

logger = logging.getLogger("fmengine.cli")


class _LogStream(io.TextIOBase):
    """A stderr whose lines become records, whoever writes them. Progress bars take it for no terminal."""

    encoding, errors = "utf-8", "backslashreplace"  # which click asks for

    def __init__(self, below: TextIO) -> None:
        """Records end as lines of the stream below."""
        self.below = below
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            logger.info(line)
        return len(text)


class _Lines(logging.Handler):
    """Writes to what stderr is now: a handler of `logging` keeps what it was."""

    def emit(self, record: logging.LogRecord) -> None:
        below = sys.stderr.below if isinstance(sys.stderr, _LogStream) else sys.stderr
        with suppress(OSError, ValueError):  # nobody hears it any more: no reason to stop
            print(self.format(record), file=below, flush=True)


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
        return json.dumps(_finite(line), default=str)


def open_streams() -> None:
    """Make stdout and stderr take whatever is written there.

    A stream that the caller closed (`>&-`) leads nowhere: else the next file that is opened would get its number,
    and with it what libraries written in C complain of. A character that a stream's encoding lacks is escaped.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def configure(*, as_json: bool, debug: bool) -> None:
    """Show what fmengine logs: nothing by default, JSON lines if asked for, all of it as text to debug.

    Of JSON lines everything becomes one that anybody writes to `sys.stderr`, and nothing else reaches stderr.
    """
    root = logging.getLogger("fmengine")
    if not debug:
        logging.getLogger("PIL").addHandler(logging.NullHandler())  # it complains of what is answered with a row
    if not (as_json or debug):
        return
    handler = _Lines()
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.propagate = False
    if as_json:
        sys.stderr = _LogStream(_split_off(sys.stderr))


def structured() -> bool:
    """Whether stderr is for programs."""
    return isinstance(sys.stderr, _LogStream)


def say(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Tell whoever runs the command: a line of text, or a log line with `fields`."""
    if structured():
        logger.log(level, message, extra={"fields": fields}, exc_info=fields.pop("exc_info", None))
        return
    with suppress(OSError, ValueError):  # nobody hears it any more: no reason to stop
        print(message, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Write lines of data to stdout.

    Raises:
        OutputError: if it does not take them, as on a full disk.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _stdout_error(error) from error


def to_json(document: Any, indent: int | None = None) -> str:
    """A document for stdout as JSON that every reader takes: null for what is no number.

    Where stdout is not UTF-8, it is ASCII alone.
    """
    ascii_alone = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    return json.dumps(_finite(document), indent=indent, ensure_ascii=ascii_alone, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with null for each number that is none, or infinite."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


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
    if structured():  # and then nobody else has it
        yield
        return
    ours = _split_off(stderr)
    sys.stderr = ours
    try:
        yield
    finally:
        sys.stderr = stderr
        if ours is not stderr:
            os.dup2(ours.fileno(), stderr.fileno())
            with suppress(OSError):  # it may hold what could not be written
                ours.close()


def _split_off(stream: TextIO) -> TextIO:
    """A stream to the same place for us alone: its descriptor, which libraries written in C know, leads nowhere.

    One that is closed, or none of the system's, is given back as it is.
    """
    try:
        stream.flush()
        kept = os.dup(stream.fileno())
    except (OSError, ValueError):
        return stream
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
    return open(kept, "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
