"""ONNX Runtime's CUDA provider, for GPUs without TensorRT, on the streams and memory of the runners."""

from typing import Any, ClassVar

import numpy as np

from ..backend.onnxruntime import FATAL, check_signature
from ..errors import (
    DeviceError,
    NoRoomError,
    RefusedModelError,
    UnavailableError,
    format_install_command,
)
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.telemetry import import_onnxruntime
from ..trt.profile import Profile
from .backend import GpuBackend
from .network import Execution

PROVIDER = "CUDAExecutionProvider"
INSTALL = f"{format_install_command('gpu')} (never beside onnxruntime: they overwrite each other's files)"


class OnnxRuntimeCudaBackend(GpuBackend):
    """See `GpuBackend`."""

    name: ClassVar[str] = "onnxruntime-cuda"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32")

    def __init__(self, model: ModelFile, options: BackendOptions) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise UnavailableError(
                f"ONNX Runtime cannot be imported ({error}); install it with: {INSTALL}"
            ) from error
        if PROVIDER not in onnxruntime.get_available_providers():
            raise UnavailableError(
                f"onnxruntime {onnxruntime.__version__} is installed without the CUDA provider; uninstall it, "
                f"then: {INSTALL}"
            )
        self._library = onnxruntime
        # Otherwise the process's logger prints a dozen errors for each batch size, of cuDNN plans that are only
        # tried, and a warning for each session.
        onnxruntime.set_default_logger_severity(FATAL)
        super().__init__(model, options)

    def _load_network(self, model: ModelFile, options: BackendOptions) -> "CudaNetwork":
        return CudaNetwork(self._library, model, options)

    def _describe_library(self) -> str:
        return f"onnxruntime {self._library.__version__}, {PROVIDER}"


class CudaNetwork:
    """The model file, and a session of it for each stream."""

    def __init__(self, library: Any, model: ModelFile, options: BackendOptions) -> None:
        self._library, self._model, self._device = library, model, options.device
        # ONNX Runtime allocates memory while it runs, which a capture forbids.
        self.capturable = False
        self.profiles: tuple[Profile, ...] = (Profile(1, options.max_batch, options.max_batch),)

    def create_execution(self, profile: int, addresses: dict[str, int], stream: Any) -> Execution:
        """Create a session that works on a stream and reads and writes at these addresses.

        Raises:
            UnavailableError: if the CUDA provider is not really active: ONNX Runtime would fall back silently.
            NoRoomError: if there is no room for it.
            RefusedModelError: if ONNX Runtime refuses the model.
        """
        settings = self._library.SessionOptions()
        settings.log_severity_level = FATAL
        provider = {
            "device_id": str(self._device),
            "user_compute_stream": str(stream.handle),
            "use_tf32": "0",  # FP32 without its rounding to TF32
            "cudnn_conv_algo_search": "HEURISTIC",  # a search may choose other algorithms in another process
        }
        try:
            session = self._library.InferenceSession(
                self._model.data, settings, providers=[(PROVIDER, provider)], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            kind = NoRoomError if "memory" in str(error).lower() else RefusedModelError
            raise kind(f"ONNX Runtime cannot run {self._model.path} on the GPU: {error}") from error
        if (active := session.get_providers())[:1] != [PROVIDER]:
            raise UnavailableError(
                f"ONNX Runtime runs on {', '.join(active)} instead of {PROVIDER}: its CUDA libraries do not load; "
                "it needs CUDA and cuDNN of the versions that it was built for"
            )
        check_signature(self._model, session)
        return CudaExecution(self._library, session, self._model, self._device, addresses)

    def close(self) -> None:
        """Release nothing: each session belongs to its execution."""


class CudaExecution:
    """One session, bound to memory on the GPU."""

    def __init__(
        self, library: Any, session: Any, model: ModelFile, device: int, addresses: dict[str, int]
    ) -> None:
        self._session, self._spec, self._device, self._addresses = session, model.spec, device, addresses
        # The runner synchronizes its stream, once for all that it enqueued.
        self._run = library.RunOptions()
        self._run.log_severity_level = FATAL
        self._run.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self, batch: int, stream: Any) -> None:
        """Put a run over `batch` pictures into the stream that the session was made with."""
        binding = self._session.io_binding()
        shape = self._spec.input_shape(batch)
        binding.bind_input("images", "cuda", self._device, np.uint8, shape, self._addresses["images"])
        for name in ("logits", "probabilities"):
            rows = (batch, len(self._spec.labels))
            binding.bind_output(name, "cuda", self._device, np.float32, rows, self._addresses[name])
        try:
            self._session.run_with_iobinding(binding, self._run)
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run a batch of {batch} on the GPU: {error}") from error

    def free(self) -> None:
        """Free the session's memory."""
        self._session = None
