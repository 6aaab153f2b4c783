"""Faults planted into a copy of the package, by changing its text."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fmengine

from .conftest import environment

SEEDS, PICTURES = 20, 40


def run_mutant(folder: Path, file: str, original: str, changed: str) -> subprocess.CompletedProcess[str]:
    """Run the shuffles over fmengine with one text changed.

    Args:
        folder: for the changed package.
        file: below `fmengine`.
        original: the text, which must stand there once.
        changed: what takes its place.
    """
    source = Path(fmengine.__file__).parent
    text = (source / file).read_text(encoding="utf-8")
    assert text.count(original) == 1, f"{original!r} stands {text.count(original)} times in {file}"
    # Links to all but that file, and to what is compiled of the others: neither disk nor time for each fault.
    compiled = f"{Path(file).stem}.*.pyc"
    copy = shutil.copytree(
        source, folder / "fmengine", copy_function=os.symlink, ignore=shutil.ignore_patterns(compiled)
    )
    (copy / file).unlink()
    (copy / file).write_text(text.replace(original, changed), encoding="utf-8")
    found = environment()
    found["PYTHONPATH"] = os.pathsep.join([str(folder), found["PYTHONPATH"]])
    command = [sys.executable, "-m", "tests.gpu_double.shuffles", str(SEEDS), str(PICTURES)]
    return subprocess.run(command, env=found, capture_output=True, text=True, timeout=200)
