"""Run one batch at a time on the GPU, on one stream: upload, preprocessing, network, download.

Several runners let the copies of one batch overlap the computation of another. All memory that a batch uses
belongs to its runner; runners share the network, the kernels and the stream of imports.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..check.gate import ExecutionPath
from ..image.flatness import is_flat_input
from ..model.spec import ModelSpec
from ..trt.profile import Profile
from ..types import AnyImage, ImageOutputs, InputBatch, Outputs
from .arena import Buffer, align
from .context import Context
from .graph import CaptureError, Graph
from .interop import ImportStream
from .kernels import Kernels
from .network import Execution, LoadedNetwork
from .preprocessor import Preprocessor, get_size, read_back
from .timing import record_nothing

FLOAT = np.dtype(np.float32).itemsize


class _Freeable(Protocol):
    def free(self) -> None: ...


T = TypeVar("T", bound=_Freeable)
Record = Callable[[str, Any], None]


class Runner:
    """One stream with everything that a batch needs. Make, use and free it within the context.

    Attributes:
        network: that it runs.
        max_batch: the largest batch.
        graphs: the batch sizes that run as a CUDA graph.
        refusal: why a batch size could not be captured; empty if all were.
    """

    def __init__(
        self,
        context: Context,
        network: LoadedNetwork,
        kernels: Kernels,
        imports: ImportStream,
        spec: ModelSpec,
        *,
        graphs: bool,
    ) -> None:
        cuda = context.cuda
        self._context, self.network, self._spec = context, network, spec
        self.max_batch = max(profile.max for profile in network.profiles)
        self._batch = 0
        self._sizes: list[tuple[int, int]] | None = None
        self._to_free: list[Callable[[], None]] = []
        self._preprocessor: Any = None
        try:
            # A stream that does not wait for the default one, which other libraries may use.
            self.stream = cuda.Stream(context.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
            self._finished = cuda.Event(cuda.event_flags.DISABLE_TIMING)
            # Pinned too: the inputs come back with the answers, to see which of them are flat.
            self._images = self._own(Buffer(context, int(np.prod(spec.input_shape(self.max_batch))), pinned=True))
            # Logits, then probabilities, each as large as the largest batch's: graphs hold their addresses.
            self._probabilities_offset = align(self.max_batch * len(spec.labels) * FLOAT)
            self._answers = self._own(Buffer(context, 2 * self._probabilities_offset, pinned=True))
            self._preprocessor = self._own(Preprocessor(context, kernels, imports, spec, self.stream))
            self._addresses = {
                "images": self._images.address,
                "logits": self._answers.address,
                "probabilities": self._answers.address + self._probabilities_offset,
            }
            self._executions: list[Execution] = [
                self._own(network.create_execution(index, self._addresses, self.stream))
                for index in range(len(network.profiles))
            ]
            self.graphs: dict[int, Graph] = {}
            self.refusal = ""
            if graphs and network.capturable:
                self._capture()
        except BaseException:
            self.free()
            raise

    def submit(self, batch: InputBatch | Sequence[AnyImage], record: Record = record_nothing) -> None:
        """Start a batch of at most the largest profile's size. `collect` must follow before the next.

        Args:
            batch: pictures of any sizes, or one array of preprocessed ones, uint8 `[N, C, H, W]`.
            record: called with the stream after each stage, named as in `StageTimes`, and with `start` before the
                first.

        Raises:
            NoRoomError: if it does not fit; the runner is as it was.
        """
        try:
            record("start", self.stream)
            self._fill_input(batch, record)
            self._infer(len(batch))
            record("network", self.stream)
            self._download(len(batch))
            record("download", self.stream)
        except BaseException:
            self.wait()  # what was enqueued reads and writes the runner's buffers
            raise

    def collect(self) -> Outputs | ImageOutputs:
        """Wait for the batch that was started, and return its outputs: `ImageOutputs` of decoded pictures."""
        self._finished.synchronize()
        self._preprocessor.release()
        count, self._batch = self._batch, 0
        size = count * len(self._spec.labels) * FLOAT
        regions = (self._answers.host[at : at + size] for at in (0, self._probabilities_offset))
        # Copies: the next batch writes over the pinned memory.
        outputs = Outputs(*(region.view(np.float32).reshape(count, -1).copy() for region in regions))
        if self._sizes is None:
            return outputs
        shape = self._spec.input_shape(count)
        images = InputBatch(self._images.host[: int(np.prod(shape))].reshape(shape))
        return ImageOutputs(*outputs, is_flat_input(images, self._sizes, self._spec.input))

    def wait(self) -> None:
        """Wait until nothing is in flight, whatever happened before."""
        self.stream.synchronize()
        self._preprocessor.release()
        self._batch = 0

    def preprocess(self, pictures: Sequence[AnyImage]) -> InputBatch:
        """Preprocess a batch alone, and read the network's input back, uint8 `[N, C, H, W]`."""
        self._fill_input(pictures, record_nothing)
        self.wait()
        return read_back(self._context, self._images.address, self._spec.input_shape(len(pictures)))

    def run(
        self, batch: InputBatch | Sequence[AnyImage], record: Record = record_nothing
    ) -> Outputs | ImageOutputs:
        """Run a batch: `submit`, then `collect`."""
        self.submit(batch, record)
        return self.collect()

    def run_profile(self, profile: int, images: InputBatch) -> Outputs | ImageOutputs:
        """Run preprocessed images through one profile and no graph, whichever `run` would choose."""
        self._fill_input(images, record_nothing)
        self._executions[profile].enqueue(len(images), self.stream)
        self._download(len(images))
        return self.collect()

    def free(self) -> None:
        """Release everything. Nothing may be in flight."""
        while self._to_free:
            self._to_free.pop()()
        self._executions, self.graphs = [], {}
        self._finished = self.stream = self._preprocessor = None  # destroyed here, where the context is current

    def _fill_input(self, batch: InputBatch | Sequence[AnyImage], record: Record) -> None:
        """Fill the network's input with preprocessed images, or with those that the kernels make of pictures."""
        if not 1 <= len(batch) <= self.max_batch:
            raise ValueError(f"a batch of {len(batch)}; this runner takes 1 to {self.max_batch}")
        self._sizes = None if isinstance(batch, np.ndarray) else [get_size(picture) for picture in batch]
        if isinstance(batch, np.ndarray):
            self._preprocessor.upload_inputs(batch, self._images.address)
            record("upload", self.stream)
        else:
            plan = self._preprocessor.upload(batch)
            record("upload", self.stream)
            self._preprocessor.launch(batch, plan, self._images.address)
        record("preprocess", self.stream)

    def _infer(self, count: int) -> None:
        if graph := self.graphs.get(count):
            graph.launch(self.stream.handle)
        else:
            self._find_execution(count).enqueue(count, self.stream)

    def _find_execution(self, count: int) -> Execution:
        """Find the execution on the narrowest profile that takes the batch."""
        profiles = self.network.profiles
        fitting = [index for index, profile in enumerate(profiles) if profile.min <= count <= profile.max]
        return self._executions[min(fitting, key=lambda index: profiles[index].max)]

    def _download(self, count: int) -> None:
        if self._sizes is not None:
            size = int(np.prod(self._spec.input_shape(count)))
            self._context.cuda.memcpy_dtoh_async(self._images.host[:size], self._images.address, self.stream)
        used = self._probabilities_offset + count * len(self._spec.labels) * FLOAT
        self._context.cuda.memcpy_dtoh_async(self._answers.host[:used], self._answers.address, self.stream)
        self._finished.record(self.stream)
        self._batch = count

    def _capture(self) -> None:
        """Capture the network alone for each profile's largest batch, on a context that nothing else uses.

        Preprocessing and copies stay outside: their shapes vary with the pictures.
        """
        for index, profile in enumerate(self.network.profiles):
            count = profile.max
            execution = self._own(self.network.create_execution(index, self._addresses, self.stream))
            execution.enqueue(count, self.stream)  # TensorRT must have run a shape before it is captured
            plain = self._read_answers()
            try:
                graph = self._own(
                    Graph(self._context.driver, self.stream.handle, partial(execution.enqueue, count, self.stream))
                )
                graph.launch(self.stream.handle)
                if not np.array_equal(self._read_answers(), plain):
                    raise CaptureError("a graph answers otherwise than the network that it was captured from")
            except CaptureError as error:
                self.refusal = str(error)
                return
            self.graphs[count] = graph

    def _read_answers(self) -> npt.NDArray[np.uint8]:
        """Return a copy of all bytes of the answers, once the stream is done."""
        self._context.cuda.memcpy_dtoh_async(self._answers.host, self._answers.address, self.stream)
        self.stream.synchronize()
        return self._answers.host.copy()

    def _own(self, part: T) -> T:
        """Register a part of the runner, which `free` then frees too."""
        self._to_free.append(part.free)
        return part


def list_execution_paths(runner: Runner) -> list[ExecutionPath]:
    """List every profile of a runner's network, and every graph."""
    profiles = runner.network.profiles
    paths = [ExecutionPath(f"profile {i}", p, partial(runner.run_profile, i)) for i, p in enumerate(profiles)]
    paths += [ExecutionPath(f"graph of {n}", Profile(n, n, n), runner.run) for n in runner.graphs]
    return paths
