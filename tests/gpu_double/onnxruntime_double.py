"""A test double of ONNX Runtime's CUDA provider: the CPU provider behind it, on the test double's streams."""

import ctypes
import os
from typing import Any

import numpy as np
import onnxruntime
import pytest

from . import driver
from .tensorrt_double import load_network

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Real = onnxruntime.InferenceSession
faults: dict[str, bool] = {}  # `session`, `capture`: what a graph is refused at
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
            self.stream = int(options.get("user_compute_stream", 0))
            self.captures = options.get("enable_cuda_graph") == "1"
            if self.captures and faults.get("session"):
                raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
            self.graphs: dict[str, Binding] = {}
            _say("No registered plugin EP device found for 'CUDAExecutionProvider'")
            self.network = load_network(model)
        self.session = Real(model, settings, providers=[CPU])

    def get_providers(self) -> list[str]:
        return [CPU] if self.stream is None else active

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        _say("[cudnn_frontend] Error: No execution plans support the graph.")
        number = options.get_run_config_entry("gpu_graph_id")
        if self.captures and number != "-1" and faults.get("capture"):
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        if self.captures and number != "-1":  # whatever is bound later: a graph keeps its shapes and addresses
            binding = self.graphs.setdefault(number, binding)
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
        answers = self.network.answer(arrays["images"].copy())
        for name, rows in zip(self.network.names, answers, strict=True):
            if name in arrays:
                arrays[name][...] = rows
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


_severity = 2  # of the process's logger: warnings


def _set_severity(severity: int) -> None:
    global _severity
    _severity = severity


def _say(words: str) -> None:
    """As the library does of runs that succeed, unless its process's logger is told to keep quiet."""
    if _severity < 4:
        os.write(2, f"[E:onnxruntime:Default] {words}\n".encode())


def preload_dlls() -> None:
    print("Failed to load libcublasLt.so.13")


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for onnxruntime-gpu in this process."""
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", _set_severity)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
