"""A backend works or says why not, and `auto` takes the first that works."""

import subprocess
import sys

import pytest

from fmengine import Engine, ModelError, UnavailableError
from fmengine.backend import registry as backends
from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.backend.registry import Attempt, open_backend
from fmengine.model.file import load_model_file
from fmengine.options import BackendOptions
from fmengine.system.nvidia import require_driver


class Broken(OnnxRuntimeBackend):
    """A backend whose library is not there."""

    name = "broken"

    @classmethod
    def open(cls, model, options):
        raise UnavailableError("no such device")


@pytest.fixture
def with_broken_first(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Broken", Broken)
    monkeypatch.setattr(backends, "BACKENDS", {"broken": f"{__name__}:Broken", **backends.BACKENDS})


def test_an_unknown_backend_lists_the_alternatives():
    with pytest.raises(UnavailableError, match=r"unknown backend 'cuda'; available are auto, .*onnxruntime"):
        Engine.load(backend="cuda")


@pytest.mark.usefixtures("with_broken_first")
def test_auto_takes_the_first_that_works_and_keeps_the_reasons():
    with Engine.load() as engine:
        assert engine.backend.name == "onnxruntime"
        assert engine.attempts[0] == Attempt("broken", "no such device")
        assert engine.attempts[-1] == Attempt("onnxruntime", "")
        assert {attempt.name for attempt in engine.attempts} == backends.BACKENDS.keys()
        assert all(attempt.reason for attempt in engine.attempts[:-1])


@pytest.mark.usefixtures("with_broken_first")
def test_a_backend_asked_for_by_name_never_falls_back():
    with pytest.raises(UnavailableError, match="no such device"):
        Engine.load(backend="broken")


def test_nothing_that_works_gives_every_reason(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {"broken": f"{__name__}:Broken"})
    with pytest.raises(UnavailableError, match="no backend works on this machine: broken: no such device"):
        Engine.load()


def test_without_onnxruntime_the_extra_is_named():
    code = (
        "import sys; sys.modules['onnxruntime'] = None; import fmengine; fmengine.Engine.load(None, 'onnxruntime')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install '.[cpu]' in a checkout of fmengine" in done.stderr.splitlines()[-1]


def test_a_file_of_a_precision_that_the_backend_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(OnnxRuntimeBackend, "precisions", ("fp32",))
    path = backends.resolve(None, ("int8",))
    with pytest.raises(ModelError, match="is int8, which onnxruntime does not run; it needs fp32"):
        Engine.load(path, "onnxruntime")


def test_a_model_that_takes_no_such_batch_is_refused(monkeypatch):
    """As a foreign model may, which was exported for one picture at a time."""
    run = OnnxRuntimeBackend.run

    def one_at_a_time(self, images):
        if len(images) > 1:
            raise RuntimeError("Got invalid dimensions")
        return run(self, images)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", one_at_a_time)
    with pytest.raises(ModelError, match="with a batch of 64; expected a model that takes any batch"):
        Engine.load()
    Engine.load(max_batch=1).close()


def test_a_backend_says_what_it_runs_on():
    backend, file, _ = open_backend("onnxruntime", None, BackendOptions(threads=1))
    described = backend.describe()
    assert described["backend"] == "onnxruntime"
    assert described["library"].startswith("onnxruntime ")
    assert described["threads"] == "1"
    assert file.spec.precision == "int8"
    backend.close()


@pytest.mark.usefixtures("with_broken_first")
def test_candidates_of_one_file_read_it_once(monkeypatch):
    read = []

    def load(path):
        read.append(path)
        return load_model_file(path)

    monkeypatch.setattr(backends, "load_model_file", load)
    with Engine.load() as engine:  # both candidates run the INT8 file
        assert read.count(engine.model_path) == 1


def test_without_a_driver_nothing_is_imported_for_a_gpu():
    code = "import sys; from fmengine import Engine; Engine.load().close(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    try:
        require_driver()
    except UnavailableError:
        modules = done.stdout.split()
        assert "fmengine.backend.registry" in modules
        assert not [name for name in modules if name.startswith("fmengine.gpu")]
    else:
        pytest.skip("this machine has a driver")
