"""Parse values of options that click has no type for."""

import re
from typing import Any, ClassVar, Literal

import click

from ..options import MAX_WORKERS

# Beside each option or argument that takes a model.
allow_untrusted_engine = click.option(
    "--allow-untrusted-engine",
    is_flag=True,
    help="Run an engine file (x.engine) also where somebody else could have written it. An engine is executable "
    "code and runs with all your rights.",
)


def parse_threshold(context: click.Context, option: click.Parameter, value: str) -> float | Literal["recommended"]:
    """Parse a confidence from 0 to 1, or the word `recommended`."""
    if value == "recommended":
        return "recommended"
    try:
        confidence = float(value)
    except ValueError:
        confidence = -1.0
    if not 0 <= confidence <= 1:
        raise click.BadParameter(f"{value!r}; expected a confidence from 0 to 1, or `recommended`")
    return confidence


def parse_workers(context: click.Context, option: click.Parameter, value: str) -> int | Literal["auto", "threads"]:
    """Parse a number of worker processes, or the word `auto` or `threads`."""
    if value == "auto":
        return "auto"
    if value == "threads":
        return "threads"
    number = int(value) if value.isdecimal() and len(value) < 10 else 0
    if not 1 <= number <= MAX_WORKERS:
        raise click.BadParameter(f"{value!r}; expected a number from 1 to {MAX_WORKERS}, `auto` or `threads`")
    return number


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Bytes, such as 300000, 64M or 2G."""

    name = "size"
    factors: ClassVar = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15})([KMG]?)B?", value.upper())
        if match is None or not int(match[1]):
            self.fail(f"{value!r}; expected bytes, such as 300000, 64M or 2G", parameter, context)
        return int(match[1]) * self.factors[match[2]]
