"""A test double of TensorRT's Python API: ONNX Runtime on the CPU behind TensorRT's own method names.

It takes work as TensorRT does: an engine's context has a profile, a shape and addresses, and enqueues on a
stream. It holds TensorRT's rules: a shape outside the profile is refused, a context must have run a shape before
a capture, and a graph whose context was reshaped afterwards answers with NaN.
"""

import ctypes
import json
import sys
from enum import IntEnum
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

from fmengine.check import gate

from . import driver

ILLEGAL_ADDRESS = 700
FIRST_LINE = b"an engine of the test double\n"
faults: dict[str, Any] = {}  # `deserialize`, `context`, `run`: what fails; `skew`: added to the probabilities


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


class LayerType(IntEnum):
    CONVOLUTION = 0
    MATRIX_MULTIPLY = 1


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: content or b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        return True


class NetworkDefinition:
    """One layer, in half precision: what the builder looks at. The model is its ONNX."""

    num_layers = 1

    def __init__(self) -> None:
        self.onnx = b""

    def get_layer(self, index: int) -> Any:
        output = SimpleNamespace(dtype=DataType.HALF)
        return SimpleNamespace(type=LayerType.CONVOLUTION, name="conv", num_outputs=1, get_output=lambda i: output)


class OnnxParser:
    def __init__(self, network: NetworkDefinition, logger: ILogger) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        self.network.onnx = data
        return True


_registered: list[ILogger] = []


def register(logger: ILogger) -> ILogger:
    """The logger that is written to: the process's first, whichever library got it, whatever is given later."""
    if not _registered:
        _registered.append(logger)
    elif logger is not _registered[0]:
        _registered[0].log(Severity.WARNING, "The logger passed in differs from one already registered")
    return _registered[0]


class Builder:
    builds = 0

    def __init__(self, logger: ILogger) -> None:
        register(logger)

    def create_network(self, flags: int) -> NetworkDefinition:
        return NetworkDefinition()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: NetworkDefinition, config: Config) -> bytes:
        Builder.builds += 1
        shapes = [profile.shapes["images"] for profile in config.profiles]
        return FIRST_LINE + json.dumps(shapes).encode() + b"\n" + network.onnx


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = register(logger)

    def deserialize_cuda_engine(self, engine: bytes) -> "CudaEngine | None":
        if not engine.startswith(FIRST_LINE) or faults.pop("deserialize", False):
            self.logger.log(
                Severity.ERROR, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
            )
            return None
        shapes, onnx = engine[len(FIRST_LINE) :].split(b"\n", 1)
        return CudaEngine(onnx, json.loads(shapes), self.logger)


class Network:
    """A network on the CPU; it runs each picture once, for a picture's answer does not depend on its batch."""

    def __init__(self, onnx: bytes) -> None:
        settings = SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.known: dict[tuple[Any, ...], list[np.ndarray]] = {}

    def answer(self, images: np.ndarray) -> list[np.ndarray]:
        """Return every output, in the order of `names`."""
        keys = [(image.shape, image.tobytes()) for image in images]
        if new := [index for index, key in enumerate(keys) if key not in self.known]:
            outputs = self.session.run(self.names, {"images": images[new]})
            self.known.update(zip((keys[i] for i in new), map(list, zip(*outputs, strict=True)), strict=True))
        return list(map(np.stack, zip(*(self.known[key] for key in keys), strict=True)))


load_network = cache(Network)  # shared by all engines of a process that are made of it


class CudaEngine:
    device_memory_size_v2 = 1 << 20

    def __init__(self, onnx: bytes, shapes: list[list[list[int]]], logger: ILogger) -> None:
        self.network = load_network(onnx)
        self.shapes, self.logger = shapes, logger
        self.num_optimization_profiles = len(shapes)
        # A name stands for a size that is open, in an ONNX; -1 in TensorRT.
        self.tensors = {
            tensor.name: [size if isinstance(size, int) else -1 for size in tensor.shape]
            for tensor in (*self.network.session.get_inputs(), *self.network.session.get_outputs())
        }
        self.names = list(self.tensors)
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "images" else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.tensors[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self.shapes[profile]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace()

    def create_execution_context(self, settings: Any = None) -> "ExecutionContext | None":
        if faults.get("context"):
            self.logger.log(Severity.ERROR, "out of memory")
            return None
        return ExecutionContext(self)


class ExecutionContext:
    def __init__(self, engine: CudaEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.changes = 0  # of shape, profile or addresses
        self.ran_at = -1  # the number of changes when it last ran

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        self.changes += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.shapes[self.profile]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return False
        self.shape = tuple(shape)
        self.changes += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            self.engine.logger.log(Severity.ERROR, f"{name} is not aligned")
            return False
        self.addresses[name] = address
        self.changes += 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if faults.get("run") or not self.shape or set(self.addresses) != set(self.engine.names):
            self.engine.logger.log(Severity.ERROR, "the context is not ready to run")
            return False
        captured = driver.captures(stream)
        if captured and self.ran_at != self.changes:
            self.engine.logger.log(Severity.ERROR, "a capture of shapes that have not run before")
            return False
        shape, addresses, changes = self.shape, dict(self.addresses), self.changes
        # A graph is tied to the shape and the addresses that its context had when it was captured.
        call = lambda: self.run(shape, addresses, changes, captured)  # noqa: E731
        return driver.enqueue(stream, call) == 0

    def run(self, shape: tuple[int, ...], addresses: dict[str, int], changes: int, captured: bool) -> int:
        """What the GPU would do, when the stream comes to it. The result is a CUresult."""
        poisoned = captured and changes != self.changes
        self.ran_at = changes
        size = int(np.prod(shape))
        if not driver.holds(addresses["images"], size):
            return ILLEGAL_ADDRESS
        images = np.frombuffer(_memory(addresses["images"], size), np.uint8).reshape(shape)
        outputs = dict(zip(self.engine.names[1:], self.engine.network.answer(images.copy()), strict=True))
        if not all(driver.holds(addresses[name], rows.nbytes) for name, rows in outputs.items()):
            return ILLEGAL_ADDRESS
        for name, rows in outputs.items():
            there = np.frombuffer(_memory(addresses[name], rows.nbytes), np.float32).reshape(rows.shape)
            skew = faults.get("skew", 0) if name in ("probabilities", "cls") else 0
            there[...] = np.nan if poisoned else rows + skew
        return 0


def _memory(address: int, size: int) -> Any:
    return (ctypes.c_char * size).from_address(address)


def install(name: str = "tensorrt", version: str = "11.4.0.106") -> ModuleType:
    """Stand in for the library in this process."""
    gate.PICTURES = 32  # every new cache passes it again, and here it compares ONNX Runtime with itself
    module = ModuleType(name)
    module.__dict__.update({key: value for key, value in globals().items() if isinstance(value, type)})
    module.__version__ = version  # type: ignore[attr-defined]
    module.ILogger = type("ILogger", (ILogger,), {})  # type: ignore[attr-defined]  # each library has its own
    if name == "tensorrt_rtx":
        module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)  # type: ignore[attr-defined]
        module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER=1)  # type: ignore[attr-defined]
    module.ComputeCapability = SimpleNamespace(  # type: ignore[attr-defined]
        __members__={"SM86": 86, "SM89": 89}
    )
    sys.modules[name] = module
    return module
