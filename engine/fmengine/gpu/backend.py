"""What every backend on a GPU has in common: a context, the kernel, and a pool of slots around its network."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..check.gate import check_kernel
from ..errors import Kind, ModelError, NoRoomError, SourceError
from ..model.file import ModelFile
from ..model.spec import Precision
from ..options import BackendOptions
from ..system.cache import Cache
from ..types import Channels, DecodedImage, DeviceImage, ImageOutputs, InputBatch, Outputs
from .context import Context
from .driver import describe_gpu
from .interop import Arrivals, Picture, device_picture
from .nvjpeg import JpegDecoder
from .pool import Pool, make_slots
from .preprocessor import Kernels
from .runner import Networkable, Slot, Stages, Stopwatch

STREAMS = 2  # batches under way at once: the copies of one overlap the work of the other


class GpuBackend(ABC):
    """See `fmengine.backend.registry.ImageBackend`. A subclass says which network runs.

    Attributes:
        gpu: that it runs on.
        context: its primary context.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]

    def __init__(self, model: ModelFile, options: BackendOptions) -> None:
        self.spec = model.spec
        self.gpu = describe_gpu(options.device)
        self.context = Context(options.device)
        opened: list[Callable[[], None]] = []  # what must be given back, in the order of its making
        # Also at exit, for whoever does not close; so it must hold no reference to this object.
        self._close = weakref.finalize(self, self.context.close, opened)
        try:
            with self.context.use():
                kernels = Kernels(self.context, Cache())
                opened.append(kernels.free)
                self._jpeg = JpegDecoder(self.context, self.spec.color) if options.jpeg == "gpu" else None
                if self._jpeg is not None:
                    opened.append(self._jpeg.free)
                self._arrivals = Arrivals(self.context)
                opened.append(self._arrivals.free)
                network = self._network(model, options)
                opened.append(network.close)
                slots = make_slots(
                    lambda: Slot(self.context, network, kernels, self._arrivals, self.spec, graphs=options.graphs),
                    options.streams or STREAMS,
                )
                self.pool = Pool(slots, self.spec)
                opened.append(self.pool.close)
                self._approve_kernel(slots[0], kernels)
                self._approve(slots[0])
                _warm_up(slots)
                self._graphs = _describe_graphs(slots[0]) if options.graphs else "off"
                self._lanes = len(slots)
        except BaseException:
            self._close()
            raise

    @classmethod
    def open(cls, model: ModelFile, options: BackendOptions) -> Self:
        return cls(model, options)

    @property
    def lanes(self) -> int:
        return self._lanes

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
            return device_picture(source, self.context, self._arrivals, channels)

    def decode_jpeg(self, data: bytes) -> DeviceImage | None:
        if self._jpeg is None:
            return None
        with self.context.use():
            image = self._jpeg.decode(data)
            return None if image is None else device_picture(image, self.context, self._arrivals, "rgb")

    def run_pictures(self, pictures: Sequence[Picture]) -> ImageOutputs:
        try:
            with self.context.use():
                return self.pool.run_pictures(pictures)
        except NoRoomError as error:
            raise SourceError(Kind.TOO_LARGE, str(error)) from error

    def time_stages(self, batch: InputBatch | Sequence[Picture]) -> tuple[Outputs | ImageOutputs, Stages]:
        """Run a batch of at most `max_batch` and say what each stage of it took on the GPU."""
        with self.context.use():
            stopwatch = Stopwatch(self.context.cuda)
            return self.pool.with_slot(lambda slot: slot.run(batch, stopwatch)), stopwatch.stages()

    def describe(self) -> dict[str, str]:
        return {
            "backend": self.name,
            "library": self._library_version(),
            "device": f"GPU {self.context.index}, {self.gpu.name}",
            "driver": self.gpu.driver,
            "streams": str(self._lanes),
            "cuda graphs": self._graphs,
            "jpeg": "gpu" if self._jpeg else "cpu",
        }

    def close(self) -> None:
        """Wait for what runs, and give everything back. Closing twice is no error."""
        self._close()

    @abstractmethod
    def _network(self, model: ModelFile, options: BackendOptions) -> Networkable:
        """The network, loaded onto the GPU."""

    def _approve_kernel(self, slot: Slot, kernels: Kernels) -> None:
        """Hold the compiled kernel against its definition, once for each compiler, driver and GPU."""
        cache = Cache()
        key = {"kernel": kernels.digest, "gpu": str(self.gpu), "model": str(self.spec.input_shape(1))}
        if cache.load("kernel", key) is None:
            check_kernel(slot.preprocess, self.spec, min(16, slot.most))
            cache.store("kernel", key, b"bit for bit")

    def _approve(self, slot: Slot) -> None:  # noqa: B027
        """See that its answers are right before it may give any."""

    @abstractmethod
    def _library_version(self) -> str:
        """Name and version of what runs the network."""


def _warm_up(slots: Sequence[Slot]) -> None:
    """The driver loads a kernel when it is first launched."""
    for slot in slots:
        slot.run([DecodedImage(np.zeros((8, 8), np.uint8))])


def _describe_graphs(slot: Slot) -> str:
    if slot.refusal:
        return f"none: {slot.refusal}"
    return f"batches of {', '.join(map(str, slot.graphs))}" if slot.graphs else "none"
