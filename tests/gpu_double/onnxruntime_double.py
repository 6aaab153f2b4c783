"""A test double of ONNX Runtime's CUDA provider: the CPU provider behind it, on the test double's streams."""

import ctypes
from typing import Any

import numpy as np
import onnxruntime
import pytest

from . import driver

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Real = onnxruntime.InferenceSession
active = [CUDA, CPU]  # what sessions say that they run on


class Binding:
    def __init__(self) -> None:
        self.bound: dict[str, tuple[tuple[int, ...], Any, int]] = {}

    def bind_input(self, name: str, kind: str, device: int, dtype: Any, shape: Any, address: int) -> None:
        assert kind == "cuda"
        self.bound[name] = (tuple(shape), np.dtype(dtype), address)

    bind_output = bind_input


class Session:
    def __init__(self, model: bytes, settings: Any, providers: list[Any], enable_fallback: int = 1) -> None:
        if providers == [CPU]:
            self.stream = None
        else:
            ((name, options),) = providers
            assert name == CUDA
            assert not enable_fallback
            self.stream = int(options["user_compute_stream"])
        self.session = Real(model, settings, providers=[CPU])

    def get_providers(self) -> list[str]:
        return [CPU] if self.stream is None else active

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if driver.enqueue(self.stream, lambda: self.compute(binding)):
            raise RuntimeError("CUDA failure")

    def compute(self, binding: Binding) -> int:
        arrays = {}
        for name, (shape, dtype, address) in binding.bound.items():
            size = int(np.prod(shape)) * dtype.itemsize
            if not driver.holds(address, size):
                return 700
            memory = (ctypes.c_char * size).from_address(address)
            arrays[name] = np.frombuffer(memory, dtype).reshape(shape)
        outputs = self.session.run(["logits", "probabilities"], {"images": arrays["images"].copy()})
        arrays["logits"][...], arrays["probabilities"][...] = outputs
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for onnxruntime-gpu in this process."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
