"""One batch's way through the GPU, on one stream: upload, preprocessing, network, download.

A slot carries one batch at a time; several slots let the copies of one overlap the work of another. Everything
that a batch touches belongs to its slot, so that slots need not know of each other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..check.gate import Way
from ..image.flatness import is_flat_input
from ..model.spec import ModelSpec
from ..trt.build import Profile
from ..types import ImageOutputs, InputBatch, Outputs
from .arena import Buffer, aligned
from .context import Context
from .graph import CaptureError, Graph
from .interop import Arrivals, Picture, size_of
from .preprocessor import Kernels, Preprocessor, read_back

FLOAT = np.dtype(np.float32).itemsize


class _Freed(Protocol):
    def free(self) -> None: ...


class Executable(_Freed, Protocol):
    """A network on one stream, that reads and writes at fixed addresses."""

    def enqueue(self, batch: int, stream: Any) -> None:
        """Put a run over `batch` pictures into the stream. Raises DeviceError."""
        ...


class Networkable(Protocol):
    """What runs in a slot.

    Attributes:
        profiles: the batch sizes that it takes; each has an execution of its own.
        capturable: whether its runs may be captured into CUDA graphs.
    """

    profiles: tuple[Profile, ...]
    capturable: bool

    def execution(self, profile: int, addresses: dict[str, int], stream: Any) -> Executable:
        """An execution for one stream; `addresses` of images, logits and probabilities."""
        ...

    def close(self) -> None:
        """Give everything back, after its executions."""
        ...


class Stages(NamedTuple):
    """What a batch took on the GPU, in milliseconds between the stream's events."""

    upload: float
    preprocess: float
    network: float
    download: float


T = TypeVar("T", bound="_Freed")
Mark = Callable[[str, Any], None]


def no_mark(stage: str, stream: Any) -> None:
    """Time nothing."""


