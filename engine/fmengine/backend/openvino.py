"""OpenVINO on x86 CPUs: faster than ONNX Runtime on large batches, where its kernels suit the processor."""

import threading
from typing import Any, ClassVar, Self

from ..errors import (
    CLOSED,
    FmengineError,
    ModelError,
    UnavailableError,
    install_hint,
)
from ..model.file import ModelFile
from ..model.spec import Precision
from ..system.cores import usable_cores
from ..types import InputBatch, Outputs
from .registry import Options, describe_threads


class OpenVinoBackend:
    """See `fmengine.backend.registry.Backend`."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("int8", "fp32", "fp16")

    def __init__(self, model: ModelFile, options: Options) -> None:
        try:
            import openvino
        except Exception as error:  # what it imports may raise anything, as where there is no home folder
            raise UnavailableError(
                f"OpenVINO cannot be imported ({error}); install it with: {install_hint('openvino')}"
            ) from error
        self._streams = options.streams or 1
        self._threads = options.threads or usable_cores()
        # The default precision is bf16 on some processors, whose answers differ.
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT" if self._streams > 1 else "LATENCY",
            "NUM_STREAMS": self._streams,
            "INFERENCE_NUM_THREADS": self._threads,
        }
        try:
            core = openvino.Core()
            # From the bytes that were checked, so that the file cannot change in between.
            self._network = core.compile_model(core.read_model(model.data), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise ModelError(f"OpenVINO refuses {model.path}: {error}") from error
        self._version = openvino.__version__.split("-")[0]
        self._requests = threading.local()  # a request holds the tensors of one call at a time
        self._closed = False

    @classmethod
    def open(cls, model: ModelFile, options: Options) -> Self:
        return cls(model, options)

    def run(self, images: InputBatch) -> Outputs:
        if self._closed:
            raise FmengineError(CLOSED)
        if not hasattr(self._requests, "one"):
            self._requests.one = self._network.create_infer_request()
        results = self._requests.one.infer({"images": images}, share_inputs=True)
        return Outputs(results["logits"], results["probabilities"])

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": f"openvino {self._version}",
            "device": "cpu",
            "threads": describe_threads(max(1, self._threads // self._streams), self._streams),
        }

    def close(self) -> None:
        self._closed = True
        del self._network
