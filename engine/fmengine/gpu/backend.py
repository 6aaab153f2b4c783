"""The base of every backend on a GPU: a context, the kernels, and a pool of runners around its network."""

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..backend.protocol import HostTimes, StageTimes
from ..check.gate import check_kernel
from ..errors import Kind, ModelError, NoRoomError, SourceError
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.cache import Cache
from ..types import (
    AnyImage,
    Channels,
    DecodedImage,
    DeviceImage,
    ImageOutputs,
    InputBatch,
    Outputs,
    PackedImages,
)
from .context import Context
from .driver import describe_gpu
from .interop import ImportStream, import_image
from .kernels import Kernels
from .launch import InputShape
from .network import LoadedNetwork
from .nvjpeg import JpegDecoder
from .pool import Pool, make_runners
from .preprocessor import WeightTables
from .registered import RegisteredMemories
from .runner import Images, Runner, as_pictures
from .timing import StageTimer

STREAMS = 2  # batches in flight at once: the copies of one overlap the computation of the other


class GpuBackend(ABC):
    """See `fmengine.backend.protocol.DeviceBackend`. A subclass loads the network.

    Attributes:
        gpu: that it runs on.
        context: its primary context.
        registered: memory of the host that it reads by itself.
        device_index: of the GPU.
        pci_bus_id: address of the GPU.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]

    def __init__(self, model: ModelFile, options: BackendOptions) -> None:
        self.spec = model.spec
        self.gpu = describe_gpu(options.device)
        self.context = Context(options.device)
        opened: list[Callable[[], None]] = []  # what frees each part, in the order in which they were made
        # At exit too, where nobody closes it; so it must hold no reference to this object.
        self._close = weakref.finalize(self, self.context.close, opened)
        try:
            with self.context.use():
                kernels = Kernels(self.context, Cache())
                opened.append(kernels.free)
                self._jpeg = JpegDecoder(self.context, self.spec.color) if options.jpeg == "gpu" else None
                if self._jpeg is not None:
                    opened.append(self._jpeg.free)
                self.registered = RegisteredMemories(self.context)
                opened.append(self.registered.free)
                self._imports = ImportStream(self.context)
                opened.append(self._imports.free)
                weights = WeightTables(self.context, kernels, InputShape(*self.spec.input.shape))
                opened.append(weights.free)
                network = self._load_network(model, options)
                opened.append(network.close)
                shared = (self.context, network, kernels, self._imports, weights, self.spec)
                runners = make_runners(lambda: Runner(*shared, graphs=options.graphs), options.streams or STREAMS)
                self.pool = Pool(runners, self.spec)
                opened.append(self.pool.close)
                self._check_kernel(runners[0], kernels)
                self._check_network(runners[0])
                _warm_up(runners)
                self._graphs = _describe_graphs(runners[0]) if options.graphs else "off"
                self.device_index, self._streams = self.context.index, len(runners)
                self.pci_bus_id: str = self.context.cuda.Device(self.device_index).pci_bus_id()
        except BaseException:
            self._close()
            raise

    @classmethod
    def open(cls, model: ModelFile, options: BackendOptions) -> Self:
        return cls(model, options)

    @property
    def streams(self) -> int:
        """Batches that are in flight at once."""
        return self._streams

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run uint8 `[N, C, H, W]`, any N from 1.

        Raises:
            ModelError: for images of another type or shape.
            DeviceError: if the GPU fails, or has no room for one picture.
        """
        expected = self.spec.input_shape(len(images))
        if images.dtype != "uint8" or images.shape != expected or not len(images):
            raise ModelError(f"images of {images.dtype} {images.shape}; expected uint8 {expected}, N from 1")
        with self.context.use():
            return self.pool.run(InputBatch(images))

    def admit(self, source: object, channels: Channels) -> DeviceImage:
        with self.context.use():
            return import_image(source, self.context, self._imports, channels)

    def decode_jpeg(self, data: bytes) -> DeviceImage | None:
        if self._jpeg is None:
            return None
        with self.context.use():
            image = self._jpeg.decode(data)
            return None if image is None else import_image(image, self.context, self._imports, "rgb")

    def register_memory(self, memory: npt.NDArray[np.uint8]) -> Callable[[], None]:
        return self.registered.register(memory)

    def run_pictures(self, pictures: Images) -> ImageOutputs:
        try:
            with self.context.use():
                if not isinstance(pictures, PackedImages):
                    return self.pool.run_pictures(pictures)
                return self.registered.read(pictures, self.pool.run_pictures)
        except NoRoomError as error:
            raise SourceError(Kind.TOO_LARGE, str(error)) from error

    def time_stages(self, batch: InputBatch | Sequence[AnyImage]) -> tuple[Outputs | ImageOutputs, StageTimes]:
        """Run a batch of `max_batch` or fewer, and measure what each stage took on the GPU."""
        with self.context.use():
            timer = StageTimer(self.context.cuda)
            pictures = as_pictures(batch)
            return self.pool.with_runner(lambda runner: runner.run(pictures, timer.record)), timer.elapsed()

    def time_host(self, batch: InputBatch | Sequence[AnyImage]) -> HostTimes:
        pictures = as_pictures(batch)

        def run(runner: Runner) -> HostTimes:
            times = [time.perf_counter()]
            for part in (lambda: runner.stage(pictures), runner.launch, lambda: runner.collect(poll=True)):
                part()
                times.append(time.perf_counter())
            return HostTimes(*(1e3 * (end - begin) for begin, end in pairwise(times)))

        with self.context.use():
            return self.pool.with_runner(run)

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": self._describe_library(),
            "device": f"GPU {self.context.index}, {self.gpu.name}",
            "driver": self.gpu.driver,
            "streams": str(self._streams),
            "cuda graphs": self._graphs,
            "jpeg": "gpu" if self._jpeg else "cpu",
        }

    def close(self) -> None:
        """Wait for the batches in flight, and release everything. Closing twice is no error."""
        self._close()

    @abstractmethod
    def _load_network(self, model: ModelFile, options: BackendOptions) -> LoadedNetwork:
        """Load the network onto the GPU."""

    def _check_kernel(self, runner: Runner, kernels: Kernels) -> None:
        """Compare the compiled kernels with the definition, once for each compiler, driver and GPU."""
        cache = Cache()
        key = {"kernel": kernels.digest, "gpu": str(self.gpu), "model": str(self.spec.input_shape(1))}
        if cache.load("kernel", key) is None:
            check_kernel(runner.preprocess, self.spec, min(16, runner.max_batch))
            cache.store("kernel", key, b"bit for bit")

    def _check_network(self, runner: Runner) -> None:  # noqa: B027
        """Check the network's answers before it may give any; by default nothing is checked."""

    @abstractmethod
    def _describe_library(self) -> str:
        """Return name and version of what runs the network."""


def _warm_up(runners: Sequence[Runner]) -> None:
    """Launch every kernel once: the driver loads it then."""
    for runner in runners:
        runner.run([DecodedImage(np.zeros((8, 8), np.uint8))])


def _describe_graphs(runner: Runner) -> str:
    if runner.refusal:
        return f"none: {runner.refusal}"
    around = "" if runner.network.capturable else ", around the network"
    return f"batches of {', '.join(map(str, runner.graphs))}{around}" if runner.graphs else "none"
