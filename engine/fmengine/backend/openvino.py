"""OpenVINO on x86 CPUs: faster than ONNX Runtime on large batches, where its kernels suit the processor."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import (
    ModelError,
    UnavailableError,
    format_install_command,
)
from ..model.detector import DetectorFile
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.cores import usable_cores
from ..system.fork import PerProcess
from ..types import Outputs
from .protocol import describe_threads


class OpenVinoBackend:
    """See `fmengine.backend.protocol.Backend`."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("int8", "fp32", "fp16")

    def __init__(self, model: ModelFile | DetectorFile, options: BackendOptions) -> None:
        try:
            import openvino
        except Exception as error:  # what it imports may raise anything, as where there is no home folder
            raise UnavailableError(
                f"OpenVINO cannot be imported ({error}); install it with: {format_install_command('openvino')}"
            ) from error
        self._version = openvino.__version__.split("-")[0]
        self._streams = options.streams or 1
        self._threads = options.threads or usable_cores()
        self._network = PerProcess(partial(_Network, openvino, model, self._streams, self._threads))

    @classmethod
    def open(cls, model: ModelFile | DetectorFile, options: BackendOptions) -> Self:
        return cls(model, options)

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        return (self._network.value or self._network.remake()).run(images)

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": f"openvino {self._version}",
            "device": "cpu",
            "threads": describe_threads(max(1, self._threads // self._streams), self._streams),
        }

    def close(self) -> None:
        self._network.close()


class _Network:
    """A compiled network, and requests to it: each holds the tensors of one call at a time."""

    def __init__(self, library: Any, model: ModelFile | DetectorFile, streams: int, threads: int) -> None:
        # The default precision is bf16 on some processors, whose answers differ.
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            core = library.Core()
            # From the bytes that were checked, so that the file cannot change in between.
            self._compiled = core.compile_model(core.read_model(model.data), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise ModelError(f"OpenVINO refuses {model.path}: {error}") from error
        self._outputs: type[Outputs] = model.spec.outputs
        self._output_names = model.spec.output_names
        self._idle: list[Any] = []  # requests that no thread uses

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        results = request.infer({"images": images}, share_inputs=True)
        outputs = self._outputs(*(results[name] for name in self._output_names))
        self._idle.append(request)
        return outputs
