"""Python modules among the pictures: neither the command nor its workers import from the current folder."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from PIL import Image
from tests.params import quick_first

COMMAND = Path(sysconfig.get_path("scripts")) / "fmengine"
MODULES = ["json", "numpy", "PIL", "simplejpeg", "click", "tqdm", "onnxruntime", "fmengine", "sitecustomize"]


@pytest.mark.parametrize("more", quick_first([[], ["--isolate"]]), ids=["plain", "isolated"])
def test_modules_among_the_pictures(tmp_path, more):
    if not COMMAND.exists():
        pytest.skip("the `fmengine` command is not installed")
    Image.new("L", (16, 16), 99).save(tmp_path / "face.png")
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('proof').touch()\n")
    shutil.copytree(tmp_path, tmp_path / "below")
    done = subprocess.run([COMMAND, "infer", "face.png", *more], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "proof").exists()
