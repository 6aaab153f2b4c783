"""The Python of GPU.md runs as it stands there."""

import re
from pathlib import Path

import numpy as np

from fmengine import Engine, Prediction

from . import driver, shuffles

if driver.FOUND:
    from .device_array import CudaArray, DlpackArray

TEXT = (Path(__file__).parents[2] / "engine" / "GPU.md").read_text(encoding="utf-8")


def test_its_code_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    load, *uses = block.splitlines(keepends=True)
    names: dict = {"Engine": Engine}
    exec(load, names)
    with names["engine"] as engine:
        assert (engine.backend.name, engine.max_batch) == ("tensorrt", 64)
        pixels = shuffles.pictures(1)[0]
        wanted = engine.predict(pixels)
        for kind in (CudaArray, DlpackArray):
            names["tensor"], names["pictures"] = kind(engine.backend.context, pixels), shuffles.pictures(5)
            results = [eval(line.partition("#")[0], names) for line in uses]
            assert [type(result) for result in results] == [Prediction, tuple]
            assert results[0] == wanted
            outputs, stages = results[1]
            assert outputs.probabilities.shape == (5, 2)
            # In milliseconds, as the comment says which.
            assert re.findall(r"\w+", uses[1].partition("milliseconds of ")[2]) == [
                "upload",
                "preprocessing",
                "network",
                "download",
            ]
            assert all(np.isfinite(stage) and stage > 0 for stage in stages)
            names["tensor"].free()
