"""Detectors on NVIDIA GPUs: TensorRT, TensorRT-RTX, and ONNX Runtime's CUDA provider.

A photograph at a time, of any size up to `MAX_SIDE`; what is larger is searched on the CPU. Either library is
compared with the CPU before it may answer.
"""

import hashlib
import json
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..backend.onnxruntime import OnnxRuntimeBackend
from ..detect.gate import Agreement, check_detector
from ..errors import DeviceError
from ..model.detector import DetectorFile, DetectorOutputs, DetectorSpec, load_detector_file
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.cache import Cache
from ..system.manifest import Key
from ..trt.cached import load_or_build_engine
from ..trt.engine import create_context, deserialise_engine
from ..trt.library import Library, describe_library, get_logger, load_library, take_messages
from ..trt.profile import BuildOptions, Profile
from .arena import Buffer, Owned, align
from .backend import STREAMS
from .context import Context
from .driver import describe_gpu
from .onnxruntime import PROVIDER, load_onnxruntime, open_session

MAX_SIDE = 2048  # pixels; activations of a larger picture would take gigabytes of every GPU that finds faces
PROFILE = Profile(1, 1, 1, sides=(32, 640, MAX_SIDE))


class GpuDetector(ABC):
    """See `fmengine.backend.protocol.Backend`. A subclass runs the network.

    Attributes:
        agreement: with the CPU, as it was found when the network was loaded first.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16",)

    def __init__(self, file: DetectorFile, options: BackendOptions) -> None:
        self._file, self._options = file, options
        self._gpu = describe_gpu(options.device)
        self._context = Context(options.device)
        opened: list[Callable[[], None]] = []
        self._close = weakref.finalize(self, self._context.close, opened)
        try:
            # On the CPU from the FP32 file: in half precision a CPU is no faster.
            self._on_cpu = OnnxRuntimeBackend.open(load_detector_file(), BackendOptions(threads=options.threads))
            opened.append(self._on_cpu.close)
            with self._context.use():
                key = self._load(file, opened)
            self.agreement = self._check(key)
        except BaseException:
            self._close()
            raise

    @classmethod
    def open(cls, file: DetectorFile, options: BackendOptions) -> Self:
        return cls(file, options)

    def run(self, images: npt.NDArray[np.uint8]) -> DetectorOutputs:
        """Run uint8 `[1, 3, H, W]`."""
        if max(images.shape[2:]) > MAX_SIDE:
            return self._on_cpu.run(images)  # type: ignore[return-value]
        with self._context.use():
            return self._run(images)

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": self._describe_library(),
            "device": f"GPU {self._context.index}, {self._gpu.name}",
            "gate": f"{self.agreement.faces} faces, scores within {self.agreement.largest:.2g} of the CPU's",
        }

    def close(self) -> None:
        self._close()

    @abstractmethod
    def _load(self, file: DetectorFile, opened: list[Callable[[], None]]) -> Key:
        """Load the network, and return what its answers depend on; what frees it goes into `opened`."""

    @abstractmethod
    def _run(self, images: npt.NDArray[np.uint8]) -> DetectorOutputs:
        """Run it, within the context."""

    @abstractmethod
    def _describe_library(self) -> str:
        """Return name and version of what runs the network."""

    def _check(self, key: Key) -> Agreement:
        """Pass the gate, once for each network and GPU."""
        cache, full = Cache(), {**key, "gpu": str(self._gpu), "detector": self._file.spec.file_sha256}
        record = cache.load("gate", full)
        if record is None:
            reference: Any = self._on_cpu.run
            record = json.dumps(check_detector(self.run, reference, self._file.spec)).encode()
            cache.store("gate", full, record)
        return Agreement(*json.loads(record))


class TensorRtDetector(GpuDetector):
    """TensorRT 10.12 to 11."""

    name: ClassVar[str] = "tensorrt"
    library: ClassVar[Library] = "tensorrt"

    def _load(self, file: DetectorFile, opened: list[Callable[[], None]]) -> Key:
        self._library = load_library(self.library)
        logger = get_logger(self._library)

        def load(engine: bytes) -> tuple[Any, Any]:
            return deserialise_engine(self._library, logger, engine, file.spec)

        options = BuildOptions((PROFILE,), compute_capabilities=self._get_targets())
        (engine, runtime), data, key = load_or_build_engine(self._library, file, options, self._gpu, load)
        held = [runtime, engine]
        opened.append(held.clear)
        self._searches: SimpleQueue[Search] = SimpleQueue()
        for _ in range(min(self._options.streams or 1, STREAMS)):
            search = Search(self._context, engine, logger, file.spec)
            opened.append(search.free)
            self._searches.put(search)
        return {**key, "engine": hashlib.sha256(data).hexdigest()}

    def _run(self, images: npt.NDArray[np.uint8]) -> DetectorOutputs:
        search = self._searches.get()
        try:
            return search.run(images)
        finally:
            self._searches.put(search)

    def _describe_library(self) -> str:
        return describe_library(self._library)

    def _get_targets(self) -> tuple[str, ...]:
        """Return the compute capabilities to build for; TensorRT builds for the GPU that it runs on."""
        return ()


class TensorRtRtxDetector(TensorRtDetector):
    """TensorRT-RTX."""

    name: ClassVar[str] = "tensorrt-rtx"
    library: ClassVar[Library] = "tensorrt_rtx"

    def _get_targets(self) -> tuple[str, ...]:
        return (self._gpu.capability,)


class Search:
    """An execution context of a detector's engine, its stream and its memory. Use it within the context."""

    def __init__(self, context: Context, engine: Any, logger: Any, spec: DetectorSpec) -> None:
        self._cuda, self._logger, self._spec = context.cuda, logger, spec
        self._execution = create_context(engine, logger)
        self._stream = context.cuda.Stream(context.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        self._owned = Owned()
        self._images, self._answers = (self._owned.add(Buffer(context, pinned=True)) for _ in range(2))

    def run(self, images: npt.NDArray[np.uint8]) -> DetectorOutputs:
        """Run one photograph, uint8 `[1, 3, H, W]`.

        Raises:
            NoRoomError: if there is no room for it.
            DeviceError: if TensorRT refuses.
        """
        cuda, stream = self._cuda, self._stream
        shapes = self._spec.output_shapes(1, self._spec.count_anchors(*images.shape[2:]))
        starts = np.cumsum([0, *(align(4 * int(np.prod(shape))) for shape in shapes.values())]).tolist()
        self._images.reserve(images.nbytes)
        self._answers.reserve(starts[-1])
        pixels = self._images.host[: images.nbytes]
        pixels[:] = images.reshape(-1)
        cuda.memcpy_htod_async(self._images.address, pixels, stream)
        self._require(self._execution.set_input_shape("images", images.shape), f"takes no {images.shape}")
        addresses = {"images": self._images.address}
        addresses |= {name: self._answers.address + start for name, start in zip(shapes, starts, strict=False)}
        for name, address in addresses.items():
            self._require(self._execution.set_tensor_address(name, address), f"refuses {address:#x} for {name}")
        self._require(self._execution.execute_async_v3(stream.handle), f"cannot run {images.shape}")
        cuda.memcpy_dtoh_async(self._answers.host[: starts[-1]], self._answers.address, stream)
        stream.synchronize()
        values = self._answers.host.view(np.float32)
        parts = (
            values[start // 4 :][: int(np.prod(shape))].reshape(shape).copy()
            for start, shape in zip(starts, shapes.values(), strict=False)
        )
        return DetectorOutputs(*parts)

    def free(self) -> None:
        """Release everything. Freeing twice is no error."""
        self._execution = self._stream = None  # destroyed here, where the context is current
        self._owned.free()

    def _require(self, done: bool, what: str) -> None:
        if not done:
            self._stream.synchronize()
            raise DeviceError(f"TensorRT {what}. {take_messages(self._logger)}")


class OnnxRuntimeCudaDetector(GpuDetector):
    """ONNX Runtime's CUDA provider, which copies by itself."""

    name: ClassVar[str] = "onnxruntime-cuda"

    def _load(self, file: DetectorFile, opened: list[Callable[[], None]]) -> Key:
        self._library = load_onnxruntime()
        session = open_session(self._library, file, {"device_id": str(self._options.device)})
        self._held = [session]
        opened.append(self._held.clear)
        return {"library": self._describe_library()}

    def _run(self, images: npt.NDArray[np.uint8]) -> DetectorOutputs:
        try:
            return DetectorOutputs(*self._held[0].run(DetectorOutputs._fields, {"images": images}))
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot search {images.shape} on the GPU: {error}") from error

    def _describe_library(self) -> str:
        return f"onnxruntime {self._library.__version__}, {PROVIDER}"