class Slot:
    """Make, use and free it within the context.

    Attributes:
        network: that it runs.
        most: the largest batch.
        graphs: the batch sizes that run as a CUDA graph.
        refusal: why they could not be captured, or nothing.
    """

    def __init__(
        self,
        context: Context,
        network: Networkable,
        kernels: Kernels,
        arrivals: Arrivals,
        spec: ModelSpec,
        *,
        graphs: bool,
    ) -> None:
        cuda = context.cuda
        self._context, self.network, self._spec = context, network, spec
        self.most = max(profile.most for profile in network.profiles)
        self._batch = 0
        self._sizes: list[tuple[int, int]] | None = None
        self._freed: list[Callable[[], None]] = []
        self._preprocessor: Any = None
        try:
            # A stream that does not wait for the default one, where other libraries may be at work.
            self.stream = cuda.Stream(context.runtime.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
            self._finished = cuda.Event(cuda.event_flags.DISABLE_TIMING)
            # Pinned too: the inputs come back with the answers, to see which of them are flat.
            self._images = self._owned(Buffer(context, int(np.prod(spec.input_shape(self.most))), pinned=True))
            # Logits, then probabilities, each as large as the largest batch's: graphs hold their addresses.
            self._probabilities_at = aligned(self.most * len(spec.labels) * FLOAT)
            self._answers = self._owned(Buffer(context, 2 * self._probabilities_at, pinned=True))
            self._preprocessor = self._owned(Preprocessor(context, kernels, arrivals, spec, self.stream))
            self._addresses = {
                "images": self._images.address,
                "logits": self._answers.address,
                "probabilities": self._answers.address + self._probabilities_at,
            }
            self._executions: list[Executable] = [
                self._owned(network.execution(index, self._addresses, self.stream))
                for index in range(len(network.profiles))
            ]
            self.graphs: dict[int, Graph] = {}
            self.refusal = ""
            if graphs and network.capturable:
                self._capture()
        except BaseException:
            self.free()
            raise

    def submit(self, batch: InputBatch | Sequence[Picture], mark: Mark = no_mark) -> None:
        """Start a batch of at most the largest profile's size. `collect` must follow before the next.

        Args:
            batch: pictures of any sizes, or one array of preprocessed ones, uint8 `[N, C, H, W]`.
            mark: called with the stream after each stage, named as in `Stages`, and with `start` before the first.

        Raises:
            NoRoomError: if it does not fit; the slot is as it was.
        """
        try:
            mark("start", self.stream)
            self._bring(batch, mark)
            self._infer(len(batch))
            mark("network", self.stream)
            self._download(len(batch))
            mark("download", self.stream)
        except BaseException:
            self.wait()  # what was enqueued reads and writes the slot's buffers
            raise

    def collect(self) -> Outputs | ImageOutputs:
        """Wait for the batch that was started, and give its answers: `ImageOutputs` of decoded pictures."""
        self._finished.synchronize()
        self._preprocessor.done()
        count, self._batch = self._batch, 0
        size = count * len(self._spec.labels) * FLOAT
        regions = (self._answers.host[at : at + size] for at in (0, self._probabilities_at))
        # Copies: the next batch writes over the pinned memory.
        outputs = Outputs(*(region.view(np.float32).reshape(count, -1).copy() for region in regions))
        if self._sizes is None:
            return outputs
        shape = self._spec.input_shape(count)
        images = InputBatch(self._images.host[: int(np.prod(shape))].reshape(shape))
        return ImageOutputs(*outputs, is_flat_input(images, self._sizes, self._spec.input))

    def wait(self) -> None:
        """Let nothing be in flight, whatever happened before."""
        self.stream.synchronize()
        self._preprocessor.done()
        self._batch = 0

    def preprocess(self, pictures: Sequence[Picture]) -> InputBatch:
        """Preprocess a batch alone, and read the network's input back, uint8 `[N, C, H, W]`."""
        self._bring(pictures, no_mark)
        self.wait()
        return read_back(self._context, self._images.address, self._spec.input_shape(len(pictures)))

    def run(self, batch: InputBatch | Sequence[Picture], mark: Mark = no_mark) -> Outputs | ImageOutputs:
        """`submit`, then `collect`."""
        self.submit(batch, mark)
        return self.collect()

    def run_profile(self, profile: int, images: InputBatch) -> Outputs | ImageOutputs:
        """Run preprocessed images through one profile, whichever would be chosen for them, without a graph."""
        self._bring(images, no_mark)
        self._executions[profile].enqueue(len(images), self.stream)
        self._download(len(images))
        return self.collect()

    def free(self) -> None:
        """Give everything back. Nothing may be in flight."""
        while self._freed:
            self._freed.pop()()
        self._executions, self.graphs = [], {}
        self._finished = self.stream = self._preprocessor = None  # destroyed here, where the context is current

    def _bring(self, batch: InputBatch | Sequence[Picture], mark: Mark) -> None:
        """Fill the network's input."""
        if not 1 <= len(batch) <= self.most:
            raise ValueError(f"a batch of {len(batch)}; this slot takes 1 to {self.most}")
        self._sizes = None if isinstance(batch, np.ndarray) else [size_of(picture) for picture in batch]
        if isinstance(batch, np.ndarray):
            self._preprocessor.copy(batch, self._images.address)
            mark("upload", self.stream)
        else:
            plan = self._preprocessor.stage(batch)
            mark("upload", self.stream)
            self._preprocessor.launch(batch, plan, self._images.address)
        mark("preprocess", self.stream)

    def _infer(self, count: int) -> None:
        if graph := self.graphs.get(count):
            graph.launch(self.stream.handle)
        else:
            self._execution(count).enqueue(count, self.stream)

    def _execution(self, count: int) -> Executable:
        """On the narrowest profile that takes the batch."""
        profiles = self.network.profiles
        fitting = [index for index, profile in enumerate(profiles) if profile.least <= count <= profile.most]
        return self._executions[min(fitting, key=lambda index: profiles[index].most)]

    def _download(self, count: int) -> None:
        if self._sizes is not None:
            seen = int(np.prod(self._spec.input_shape(count)))
            self._context.cuda.memcpy_dtoh_async(self._images.host[:seen], self._images.address, self.stream)
        used = self._probabilities_at + count * len(self._spec.labels) * FLOAT
        self._context.cuda.memcpy_dtoh_async(self._answers.host[:used], self._answers.address, self.stream)
        self._finished.record(self.stream)
        self._batch = count

    def _capture(self) -> None:
        """Capture the network alone for each profile's largest batch, on a context that nothing else uses.

        Preprocessing and copies stay outside: their shapes vary with the pictures.
        """
        for index, profile in enumerate(self.network.profiles):
            count = profile.most
            execution = self._owned(self.network.execution(index, self._addresses, self.stream))
            execution.enqueue(count, self.stream)  # TensorRT must have run a shape before it is captured
            plain = self._read_answers()
            try:
                graph = self._owned(
                    Graph(
                        self._context.runtime, self.stream.handle, partial(execution.enqueue, count, self.stream)
                    )
                )
                graph.launch(self.stream.handle)
                if not np.array_equal(self._read_answers(), plain):
                    raise CaptureError("a graph answers otherwise than the network that it was captured from")
            except CaptureError as error:
                self.refusal = str(error)
                return
            self.graphs[count] = graph

    def _read_answers(self) -> npt.NDArray[np.uint8]:
        """A copy of all bytes of the answers, once the stream is done."""
        self._context.cuda.memcpy_dtoh_async(self._answers.host, self._answers.address, self.stream)
        self.stream.synchronize()
        return self._answers.host.copy()

    def _owned(self, thing: T) -> T:
        self._freed.append(thing.free)
        return thing


def ways_through(slot: Slot) -> list[Way]:
    """Every profile of a slot's network, and every graph."""
    profiles = slot.network.profiles
    ways = [Way(f"profile {i}", profile, partial(slot.run_profile, i)) for i, profile in enumerate(profiles)]
    ways += [Way(f"graph of {count}", Profile(count, count, count), slot.run) for count in slot.graphs]
    return ways


class Stopwatch:
    """The `mark` that times one batch, with an event a stage."""

    def __init__(self, cuda: Any) -> None:
        self._events = {name: cuda.Event() for name in ("start", *Stages._fields)}

    def __call__(self, stage: str, stream: Any) -> None:
        self._events[stage].record(stream)

    def stages(self) -> Stages:
        """Once, when the batch is collected, within the context."""
        events = list(self._events.values())
        self._events = {}  # destroyed here, where the context is current
        events[-1].synchronize()
        return Stages(*(later.time_since(earlier) for earlier, later in pairwise(events)))
