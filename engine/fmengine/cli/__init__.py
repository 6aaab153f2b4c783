"""The command line. Each command is one file, imported only when it is called.

Data goes to stdout, everything else to stderr. Exit codes: 0 all well, 1 a check failed, 2 usage,
3 some inputs failed, 4 the machine lacks something, 130 interrupted.
"""

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import FmengineError, UnavailableError, format_install_command
from ..system.imports import load_object
from .console import (
    INTERRUPTED,
    configure,
    flush,
    is_structured,
    report_error,
)
from .streams import discard_stdout, open_streams


class Entry(NamedTuple):
    """A command: where it is, which extras it needs, and its line in the help."""

    target: str
    extras: str
    help: str


COMMANDS = {
    "infer": Entry("fmengine.cli.infer:infer", "", "Label pictures, one row each."),
    "watch": Entry("fmengine.cli.watch:watch", "video", "Follow the faces of a video, a stream or a camera."),
    "prepare": Entry("fmengine_train.prepare:prepare", "", "Clean labelled pictures before training."),
    "train": Entry("fmengine_train.cli:train", "train", "Train a model on labelled pictures."),
    "export": Entry("fmengine_export.cli:export", "export,cpu", "Turn a checkpoint into ONNX model files."),
    "parity": Entry("fmengine_bench.cli:parity", "bench,cpu", "Hold exported files against PyTorch."),
    "eval": Entry("fmengine_bench.cli:evaluate", "cpu", "Score a model file on labelled pictures."),
    "bench": Entry(
        "fmengine_bench.bench_cli:bench", "bench,cpu", "Measure this machine, once the answers are right."
    ),
    "info": Entry("fmengine.cli.info:info", "", "Show the metadata of a model file."),
    "doctor": Entry("fmengine.cli.doctor:doctor", "", "Show what this machine has and what works on it."),
}

ANYWHERE = ("--debug", "--log-json")  # options of any command, before or after its name


@contextmanager
def _let_reader_leave() -> Iterator[None]:
    """Exit with 0 when the reader of stdout goes away, as `head` does; click would exit with 1."""
    try:
        try:
            yield
        finally:
            flush()
    except BrokenPipeError:
        discard_stdout()
        sys.exit(0)


class LazyGroup(click.Group):
    """Imports a command when it is named, so that `infer` never touches torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        entry = COMMANDS[name]
        try:
            command: click.Command = load_object(entry.target)
        except ModuleNotFoundError as error:
            raise _name_extra(name, error) from error
        return command

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names from the table: click would import every command, and torch with them."""
        names = [
            CompletionItem(name, help=entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, context, incomplete)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _let_reader_leave():
            return super().make_context(*args, **more)

    def invoke(self, context: click.Context) -> Any:
        try:
            with _let_reader_leave():
                return super().invoke(context)
        except ModuleNotFoundError as error:  # of an import within a command
            raise _name_extra(str(context.invoked_subcommand), error) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _name_extra(command: str, error: ModuleNotFoundError) -> Exception:
    """Return an error that names the extra to add, or the error itself where no extra would help."""
    extras, missing = COMMANDS[command].extras, error.name or ""
    if not extras or missing.startswith("fmengine"):
        return error
    return UnavailableError(
        f"`fmengine {command}` needs {missing}; install it with: {format_install_command(extras)}"
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fmengine")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and logs. Any command takes it.")
@click.option(
    "--log-json", is_flag=True, expose_value=False, help="Write JSON lines to stderr. Any command takes it."
)
def cli() -> None:
    """Tell a happy face from a sad one, with a confidence that can be trusted.

    Shell completion: eval "$(_FMENGINE_COMPLETE=bash_source fmengine)"
    """


def main(command: click.Command = cli, name: str = "fmengine") -> None:
    """Run the command line, or a command of its own, and exit with its code."""
    arguments, options = _split_off_global(sys.argv[1:])
    debug, log_json = "--debug" in options, "--log-json" in options
    open_streams()
    configure(as_json=log_json, debug=debug)
    # Pillow warns on stderr of pictures that become error rows.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        sys.exit(command.main(arguments, prog_name=name, standalone_mode=False) or 0)
    except click.ClickException as error:
        if is_structured():
            _report(error.format_message(), error, error.exit_code, debug)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        report_error("fmengine: interrupted", exit_code=INTERRUPTED)
        sys.exit(INTERRUPTED)
    except FmengineError as error:
        _report(f"fmengine: {error}", error, error.exit_code, debug)
        sys.exit(error.exit_code)
    except Exception as error:
        hint = "" if debug else " Not an error we foresaw: --debug shows where"
        _report(f"fmengine: {type(error).__name__}: {error}.{hint}", error, 1, debug)
        sys.exit(1)


def _split_off_global(words: list[str]) -> tuple[list[str], set[str]]:
    """Separate the options of any command from the command line, wherever they are.

    After `--` every word is an argument, also a file that is called `--debug`.
    """
    end = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:end] if word in ANYWHERE]
    return [word for word in words[:end] if word not in ANYWHERE] + words[end:], set(own)


def _report(message: str, error: Exception, exit_code: int, debug: bool) -> None:
    if debug and not is_structured():
        traceback.print_exception(error)
        return
    fields: dict[str, Any] = {"error": type(error).__name__, "exit_code": exit_code}
    report_error(message, **fields, **({"exc_info": error} if debug else {}))
