"""The gate: an engine that answers as the CPU does passes, and every planted fault is refused."""

from collections.abc import Callable

import numpy as np
import pytest

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.check.compare import HALF_PRECISION
from fmengine.check.gate import (
    ExecutionPath,
    GateError,
    Passed,
    check_engine,
    draw_gate_inputs,
    list_batch_sizes,
)
from fmengine.model.file import ModelSpec, load_model_file, resolve
from fmengine.options import BackendOptions
from fmengine.trt.profile import Profile
from fmengine.types import InputBatch, Outputs

pytestmark = pytest.mark.timeout(120)
FILE = load_model_file(resolve(None, ("fp16",)))
SPEC: ModelSpec = FILE.spec
PROFILES = (Profile(1, 1, 1), Profile(1, 8, 16))
Run = Callable[[InputBatch], Outputs]


@pytest.fixture(scope="module")
def cpu() -> Run:
    backend = OnnxRuntimeBackend.open(FILE, BackendOptions())
    images = draw_gate_inputs(SPEC)
    answers = backend.run(images)
    known = {image.tobytes(): row for row, image in enumerate(images)}

    def run(batch: InputBatch) -> Outputs:  # the same bits in any batch, so each picture is run once
        rows = [known[image.tobytes()] for image in batch]
        return Outputs(answers.logits[rows], answers.probabilities[rows])

    return run


def altered(cpu: Run, alter: Callable[[np.ndarray], np.ndarray], only: int | None = None) -> Run:
    """The CPU's answers with a fault, in every batch or in those of one size."""

    def run(batch: InputBatch) -> Outputs:
        logits, probabilities, _ = cpu(batch)
        return Outputs(logits, alter(probabilities.copy()) if only in (None, len(batch)) else probabilities)

    return run


def gate(cpu: Run, *runs: Run) -> list[Passed]:
    paths = [ExecutionPath(f"profile {i}", PROFILES[i], run) for i, run in enumerate(runs)]
    return check_engine(paths, cpu, SPEC)


def test_the_cpu_passes_its_own_gate(cpu: Run) -> None:
    passed = gate(cpu, cpu, cpu)
    assert [(p.path, p.batch) for p in passed] == [
        ("profile 0", 1),
        ("profile 1", 1),
        ("profile 1", 9),
        ("profile 1", 16),
    ]
    assert all(p.largest == 0 for p in passed)


def test_rounding_passes_and_is_reported(cpu: Run) -> None:
    rounding = 0.4 * HALF_PRECISION.probability
    passed = gate(cpu, altered(cpu, lambda p: p + np.float32([rounding, -rounding])))
    assert passed[0].largest == pytest.approx(rounding, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 9, 16])
@pytest.mark.parametrize(
    "fault",
    [
        lambda p: p[:, ::-1],
        lambda p: np.roll(p, 1, axis=0) if len(p) > 1 else p[:, ::-1],
        lambda p: p + 2 * HALF_PRECISION.probability * np.float32([1, -1]),
        lambda p: np.full_like(p, np.nan),
        lambda p: np.full_like(p, 0.5),
    ],
    ids=["labels swapped", "rows moved", "off by twice the tolerance", "NaN", "even"],
)
def test_a_fault_at_one_batch_size_is_refused(cpu: Run, fault: Callable, batch: int) -> None:
    with pytest.raises(GateError, match=f"profile 1, batches of {batch}: picture"):
        gate(cpu, cpu, altered(cpu, fault, only=batch))


def test_a_fault_in_one_picture_is_refused(cpu: Run) -> None:
    target = draw_gate_inputs(SPEC)[200].tobytes()

    def run(batch: InputBatch) -> Outputs:
        logits, probabilities, _ = cpu(batch)
        hit = [image.tobytes() == target for image in batch]
        return Outputs(logits, np.where(np.array(hit)[:, None], probabilities[:, ::-1], probabilities))

    with pytest.raises(GateError, match=r"picture 200 .* 1 of 257 answers are off"):
        gate(cpu, run)


def test_missing_answers_are_refused(cpu: Run) -> None:
    with pytest.raises(GateError, match=r"\(0, 2\) answers; expected \(257, 2\)"):
        gate(cpu, altered(cpu, lambda p: p[:0]))


@pytest.mark.parametrize("profile", [Profile(8, 16, 32), Profile(1, 200, 300)])
def test_every_batch_is_full(cpu: Run, profile: Profile) -> None:
    """An engine refuses fewer pictures than its profile's minimum, and the largest batch must be the maximum."""
    seen = []

    def run(batch: InputBatch) -> Outputs:
        seen.append(len(batch))
        return cpu(batch)

    passed = check_engine([ExecutionPath("profile 0", profile, run)], cpu, SPEC)
    assert set(seen) == {p.batch for p in passed} == set(list_batch_sizes(profile))


def test_batch_sizes_hold_an_odd_one() -> None:
    assert list_batch_sizes(Profile(1, 1, 1)) == [1]
    assert list_batch_sizes(Profile(1, 32, 64)) == [1, 33, 64]
    assert list_batch_sizes(Profile(2, 2, 2)) == [2]
    assert list_batch_sizes(Profile(1, 2, 3)) == [1, 3]


def test_the_gates_pictures_are_the_same_everywhere() -> None:
    images = draw_gate_inputs(SPEC)
    assert images.shape == (257, *SPEC.input_shape(1)[1:])
    np.testing.assert_array_equal(images, draw_gate_inputs(SPEC))


def test_the_gates_pictures_spread_the_answers(cpu: Run) -> None:
    """A gate of pictures that all answer alike would let a broken engine through."""
    happy = cpu(draw_gate_inputs(SPEC)).probabilities[:, 0]
    assert 0.1 < (happy > 0.5).mean() < 0.9
    assert happy.std() > 0.15
    assert happy[-1] > 0.9  # the portrait smiles
