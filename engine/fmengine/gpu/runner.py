"""Run one batch at a time on the GPU, on one stream: preprocessing, network, publishing of the answers.

For each batch class these are one captured graph: what changes from batch to batch is read from memory. Several
runners let one batch be staged while another is computed. All memory that a batch uses belongs to its runner;
runners share the network, the kernels, the weight tables and the stream of imports.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..check.gate import ExecutionPath
from ..errors import DeviceError, NoRoomError
from ..model.spec import ModelSpec
from ..trt.profile import Profile
from ..types import AnyImage, ImageOutputs, InputBatch
from .answers import FLOAT, StreamAnswers
from .arena import Buffer, Owned
from .context import Context
from .graph import CaptureError, Graph, SurroundingGraphs
from .interop import ImportStream
from .kernels import Kernels
from .network import Execution, LoadedNetwork
from .preprocessor import Preprocessor, WeightTables, read_back
from .timing import record_nothing

CLASSES = (1, 8, 64, 256, 1024)  # pictures of a captured graph, and a runner's largest batch

log = logging.getLogger(__name__)


Record = Callable[[str, Any], None]
Images = Sequence[AnyImage] | npt.NDArray[np.uint8]


class Runner:
    """One stream with everything that a batch needs. Make, use and free it within the context.

    Attributes:
        network: that it runs.
        max_batch: the largest batch.
        graphs: by the largest batch that each takes; around the network, where that cannot be captured.
        refusal: why a class could not be captured; empty if all were.
    """

    def __init__(
        self,
        context: Context,
        network: LoadedNetwork,
        kernels: Kernels,
        imports: ImportStream,
        weights: WeightTables,
        spec: ModelSpec,
        *,
        graphs: bool,
    ) -> None:
        cuda = context.cuda
        self._context, self.network, self._spec = context, network, spec
        self.max_batch = max(profile.max for profile in network.profiles)
        self._count = 0  # pictures in flight
        self._owned = Owned()
        try:
            # A stream that does not wait for the default one, which other libraries may use.
            self.stream = cuda.Stream(context.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
            self._images = self._owned.add(Buffer(context, int(np.prod(spec.input_shape(self.max_batch)))))
            self._answers = self._owned.add(StreamAnswers(context, kernels, self.stream, spec, self.max_batch))
            self.preprocessor = self._owned.add(
                Preprocessor(context, kernels, imports, weights, spec, self.stream, self.max_batch)
            )
            self._features = self._owned.add(Buffer(context, FLOAT * self.max_batch * spec.features))
            self._addresses = {  # which graphs hold: there is room for the largest batch
                "images": self._images.address,
                "logits": self._answers.logits,
                "probabilities": self._answers.probabilities,
            }
            if spec.features:
                self._addresses["features"] = self._features.address
            self._executions: list[Execution] = [
                self._owned.add(network.create_execution(index, self._addresses, self.stream))
                for index in range(len(network.profiles))
            ]
            self.graphs: dict[int, Graph | SurroundingGraphs] = {}
            self.refusal = ""
            if graphs and weights.tables.longest:
                self._capture()
        except BaseException:
            self.free()
            raise

    def submit(self, batch: Images, record: Record = record_nothing) -> None:
        """Start a batch of at most the largest profile's size: `stage`, then `launch`. `collect` must follow.

        Args:
            batch: as of `stage`.
            record: as of `launch`.

        Raises:
            NoRoomError: if it does not fit; the runner is as it was.
        """
        try:
            record("start", self.stream)
            self.stage(batch)
            record("upload", self.stream)
            self.launch(record)
        except BaseException:
            self.wait()  # what was enqueued reads and writes the runner's buffers
            raise

    def stage(self, pictures: Images) -> None:
        """Put a batch where the kernels read it.

        Args:
            pictures: images of any sizes; or those of one size as one array, uint8 `[N, H, W]` or `[N, H, W, C]`.
        """
        if not 1 <= len(pictures) <= self.max_batch:
            raise ValueError(f"a batch of {len(pictures)}; this runner takes 1 to {self.max_batch}")
        self.preprocessor.staging.stage(pictures, self.stream)
        self.preprocessor.order_imports()
        self._count = len(pictures)

    def launch(self, record: Record = record_nothing) -> None:
        """Launch what is staged: by the graph of its class, if there is one.

        Args:
            record: called with the stream after each stage, named as in `StageTimes`; then the stages are launched
                one by one.
        """
        count = self._count
        graph = self._find_graph(count) if record is record_nothing else None
        if graph is not None:
            graph.launch(self.stream.handle)
        else:
            self.preprocessor.preprocess(self._images.address)
            record("preprocess", self.stream)
            self._executions[self._find_profile(count)].enqueue(count, self.stream)
            record("network", self.stream)
            self._publish(count)
            record("download", self.stream)
        self._answers.expect()

    def collect(self, *, poll: bool = False) -> ImageOutputs:
        """Wait for the batch that was started, and return its outputs.

        Args:
            poll: look for the answers for a while, which keeps other threads from running, before it sleeps.

        Raises:
            DeviceError: if the answers that are there are those of another batch, or a picture was refused.
        """
        if not (poll and self._answers.poll()):
            self._answers.wait()
        self.preprocessor.release()
        count, self._count = self._count, 0
        return self._answers.read(count)

    def read_features(self, count: int) -> npt.NDArray[np.float32]:
        """Copy the features of the batch that was collected, of so many pictures, float32 `[N, F]`."""
        features = np.empty((count, self._spec.features), np.float32)
        self._context.cuda.memcpy_dtoh(features, self._features.address)
        return features

    def wait(self) -> None:
        """Wait until nothing is in flight, whatever happened before."""
        self.stream.synchronize()
        self._answers.forget()
        self.preprocessor.release()
        self._count = 0

    def preprocess(self, pictures: Images, *, separately: bool = False) -> InputBatch:
        """Preprocess a batch alone, and read the network's input back, uint8 `[N, C, H, W]`.

        Args:
            pictures: as for `submit`.
            separately: by the three launches also where one would do.
        """
        self.stage(pictures)
        self.preprocessor.preprocess(self._images.address, separately=separately)
        self.wait()
        return read_back(self._context, self._images.address, self._spec.input_shape(len(pictures)))

    def run(self, batch: Images, record: Record = record_nothing) -> ImageOutputs:
        """Run a batch: `submit`, then `collect`."""
        self.submit(batch, record)
        return self.collect()

    def run_profile(self, profile: int, images: InputBatch) -> ImageOutputs:
        """Run preprocessed images through one profile and no graph, whichever `run` would choose."""
        self.stage(as_pictures(images))
        self.preprocessor.preprocess(self._images.address)
        self._executions[profile].enqueue(len(images), self.stream)
        self._publish(len(images))
        self._answers.expect()
        return self.collect()

    def run_class(self, most: int, images: InputBatch) -> ImageOutputs:
        """Run preprocessed images through the graph of one class, whichever `run` would choose."""
        self.stage(as_pictures(images))
        self.graphs[most].launch(self.stream.handle)
        self._answers.expect()
        return self.collect()

    def free(self) -> None:
        """Release everything. Nothing may be in flight."""
        self._owned.free()
        self._executions, self.graphs = [], {}
        self.stream = None  # destroyed here, where the context is current

    def _publish(self, most: int) -> None:
        """Publish the answers of the staged batch, of at most `most` pictures."""
        batch, shown = self.preprocessor.staging.batch, self.preprocessor.shown
        self._answers.enqueue(batch, shown, self._images.address, most)

    def _find_graph(self, count: int) -> Graph | SurroundingGraphs | None:
        """Find the graph of the smallest class that takes the batch."""
        if not self.preprocessor.takes_one_launch:
            return None
        return next((graph for most, graph in self.graphs.items() if most >= count), None)

    def _find_profile(self, count: int) -> int:
        """Find the narrowest profile that takes the batch."""
        profiles = self.network.profiles
        fitting = [index for index, profile in enumerate(profiles) if profile.min <= count <= profile.max]
        return min(fitting, key=lambda index: profiles[index].max)

    def _capture(self) -> None:
        """Capture a graph for each class, each with an execution that nothing else uses."""
        for most in sorted({*(size for size in CLASSES if size < self.max_batch), self.max_batch}):
            try:
                self.graphs[most] = self._capture_class(most)
                continue
            except NoRoomError as error:
                log.warning("batches of %d run without a CUDA graph: %s", most, error)
            except CaptureError as error:
                self.refusal = str(error)
            except DeviceError as error:
                if self.network.capturable:
                    raise
                self.refusal = f"the network's library cannot make one: {error}"
            self.wait()  # what was enqueued before it failed
            return

    def _capture_class(self, most: int) -> Graph | SurroundingGraphs:
        execution = self._owned.add(
            self.network.create_class_execution(self._find_profile(most), most, self._addresses, self.stream)
        )

        def preprocess() -> None:
            self.preprocessor.launch(self._images.address, most)

        def infer() -> None:
            execution.enqueue(most, self.stream)

        def publish() -> None:
            self._publish(most)

        def do_all() -> None:
            preprocess()
            infer()
            publish()

        pictures = np.random.default_rng(most).integers(0, 256, (most, 9, 9), np.uint8)
        self.stage(pictures)
        do_all()  # TensorRT must have run a shape before it is captured
        self._answers.expect()
        plain = self.collect()
        captured: Graph | SurroundingGraphs
        if self.network.capturable:
            captured = self._capture_work(do_all)
        else:
            captured = SurroundingGraphs(self._capture_work(preprocess), infer, self._capture_work(publish))
        for _ in range(2):  # a library that captures at the first launch answers by its graph at the second
            self.stage(pictures)
            captured.launch(self.stream.handle)
            self._answers.expect()
            if any((left != right).any() for left, right in zip(self.collect(), plain, strict=True)):
                raise CaptureError("a graph answers otherwise than what it was captured from")
        return captured

    def _capture_work(self, enqueue: Callable[[], None]) -> Graph:
        return self._owned.add(Graph(self._context.driver, self.stream.handle, enqueue))


def as_pictures(batch: InputBatch | Sequence[AnyImage]) -> Images:
    """See a network's inputs, uint8 `[N, C, H, W]`, as pictures that preprocessing leaves as they are.

    A list of images is returned as it is.
    """
    if not isinstance(batch, np.ndarray):
        return batch
    images: npt.NDArray[np.uint8] = batch
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)


def list_execution_paths(runner: Runner) -> list[ExecutionPath]:
    """List every profile of a runner's network, and every graph."""
    profiles = runner.network.profiles
    paths = [ExecutionPath(f"profile {i}", p, partial(runner.run_profile, i)) for i, p in enumerate(profiles)]
    smallest = 1
    for most in runner.graphs:
        paths.append(
            ExecutionPath(f"graph of {most}", Profile(smallest, most, most), partial(runner.run_class, most))
        )
        smallest = most + 1
    return paths
