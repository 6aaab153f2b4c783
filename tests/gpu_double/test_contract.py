"""The executor's contract on the GPU path, over the emulated driver."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmengine import Engine
from tests.contract import CHECKS

from .test_backend import load, nothing_is_left  # noqa: F401


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_contract(check: Callable[[Engine, Path], None], portrait: Path) -> None:
    with load() as engine:
        check(engine, portrait)
