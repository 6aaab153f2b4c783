"""OpenVINO on x86 CPUs: faster than ONNX Runtime on large batches, where its kernels suit the processor."""

import threading
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import (
    ClosedError,
    ModelError,
    UnavailableError,
    format_install_command,
)
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system import fork
from ..system.cores import usable_cores
from ..types import Outputs
from .protocol import describe_threads


class OpenVinoBackend:
    """See `fmengine.backend.protocol.Backend`."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("int8", "fp32", "fp16")

    def __init__(self, model: ModelFile, options: BackendOptions) -> None:
        try:
            import openvino
        except Exception as error:  # what it imports may raise anything, as where there is no home folder
            raise UnavailableError(
                f"OpenVINO cannot be imported ({error}); install it with: {format_install_command('openvino')}"
            ) from error
        self._library, self._model = openvino, model
        self._streams = options.streams or 1
        self._threads = options.threads or usable_cores()
        self._closed = False
        self._begin(self._compile())
        fork.register(self)

    @classmethod
    def open(cls, model: ModelFile, options: BackendOptions) -> Self:
        return cls(model, options)

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        network = self._network or self._reopen()
        try:
            request = self._idle.pop()
        except IndexError:
            request = network.create_infer_request()
        results = request.infer({"images": images}, share_inputs=True)
        outputs = Outputs(results["logits"], results["probabilities"])
        self._idle.append(request)
        return outputs

    def reset_after_fork(self) -> None:
        """Leave the network to the parent, whose threads compute for it; `run` compiles it anew."""
        fork.leak(self._network)
        fork.leak(self._idle)
        self._begin(None)

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": f"openvino {self._library.__version__.split('-')[0]}",
            "device": "cpu",
            "threads": describe_threads(max(1, self._threads // self._streams), self._streams),
        }

    def close(self) -> None:
        self._closed, self._network = True, None
        self._idle.clear()

    def _begin(self, network: Any) -> None:
        """Set the network, without requests or waiting threads; None where `run` is to compile it."""
        self._network = network
        self._idle: list[Any] = []  # requests that no thread uses: each holds the tensors of one call at a time
        self._lock = threading.Lock()

    def _compile(self) -> Any:
        # The default precision is bf16 on some processors, whose answers differ.
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT" if self._streams > 1 else "LATENCY",
            "NUM_STREAMS": self._streams,
            "INFERENCE_NUM_THREADS": self._threads,
        }
        try:
            core = self._library.Core()
            # From the bytes that were checked, so that the file cannot change in between.
            return core.compile_model(core.read_model(self._model.data), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise ModelError(f"OpenVINO refuses {self._model.path}: {error}") from error

    def _reopen(self) -> Any:
        """Compile the network of a forked child, once for all its threads."""
        with self._lock:
            if self._closed:
                raise ClosedError
            self._network = self._network or self._compile()
            return self._network
