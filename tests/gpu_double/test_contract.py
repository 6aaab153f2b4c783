"""The executor's contract on the GPU path, over the emulated driver."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmengine import Engine
from tests.contract import CHECKS, check_camera, check_refilled_buffer

from .test_backend import load

pytestmark = pytest.mark.usefixtures("nothing_is_left")
QUICK = (check_camera, check_refilled_buffer)  # what differs on a GPU: when chunks are formed, and from what


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] * (check not in QUICK)) for check in CHECKS],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_the_contract(check: Callable[[Engine, Path], None], portrait: Path) -> None:
    with load() as engine:
        check(engine, portrait)
