"""ONNX Runtime's CUDA provider, for GPUs without TensorRT, on the streams and memory of the runners."""

import io
import logging
from contextlib import redirect_stdout
from importlib.util import find_spec
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
from ..model.detector import DetectorFile
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.telemetry import import_onnxruntime
from ..trt.profile import Profile
from .backend import GpuBackend
from .network import Execution

log = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"
NO_GRAPH = -1  # of the run option `gpu_graph_id`: nothing is captured, and no graph launched
INSTALL = f"{format_install_command('gpu')} (never beside onnxruntime: they overwrite each other's files)"


class OnnxRuntimeCudaBackend(GpuBackend):
    """See `GpuBackend`."""

    name: ClassVar[str] = "onnxruntime-cuda"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32")

    def __init__(self, model: ModelFile, options: BackendOptions) -> None:
        self._library = load_onnxruntime()
        super().__init__(model, options)

    def _load_network(self, model: ModelFile, options: BackendOptions) -> "CudaNetwork":
        return CudaNetwork(self._library, model, options)

    def _describe_library(self) -> str:
        return f"onnxruntime {self._library.__version__}, {PROVIDER}"


def load_onnxruntime() -> Any:
    """Import ONNX Runtime, with its CUDA provider.

    Raises:
        UnavailableError: if it is missing, or has none.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise UnavailableError(f"ONNX Runtime cannot be imported ({error}); install it with: {INSTALL}") from error
    if PROVIDER not in onnxruntime.get_available_providers():
        raise UnavailableError(
            f"onnxruntime {onnxruntime.__version__} is installed without the CUDA provider; uninstall it, "
            f"then: {INSTALL}"
        )
    _load_cuda_libraries(onnxruntime)
    # Otherwise the process's logger prints a dozen errors for each batch size, of cuDNN plans that are only tried,
    # and a warning for each session.
    onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def open_session(library: Any, model: ModelFile | DetectorFile, settings: dict[str, str]) -> Any:
    """Open a session on a GPU.

    Args:
        library: from `load_onnxruntime`.
        model: to run.
        settings: of the provider, beside those that hold for every model.

    Raises:
        UnavailableError: if the CUDA provider is not really active: ONNX Runtime would fall back silently.
        NoRoomError: if there is no room for it.
        RefusedModelError: if ONNX Runtime refuses the model.
    """
    options = library.SessionOptions()
    options.log_severity_level = FATAL
    provider = {
        "use_tf32": "0",  # FP32 without its rounding to TF32
        "cudnn_conv_algo_search": "HEURISTIC",  # a search may choose other algorithms in another process
        "prefer_nhwc": "1",  # a tenth to a fifth less, measured on an H200
        **settings,
    }
    try:
        session = library.InferenceSession(
            model.data, options, providers=[(PROVIDER, provider)], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        kind = NoRoomError if "memory" in str(error).lower() else RefusedModelError
        raise kind(f"ONNX Runtime cannot run {model.path} on the GPU: {error}") from error
    if (active := session.get_providers())[:1] != [PROVIDER]:
        raise UnavailableError(
            f"ONNX Runtime runs on {', '.join(active)} instead of {PROVIDER}: its CUDA libraries do not load; "
            "it needs CUDA and cuDNN of the versions that it was built for"
        )
    check_signature(model, session)
    return session


class CudaNetwork:
    """The model file, and a session of it for each stream."""

    def __init__(self, library: Any, model: ModelFile, options: BackendOptions) -> None:
        self._library, self._model, self._device = library, model, options.device
        self._graphs = options.graphs
        self._sessions: dict[int, Any] = {}  # by the handle of their stream
        # ONNX Runtime allocates memory while it runs, which our capture forbids; it captures a graph by itself.
        self.capturable = False
        self.profiles: tuple[Profile, ...] = (Profile(1, options.max_batch, options.max_batch),)

    def create_execution(self, profile: int, addresses: dict[str, int], stream: Any) -> Execution:
        """Create an execution on a stream that reads and writes at these addresses, without a graph.

        Raises:
            UnavailableError: if the CUDA provider is not really active: ONNX Runtime would fall back silently.
            NoRoomError: if there is no room for it.
            RefusedModelError: if ONNX Runtime refuses the model.
        """
        return CudaExecution(
            self._library, self._get_session(stream), self._model, self._device, addresses, NO_GRAPH
        )

    def create_class_execution(
        self, profile: int, batch: int, addresses: dict[str, int], stream: Any
    ) -> Execution:
        """Create an execution for batches of one size, which is the number of the graph that is captured."""
        session = self._get_session(stream)  # which may find that there are to be no graphs
        graph = batch if self._graphs else NO_GRAPH
        return CudaExecution(self._library, session, self._model, self._device, addresses, graph)

    def close(self) -> None:
        """Free the sessions' memory, after their executions."""
        self._sessions.clear()

    def _get_session(self, stream: Any) -> Any:
        """Return the session of a stream; its weights and memory are shared by all executions there."""
        handle = int(stream.handle)
        if handle not in self._sessions:
            self._sessions[handle] = self._make_session(handle)
        return self._sessions[handle]

    def _make_session(self, stream: int) -> Any:
        """Open a session that captures graphs, or one that does not, where ONNX Runtime refuses that."""
        settings = {"device_id": str(self._device), "user_compute_stream": str(stream)}
        if self._graphs:
            try:
                return open_session(self._library, self._model, {**settings, "enable_cuda_graph": "1"})
            except (RefusedModelError, NoRoomError) as error:
                log.info("ONNX Runtime makes no CUDA graphs of %s: %s", self._model.path, error)
                self._graphs = False
        return open_session(self._library, self._model, settings)


class CudaExecution:
    """Runs of a session over memory on the GPU; with a graph's number all of them are of one size."""

    def __init__(
        self, library: Any, session: Any, model: ModelFile, device: int, addresses: dict[str, int], graph: int
    ) -> None:
        self._session, self._spec, self._device, self._addresses = session, model.spec, device, addresses
        # The runner synchronizes its stream, once for all that it enqueued.
        self._run = library.RunOptions()
        self._run.log_severity_level = FATAL
        self._run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._run.add_run_config_entry("gpu_graph_id", str(graph))
        self._binding: Any = None
        self._batch = 0

    def enqueue(self, batch: int, stream: Any) -> None:
        """Put a run over `batch` pictures into the stream that the session was made with."""
        if batch != self._batch:
            self._binding, self._batch = self._bind(batch), batch
        try:
            self._session.run_with_iobinding(self._binding, self._run)
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run a batch of {batch} on the GPU: {error}") from error

    def free(self) -> None:
        """Let go of the session."""
        self._session = self._binding = None

    def _bind(self, batch: int) -> Any:
        binding = self._session.io_binding()
        shape = self._spec.input_shape(batch)
        binding.bind_input("images", "cuda", self._device, np.uint8, shape, self._addresses["images"])
        for name, rows in self._spec.output_shapes(batch).items():
            binding.bind_output(name, "cuda", self._device, np.float32, rows, self._addresses[name])
        return binding


def _load_cuda_libraries(onnxruntime: Any) -> None:
    """Have ONNX Runtime find CUDA and cuDNN where they come from wheels; what it prints of that is logged."""
    if find_spec("nvidia") is None or not hasattr(onnxruntime, "preload_dlls"):
        return
    said = io.StringIO()
    with redirect_stdout(said):
        onnxruntime.preload_dlls()
    if words := said.getvalue().strip():
        log.debug("ONNX Runtime's libraries: %s", words)
