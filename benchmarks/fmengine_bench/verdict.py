"""Judges whether a backend's answers are right; without that no figure of its speed is reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.backend.protocol import DeviceBackend
from fmengine.check.compare import CPU_LIBRARIES, HALF_PRECISION, compare
from fmengine.engine import Engine
from fmengine.image.decode import decode
from fmengine.options import BackendOptions
from fmengine.types import Failure, InputBatch, NetworkInput

from .definition import preprocess as define

PIXELS = 64  # pictures whose preprocessing is compared; the definition is slow


@dataclass(frozen=True)
class Verdict:
    """Figures of what was compared on real pictures.

    Attributes:
        pictures: that were compared.
        pixels: that differ from the definition of preprocessing; None where the backend preprocesses itself.
        between_batches: largest difference of a probability between a picture alone and in a batch.
        from_reference: largest difference from ONNX Runtime on the CPU, one picture at a time.
        flips: labels that differ from it although it was sure.
        tolerance: of `from_reference`.
    """

    pictures: int
    pixels: int | None
    between_batches: float
    from_reference: float
    flips: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return (
            not self.pixels
            and self.flips == 0
            and self.between_batches <= self.tolerance  # not by `max`, which may hide a NaN
            and self.from_reference <= self.tolerance
            and self.pictures > 0
        )

    def as_text(self) -> str:
        pixels = "on the GPU" if self.pixels is None else f"{self.pixels} pixels differ from the definition"
        holds = "holds" if self.passed else "IS BROKEN"
        return (
            f"parity {holds} on {self.pictures} pictures: {pixels}; probabilities differ by "
            f"{self.between_batches:.1e} alone and in batches, by {self.from_reference:.1e} from ONNX Runtime on "
            f"the CPU (at most {self.tolerance:g}); {self.flips} labels turned"
        )


def judge(engine: Engine, paths: Sequence[str]) -> Verdict:
    """Compare an engine's answers with the definition and with the reference, on pictures that can be read."""
    answers = list(engine.predict_many(paths))
    good = [(path, a) for path, a in zip(paths, answers, strict=True) if not isinstance(a, Failure)]
    labels = engine.spec.labels
    many = np.array([[answer.probabilities[label] for label in labels] for _, answer in good])
    alone = np.array([[engine.predict(path).probabilities[label] for label in labels] for path, _ in good])
    inputs = [engine.prepare(path) for path, _ in good]
    reference = OnnxRuntimeBackend.open(engine.model_file, BackendOptions(threads=1))
    expected = np.concatenate([reference.run(InputBatch(images[np.newaxis])).probabilities for images in inputs])
    reference.close()
    on_gpu = isinstance(engine.backend, DeviceBackend)
    tolerance = HALF_PRECISION if on_gpu else CPU_LIBRARIES
    comparison = compare(many, expected, tolerance)
    return Verdict(
        pictures=len(good),
        pixels=None if on_gpu else _count_differing_pixels(engine, [path for path, _ in good[:PIXELS]], inputs),
        between_batches=compare(many, alone, tolerance).largest,
        from_reference=comparison.largest,
        flips=comparison.flips,
        tolerance=tolerance.probability,
    )


def _count_differing_pixels(engine: Engine, paths: list[str], inputs: list[NetworkInput]) -> int:
    """Count the levels of the network's inputs that differ from the definition of preprocessing."""
    spec = engine.spec
    differing = 0
    for path, images in zip(paths, inputs, strict=False):
        decoded = decode(path, spec.color, engine.limits)
        differing += int((images != define(decoded, spec.input)).sum())
    return differing
