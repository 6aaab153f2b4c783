"""Pictures to label from the command line."""

import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """Six small pictures, one of them below."""
    folder = tmp_path_factory.mktemp("pictures") / "faces"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "c d.png", "é.png", ".hidden.png", "below/e.png"]):
        Image.new("L", (16, 16), 30 * number).save(folder / name)
    return folder


@pytest.fixture
def faces(drawn, tmp_path, monkeypatch) -> Path:
    """The same in a folder of the test's own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn, tmp_path / "faces")
    return Path("faces")
