"""`auto` takes a GPU only where it is faster for what is asked; here a CPU plays the GPU."""

from dataclasses import replace

import numpy as np
import pytest

from fmengine import Engine, UnavailableError
from fmengine.backend import device_choice, registry
from fmengine.backend.device_choice import Choice, Speed
from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.image.preprocess import preprocess_batch
from fmengine.options import BackendOptions
from fmengine.types import ImageOutputs

GPU = "played"


class PlayedGpu(OnnxRuntimeBackend):
    """What a GPU's backend has besides, on the CPU."""

    name = GPU
    device_index, pci_bus_id, streams = 0, "", 2

    @classmethod
    def open(cls, model, options):
        one = super().open(model, replace(options, streams=2))
        one.spec = model.spec
        return one

    def admit(self, source, channels):
        raise NotImplementedError

    def decode_jpeg(self, data):
        return None

    def register_memory(self, memory):
        return lambda: None

    def run_pictures(self, pictures):
        outputs = self.run(preprocess_batch(list(pictures), self.spec.input))
        return ImageOutputs(outputs.logits, outputs.probabilities, np.zeros(len(pictures), bool))

    def time_stages(self, batch):
        raise NotImplementedError

    time_host = time_stages


@pytest.fixture(autouse=True)
def played(monkeypatch, own_cache):
    monkeypatch.setattr(registry, "BACKENDS", {GPU: f"{__name__}:PlayedGpu"} | registry.BACKENDS)


def play_speeds(monkeypatch, of_gpu: Speed, of_cpu: Speed) -> list[int]:
    """Have these measured; the list grows by each measurement."""
    measured: list[int] = []

    def measure(backend, batch, open_cpu):
        measured.append(batch)
        return Choice(backend.name, "onnxruntime", of_gpu, of_cpu)

    monkeypatch.setattr(device_choice, "measure_choice", measure)
    return measured


@pytest.mark.parametrize(
    ("of_gpu", "throughput", "latency"),
    [
        (Speed(100e-6, 90_000), GPU, GPU),
        (Speed(700e-6, 90_000), GPU, "onnxruntime"),
        (Speed(100e-6, 5_000), "onnxruntime", GPU),
        (Speed(700e-6, 5_000), "onnxruntime", "onnxruntime"),
    ],
)
def test_what_is_faster_for_what_is_asked_is_taken(monkeypatch, of_gpu, throughput, latency):
    measured = play_speeds(monkeypatch, of_gpu, Speed(200e-6, 9_000))
    for hint, expected in (("throughput", throughput), ("latency", latency)):
        with Engine.load(backend="auto", hint=hint) as engine:
            assert engine.backend.name == expected
            reasons = dict(engine.attempts)
        assert reasons[expected] == ""
        reason = reasons["onnxruntime" if expected == GPU else GPU]
        assert reason.startswith(f"works; {expected} is taken: {'of many' if hint == 'throughput' else 'one'}")
        assert "200" in reason
        assert "9,000" in reason
    assert (f"; hint 'throughput' takes {throughput}" in reason) == (throughput != latency)
    assert measured == [64], "once, and remembered"


def test_by_name_and_for_what_needs_a_gpu_nothing_is_compared(monkeypatch):
    measured = play_speeds(monkeypatch, Speed(1, 1), Speed(1e-6, 1e9))
    for backend, jpeg in ((GPU, "cpu"), ("auto", "gpu")):
        with Engine.load(backend=backend, jpeg=jpeg) as engine:
            assert engine.backend.name == GPU
    assert not measured


def test_where_no_backend_works_on_the_cpu_the_gpu_is_taken(monkeypatch):
    def refuse(model, options):
        raise UnavailableError("not here")

    monkeypatch.setattr(PlayedGpu, "open", PlayedGpu.open)  # its own, before the CPU's is replaced
    kind = registry.load_backend_class

    def load(name):
        return kind(name) if name == GPU else type("Refused", (kind(name),), {"open": refuse})

    monkeypatch.setattr(registry, "load_backend_class", load)
    with Engine.load() as engine:
        assert engine.backend.name == GPU


@pytest.mark.slow
def test_both_are_measured_with_the_model_itself():
    backend, file, _ = registry.open_backend(GPU, None, BackendOptions(max_batch=8))
    opened = []

    def open_cpu(streams):
        cpu, found, _ = registry.open_backend("onnxruntime", None, BackendOptions(streams=streams))
        opened.append(streams)
        return cpu, found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_choice, "SECONDS", 0.05)
        choice = device_choice.compare_with_cpu(backend, file, 8, open_cpu)
        again = device_choice.compare_with_cpu(backend, file, 8, open_cpu)
    backend.close()
    assert choice == again, "it is kept"
    assert len(opened) == 2
    assert (choice.gpu, choice.cpu) == (GPU, "onnxruntime")
    for speed in (choice.of_gpu, choice.of_cpu):
        assert speed.seconds > 0
        assert speed.rate > 0


def test_another_hint_is_refused():
    with pytest.raises(ValueError, match="hint 'fast'; expected 'throughput' or 'latency'"):
        Engine.load(hint="fast")
