"""The shipped model stays as good as it is, on pictures that it was not trained on."""

from pathlib import Path

import pytest

from fmengine.engine import Engine
from fmengine_bench.evaluate import evaluate

# A little under what was measured when it was shipped: 95.25 % of 1,537, 94.41 % of 859.
FER2013_VAL, EFFECTNET_HELD_OUT = 0.949, 0.941


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "held_out", "least"),
    [("fer2013/val", 1.0, FER2013_VAL), ("effectnet/train", 0.1, EFFECTNET_HELD_OUT)],
)
def test_accuracy_and_calibration(shared_faces: Path, folder: str, held_out: float, least: float) -> None:
    with Engine.load() as engine:
        figures = evaluate(engine, shared_faces / folder, held_out).report
    assert figures.accuracy >= least
    assert min(recall for recall in figures.recall.values() if recall is not None) >= 0.92
    assert figures.ece <= 0.02
