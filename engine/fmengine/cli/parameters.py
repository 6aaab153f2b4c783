"""Parse values of options that click has no type for."""

import re
from typing import Any, ClassVar, Literal

import click


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
