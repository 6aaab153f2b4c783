"""Parameters of tests, of which the quick suite runs some."""

from collections.abc import Iterable

import pytest


def quick_first(values: Iterable[object], quick: int = 1) -> list:
    """Make each value a parameter; those behind the first `quick` ones are slow: `make check` leaves them out."""
    return [
        pytest.param(value, marks=[pytest.mark.slow] * (number >= quick)) for number, value in enumerate(values)
    ]
