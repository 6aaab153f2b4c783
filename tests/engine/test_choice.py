"""What `auto` takes on a CPU: the fastest by measurement, remembered, and never at the price of an answer."""

import json

import numpy as np
import pytest

from fmengine import Engine, backends
from fmengine.backends import CPU_BACKENDS, Outputs, choice
from fmengine.backends.onnxruntime import OnnxRuntimeBackend
from fmengine.backends.openvino import OpenVinoBackend

pytest.importorskip("openvino", reason="with one backend there is nothing to choose")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A cache that remembers nothing."""
    monkeypatch.setenv("FMENGINE_CACHE", str(tmp_path / "cache"))


def found(monkeypatch, **rates: float) -> list[int]:
    """Put figures in the place of the measurement; how often it was asked for."""
    asked: list[int] = []
    monkeypatch.setattr(choice, "measure", lambda: asked.append(1) or rates)
    return asked


def test_both_are_measured():
    rates = choice.measure()
    assert rates.keys() == set(CPU_BACKENDS)
    assert min(rates.values()) > 0


@pytest.mark.parametrize(("other", "taken"), [(50.0, 0), (100.0, 0), (129.0, 0), (131.0, 1), (500.0, 1)])
def test_another_is_taken_where_it_is_worth_it(monkeypatch, other, taken):
    found(monkeypatch, onnxruntime=100.0, openvino=other)
    with Engine.load() as engine:
        assert engine.backend.name == CPU_BACKENDS[taken]
        reasons = dict(engine.attempts)
        assert reasons[engine.backend.name] == ""
        assert f"openvino {other:,.0f}" in reasons["openvino"] or taken
        assert f"openvino is taken: {other:,.0f} pictures" in reasons["onnxruntime"] or not taken


def test_it_is_measured_once_and_remembered(monkeypatch):
    asked = found(monkeypatch, onnxruntime=1.0, openvino=2.0)
    for _ in range(3):
        assert choice.choose().order[0] == "openvino"
    assert len(asked) == 1
    monkeypatch.setattr(choice, "usable_cores", lambda: 77)
    choice.choose()
    assert len(asked) == 2, "another machine"


def test_a_cache_that_cannot_be_used_costs_a_measurement(monkeypatch, tmp_path):
    asked = found(monkeypatch, onnxruntime=1.0, openvino=2.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FMENGINE_CACHE", str(tmp_path / "file"))
    assert choice.choose().order[0] == choice.choose().order[0] == "openvino"
    assert len(asked) == 2


def test_by_name_nothing_is_measured(monkeypatch):
    asked = found(monkeypatch, onnxruntime=1.0, openvino=2.0)
    for name in CPU_BACKENDS:
        with Engine.load(backend=name) as engine:
            assert engine.backend.name == name
    assert not asked


def test_one_installed_backend_is_not_measured(monkeypatch):
    asked = found(monkeypatch, onnxruntime=1.0, openvino=2.0)
    monkeypatch.setattr(backends, "find_spec", lambda name: name == "onnxruntime" or None)
    with Engine.load() as engine:
        assert engine.backend.name == "onnxruntime"
    assert not asked


@pytest.mark.parametrize("wrong", ["labels", "probabilities"])
def test_a_fast_backend_with_other_answers_is_left_out(monkeypatch, wrong):
    def quick(self, images):
        swapped = np.tile(np.float32([[0.9, 0.1]]), (len(images), 1))
        answers = OnnxRuntimeBackend.run(reference, images)
        if wrong == "labels":
            return Outputs(answers.logits[:, ::-1], answers.probabilities[:, ::-1])
        return Outputs(answers.logits, swapped)

    file = backends.load_model_file(backends.resolve(None, ("int8",)))
    reference = OnnxRuntimeBackend.open(file, backends.Options())
    monkeypatch.setattr(OpenVinoBackend, "run", quick)
    assert choice.measure().keys() == {"onnxruntime"}


def test_a_backend_that_fails_is_left_out(monkeypatch):
    def fails(cls, model, options):
        raise backends.UnavailableError("no such library")

    monkeypatch.setattr(OnnxRuntimeBackend, "open", classmethod(fails))
    assert choice.measure().keys() == {"openvino"}
    with Engine.load() as engine:
        assert engine.backend.name == "openvino"


def test_what_is_remembered_is_plain(monkeypatch, tmp_path):
    found(monkeypatch, onnxruntime=1.0, openvino=2.0)
    choice.choose()
    (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.suffix == ".choice")
    assert json.loads(kept.read_bytes().split(b"\n", 1)[1]) == {"onnxruntime": 1.0, "openvino": 2.0}
