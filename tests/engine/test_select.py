"""What `auto` takes on a CPU: the fastest by measurement, remembered, and never at the price of an answer."""

import json

import numpy as np
import pytest

from fmengine import Engine, ModelError
from fmengine.backend import registry as backends
from fmengine.backend import select
from fmengine.backend.diagnose import diagnose
from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.backend.openvino import OpenVinoBackend
from fmengine.backend.registry import CPU_BACKENDS
from fmengine.check.compare import CPU_LIBRARIES
from fmengine.types import Outputs

pytest.importorskip("openvino", reason="with one backend there is nothing to select")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A cache that remembers nothing."""
    monkeypatch.setenv("FMENGINE_CACHE", str(tmp_path / "cache"))


def with_rates(monkeypatch, **rates: float) -> list[int]:
    """Replace the measurement by these rates; return a list that grows with every measurement."""
    measured: list[int] = []
    monkeypatch.setattr(select, "measure_rates", lambda: measured.append(1) or rates)
    return measured


@pytest.mark.slow
def test_both_are_measured():
    rates = select.measure_rates()
    assert rates.keys() == set(CPU_BACKENDS)
    assert min(rates.values()) > 0


@pytest.mark.parametrize(("other", "taken"), [(50.0, 0), (100.0, 0), (129.0, 0), (131.0, 1), (500.0, 1)])
def test_another_is_taken_where_it_is_worth_it(monkeypatch, other, taken):
    with_rates(monkeypatch, onnxruntime=100.0, openvino=other)
    with Engine.load() as engine:
        assert engine.backend.name == CPU_BACKENDS[taken]
        reasons = dict(engine.attempts)
        assert reasons[engine.backend.name] == ""
        assert f"openvino {other:,.0f}" in reasons["openvino"] or taken
        assert f"openvino is taken: {other:,.0f} pictures" in reasons["onnxruntime"] or not taken


def test_it_is_measured_once_and_remembered(monkeypatch):
    measured = with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    for _ in range(3):
        assert select.select_backends().order[0] == "openvino"
    assert len(measured) == 1
    monkeypatch.setattr(select, "usable_cores", lambda: 77)
    select.select_backends()
    assert len(measured) == 2, "another machine"


def test_a_cache_that_cannot_be_used_costs_a_measurement(monkeypatch, tmp_path):
    measured = with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FMENGINE_CACHE", str(tmp_path / "file"))
    assert select.select_backends().order[0] == select.select_backends().order[0] == "openvino"
    assert len(measured) == 2


def test_by_name_nothing_is_measured(monkeypatch):
    measured = with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    for name in CPU_BACKENDS:
        with Engine.load(backend=name) as engine:
            assert engine.backend.name == name
    assert not measured


def test_one_installed_backend_is_not_measured(monkeypatch):
    measured = with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    monkeypatch.setattr(backends, "find_spec", lambda name: name == "onnxruntime" or None)
    with Engine.load() as engine:
        assert engine.backend.name == "onnxruntime"
    assert not measured


SKEWS = {
    "labels": lambda p: p[:, ::-1],
    "probabilities": lambda p: p + 2 * CPU_LIBRARIES.probability * np.float32([1, -1]),
    "no number": lambda p: p * np.float32("nan"),
}


def skewed(monkeypatch, change) -> list[int]:
    """Let OpenVINO answer otherwise; return the sizes of its batches."""
    run, sizes = OpenVinoBackend.run, []

    def other(self, images):
        sizes.append(len(images))
        outputs = run(self, images)
        return Outputs(outputs.logits, change(outputs.probabilities))

    monkeypatch.setattr(OpenVinoBackend, "run", other)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("wrong", SKEWS)
def test_a_fast_backend_with_other_answers_is_not_taken(monkeypatch, caplog, wrong):
    with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    skewed(monkeypatch, SKEWS[wrong])
    caplog.set_level("INFO", "fmengine")
    with Engine.load() as engine:
        assert engine.backend.name == "onnxruntime"
        reason = dict(engine.attempts)["openvino"]
    assert reason.startswith("does not answer as onnxruntime does with alexnet-slim.int8.onnx: its probabilities ")
    assert f"openvino is not taken: {reason}" in caplog.text
    (diagnosis,) = (d for d in diagnose() if d.backend == "openvino")
    assert (diagnosis.works, diagnosis.chosen) == (True, False)
    assert reason in diagnosis.detail
    with Engine.load(backend="openvino") as engine:  # by name it works, and `bench` refuses it by the same measure
        assert engine.backend.name == "openvino"


@pytest.mark.slow
def test_each_model_is_compared_once(monkeypatch, tiny_models, tmp_path):
    with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    runs = skewed(monkeypatch, lambda p: p)
    for model in (None, tiny_models / "tiny.fp16.onnx"):
        for times in (1, 2):
            with Engine.load(model) as engine:
                assert engine.backend.name == "openvino"
            compared = [count for count in runs if count == select.COMPARED_BATCH]
            assert len(compared) == 8, times  # of 257 pictures; a warm-up is of 1 or 64
        runs.clear()
    skewed(monkeypatch, SKEWS["probabilities"])
    with Engine.load(tiny_models / "tiny.fp32.onnx") as engine:
        assert engine.backend.name == "onnxruntime"
    with Engine.load() as engine:
        assert engine.backend.name == "openvino", "what was found of it is remembered"


def test_without_the_default_one_there_is_nothing_to_compare_with(monkeypatch, tiny_models):
    with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)

    def refuses(cls, model, options):
        raise ModelError("of an operator that it lacks")

    monkeypatch.setattr(OnnxRuntimeBackend, "open", classmethod(refuses))
    with Engine.load(tiny_models / "tiny.int8.onnx") as engine:
        assert engine.backend.name == "openvino"


@pytest.mark.slow
def test_a_backend_that_fails_is_left_out(monkeypatch):
    def fails(cls, model, options):
        raise backends.UnavailableError("no such library")

    monkeypatch.setattr(OnnxRuntimeBackend, "open", classmethod(fails))
    assert select.measure_rates().keys() == {"openvino"}
    with Engine.load() as engine:
        assert engine.backend.name == "openvino"


def test_what_is_remembered_is_plain(monkeypatch, tmp_path):
    with_rates(monkeypatch, onnxruntime=1.0, openvino=2.0)
    select.select_backends()
    (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.suffix == ".rates")
    assert json.loads(kept.read_bytes().split(b"\n", 1)[1]) == {"onnxruntime": 1.0, "openvino": 2.0}
