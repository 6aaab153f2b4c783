"""The backends over TensorRT and TensorRT-RTX, on NVIDIA GPUs.

The engine is built from the FP16 model file at first use, on its own GPU, and kept in a private cache; or it comes
out of an engine file. Either is compared with the CPU before it may answer.
"""

import hashlib
import json
from typing import ClassVar

from ..backend.onnxruntime import OnnxRuntimeBackend
from ..check.gate import Passed, check_engine
from ..model.engine_file import BuiltEngine
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.cache import Cache
from ..system.manifest import Key
from ..trt.cached import load_or_build_engine
from ..trt.engine import EngineFileError, Network
from ..trt.library import Library, describe_library, describe_system, get_logger, load_library
from ..trt.profile import BuildOptions
from .backend import GpuBackend
from .runner import Runner, list_execution_paths


class TensorRtBackend(GpuBackend):
    """TensorRT 10.12 to 11."""

    name: ClassVar[str] = "tensorrt"
    library: ClassVar[Library] = "tensorrt"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16",)

    def __init__(self, model: ModelFile, options: BackendOptions) -> None:
        if model.engine is not None:
            model.engine.require_trust(allow_untrusted=options.allow_untrusted_engine)
        self._library = load_library(self.library)
        self._model = model
        super().__init__(model, options)

    def describe(self) -> dict[str, str]:
        worst = max(passed.largest for passed in self.passed)
        return super().describe() | {"gate": f"probabilities within {worst:.2g} of the CPU's, on every path"}

    def _build_options(self, options: BackendOptions) -> BuildOptions:
        return BuildOptions.for_batch(options.max_batch)

    def _load_network(self, model: ModelFile, options: BackendOptions) -> Network:
        """Load the engine from its file or the cache, or build it."""
        if model.engine is not None:
            return self._load_engine_file(model.engine, options)
        build = self._build_options(options)
        network, engine, key = load_or_build_engine(self._library, model, build, self.gpu, self._deserialise)
        self._gate_key = _make_gate_key(key, engine, options)
        return network

    def _load_engine_file(self, engine: BuiltEngine, options: BackendOptions) -> Network:
        """Load an engine that was built elsewhere or before; it is never built again."""
        engine.check_machine(self._describe_library(), describe_system(), self.gpu)
        try:
            network = self._deserialise(engine.data)
        except EngineFileError as error:
            found = f"{engine.path}, built by {engine.describe()}, on {self.gpu.model}"
            raise EngineFileError(f"{found}: {error}") from error
        self._gate_key = _make_gate_key({**engine.manifest, "gpu": str(self.gpu)}, engine.data, options)
        return network

    def _deserialise(self, engine: bytes) -> Network:
        return Network(self._library, get_logger(self._library), engine, self.spec)

    def _check_network(self, runner: Runner) -> None:
        """Pass the gate, once for each engine and GPU."""
        cache = Cache()
        record = cache.load("gate", self._gate_key)
        if record is None:
            reference = OnnxRuntimeBackend.open(self._model, BackendOptions())
            try:
                passed = check_engine(list_execution_paths(runner), reference.run, self.spec)
            finally:
                reference.close()
            record = json.dumps(passed).encode()
            cache.store("gate", self._gate_key, record)
        self.passed = [Passed(*row) for row in json.loads(record)]

    def _describe_library(self) -> str:
        return describe_library(self._library)


class TensorRtRtxBackend(TensorRtBackend):
    """TensorRT-RTX, whose engines are built for a compute capability, on any machine."""

    name: ClassVar[str] = "tensorrt-rtx"
    library: ClassVar[Library] = "tensorrt_rtx"

    def _build_options(self, options: BackendOptions) -> BuildOptions:
        return BuildOptions.for_batch(options.max_batch, compute_capabilities=(self.gpu.capability,))


def _make_gate_key(key: Key, engine: bytes, options: BackendOptions) -> Key:
    """Make the key under which it is kept that an engine passed the gate on this GPU, with this driver."""
    graphs = "on" if options.graphs else "off"
    return {**key, "engine": hashlib.sha256(engine).hexdigest(), "graphs": graphs}
