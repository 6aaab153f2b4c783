"""The stages of a picture's way: read, decode, preprocess, infer, post.

Whatever any library raises on the way becomes the `Failure` of that picture here, and nowhere else.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import numpy as np
from PIL import Image

from ..backend.protocol import Backend, DeviceBackend
from ..errors import FmengineError, Kind, SourceError
from ..image.decode import decode, decode_bytes
from ..image.faults import as_source_error
from ..image.flatness import is_flat_input
from ..image.jpeg import is_plain_jpeg, may_be_turned
from ..image.preprocess import preprocess, preprocess_batch
from ..image.source import (
    describe_source,
    get_bytes,
    get_path,
    is_encoded,
    is_file_like,
    is_on_device,
    read_file,
    read_file_like,
)
from ..model.spec import ModelSpec
from ..options import Limits
from ..types import UNSURE, Channels, DecodedImage, Failure, InputBatch, NetworkInput, Prediction, Reason, Source
from .batch import Batch, Content, Task

if TYPE_CHECKING:
    from .workers import InputWorkers

Stage = Literal["read", "decode", "preprocess", "infer", "post"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Observe = Callable[[Stage, float, float], None]  # the stage, and when it began and ended, by `time.perf_counter`

MAX_HELD = 8 * 1024 * 1024  # bytes of a decoded image that waits for a GPU
MAX_SIDE_OF_GROUP = 256  # rows and columns of images that are preprocessed together

F = TypeVar("F", bound=Callable[..., Any])


class Stages:
    """The stages of one model on one backend. Thread-safe."""

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        backend: Backend,
        *,
        min_side: int = 0,
        unsure_below: float = 0.0,
        workers: "InputWorkers | None" = None,
    ) -> None:
        """Set the stages up.

        Args:
            spec: of the model.
            limits: of what a picture may cost.
            backend: that runs the network.
            min_side: rows and columns that a JPEG keeps at least where it is decoded smaller; 0 decodes it whole.
            unsure_below: confidence under which the label is `unsure`.
            workers: processes that read, decode and preprocess paths and encoded pictures.
        """
        self.spec, self.limits, self.workers = spec, limits, workers
        # Asked once: whether an object follows a protocol takes longer to see than a small face to preprocess.
        self.device = backend if isinstance(backend, DeviceBackend) else None
        self._min_side, self._unsure_below = min_side, unsure_below
        self._spare: list[Batch] = []  # of one row: to lay one out takes longer than to read a small file
        self.observe(None)

    def observe(self, observer: Observe | None) -> None:
        """Call `observer(stage, begin, end)` after each stage, in whichever thread ran it; None stops it."""

        def observed(stage: Stage, function: F) -> F:
            return function if observer is None else _observed(observer, stage, function)

        self._read = observed("read", read_file)
        self._decode = observed("decode", decode_bytes)
        self._decode_source = observed("decode", decode)
        self._preprocess = observed("preprocess", self._preprocess_into)
        self._infer = observed("infer", self._run_network)
        self._post = observed("post", self._set_results)

    def admit(self, source: Source, channels: Channels = "rgb", *, copy: bool = True) -> Task:
        """Take a source over: what its owner does to it afterwards changes nothing.

        An image is decoded, an array copied and a file-like read; what is in device memory stays there.

        Args:
            source: of one picture. Where it cannot be taken, the task has its `Failure`.
            channels: the order of an array's channels.
            copy: False where the owner waits for the result, and so changes nothing meanwhile.
        """
        if type(source) is str or type(source) is bytes:
            return Task(source, source)
        try:
            return Task(source, self._content_of(source, channels, copy))
        except Exception as error:
            return Task(source, None, make_failure(error, source))

    def run(self, tasks: Sequence[Task], batch: Batch, backend: Backend) -> None:
        """Give every task its result. `batch` must be empty and have room for all; it is empty afterwards."""
        try:
            self.prepare(tasks, batch)
            self.answer(batch, backend)
        finally:
            batch.clear()

    def run_alone(self, task: Task, backend: Backend) -> None:
        """Give one task its result."""
        try:
            batch = self._spare.pop()
        except IndexError:
            batch = Batch(self.spec, 1)
        self.run([task], batch, backend)
        self._spare.append(batch)

    def prepare(self, tasks: Sequence[Task], batch: Batch) -> None:
        """Read, decode and preprocess: each task takes a row of the batch, or gets its `Failure`.

        Small images are preprocessed together; a group of photographs would fill the memory.
        """
        group: list[Task] = []
        images: list[DecodedImage] = []
        for task in tasks:
            if task.result is not None:
                continue
            content = task.content
            try:
                if self.device is not None or (self.workers is not None and is_encoded(content)):
                    self._prepare_elsewhere(task, batch)
                    continue
                if type(content) is str:
                    content = self._read(content, self.limits)
                if type(content) is bytes:
                    content = self._decode(content, self.spec.color, self.limits, self._min_side)
                image = cast(DecodedImage, content)
                if max(image.shape[:2]) <= MAX_SIDE_OF_GROUP:
                    group.append(task)
                    images.append(image)
                else:
                    self._preprocess([task], [image], batch)
            except Exception as error:
                task.result = make_failure(error, task.source)
        if group:
            try:
                self._preprocess(group, images, batch)
            except Exception:  # of one of them: each alone shows which
                self._prepare_one_by_one(group, images, batch)

    def answer(self, batch: Batch, backend: Backend) -> None:
        """Run the network on a batch, and give its tasks their results: one by one where it fails for one of them.

        Raises:
            FmengineError: for an error that is no picture's, such as of a GPU that failed.
        """
        if not batch.tasks:
            return
        try:
            self._infer(batch, backend)
            self._post(batch)
            return
        except Exception as error:
            if isinstance(error, FmengineError) and not isinstance(error, SourceError):
                raise
            if len(batch) == 1:
                batch.tasks[0].result = make_failure(error, batch.tasks[0].source)
                return
        for row in range(len(batch)):
            self.answer(batch.select(row), backend)

    def preprocess(self, source: Source, channels: Channels) -> NetworkInput:
        """Make one picture's input for the network, on the CPU; raises whatever is raised on the way."""
        content = self._content_of(source, channels, copy=False)
        if self.workers is not None and is_encoded(content):
            return self.workers.prepare(content).image
        if isinstance(content, str):
            content = self._read(content, self.limits)
        if isinstance(content, bytes):
            content = self._decode(content, self.spec.color, self.limits, self._min_side)
        return preprocess(cast(DecodedImage, content), self.spec.input)

    def _content_of(self, source: Source, channels: Channels, copy: bool) -> Content:
        """What there is of a source, as the next stages take it."""
        if isinstance(source, np.ndarray):
            image = self._decode_source(source, self.spec.color, self.limits, channels)
            return DecodedImage(image.copy()) if copy else image
        if isinstance(source, str | os.PathLike):
            return get_path(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return get_bytes(source)
        if self.device is not None and is_on_device(source):
            return self.device.admit(source, channels)
        if is_file_like(source):
            return read_file_like(source, self.limits)
        image = self._decode_source(source, self.spec.color, self.limits, channels)
        # Of an image it is new memory already; an array of another library may be given as it is.
        return DecodedImage(image.copy()) if copy and not isinstance(source, Image.Image) else image

    def _prepare_elsewhere(self, task: Task, batch: Batch) -> None:
        """Prepare a picture whose pixels are not made here alone: on a GPU, or in a worker process."""
        content = task.content
        if self.workers is not None and is_encoded(content):
            made = self.workers.prepare(content)
            if self.device is None:
                row = len(batch)
                batch.inputs[row], batch.flat[row] = made.image, made.flat
                batch.tasks.append(task)
            else:
                batch.add_image(task, _as_image(made.image))
            return
        if isinstance(content, str):
            content = self._read(content, self.limits)
        if isinstance(content, bytes):
            content = self._decode_for_device(content)
        if isinstance(content, np.ndarray) and content.nbytes > MAX_HELD:
            one = Batch(self.spec, 1)
            self._preprocess([task], [content], one)
            content = _as_image(NetworkInput(one.inputs[0]))
        batch.add_image(task, cast("DecodedImage", content))

    def _decode_for_device(self, data: bytes) -> Content:
        if self.device is not None and is_plain_jpeg(data, self.limits) and not may_be_turned(data):
            image = self.device.decode_jpeg(data)
            if image is not None:
                return image
        return self._decode(data, self.spec.color, self.limits, self._min_side)

    def _prepare_one_by_one(self, tasks: list[Task], images: list[DecodedImage], batch: Batch) -> None:
        for task, image in zip(tasks, images, strict=True):
            try:
                self._preprocess([task], [image], batch)
            except Exception as error:
                task.result = make_failure(error, task.source)

    def _preprocess_into(self, tasks: list[Task], images: list[DecodedImage], batch: Batch) -> None:
        """Write images as the next rows of a batch, all of them or none."""
        spec, begin, end = self.spec.input, len(batch), len(batch) + len(tasks)
        inputs = preprocess_batch(images, spec, InputBatch(batch.inputs[begin:end]))
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        batch.flat[begin:end] = is_flat_input(inputs, sizes, spec)
        batch.tasks += tasks

    def _run_network(self, batch: Batch, backend: Backend) -> None:
        count = len(batch)
        if self.device is None:
            batch.probabilities[:count] = backend.run(batch.inputs[:count]).probabilities
            return
        outputs = self.device.run_pictures(batch.images)
        batch.probabilities[:count], batch.flat[:count] = outputs.probabilities, outputs.flat

    def _set_results(self, batch: Batch) -> None:
        labels, count = self.spec.labels, len(batch)
        threshold = self._unsure_below or self.spec.unsure_below
        rows = zip(batch.tasks, batch.probabilities[:count].tolist(), batch.flat[:count].tolist(), strict=True)
        for task, row, flat in rows:
            probabilities = dict(zip(labels, row, strict=True))
            if not math.isfinite(sum(row)):
                task.result = _not_finite(task.source, probabilities)
                continue
            confidence = max(row)
            reason = Reason.FLAT if flat else Reason.UNSURE if confidence < threshold else None
            label = UNSURE if reason and self._unsure_below else labels[row.index(confidence)]
            task.result = Prediction(label, confidence, probabilities, task.source, reason)


def make_failure(error: Exception, source: Source) -> Failure:
    """Make a picture's `Failure` of whatever was raised on its way; an error that is no picture's is raised."""
    error = as_source_error(error)
    return Failure(error.kind, error.message, source)


def make_error(failure: Failure) -> SourceError:
    """Make the error that `predict` raises, which names its source."""
    return SourceError(failure.kind, failure.message, describe_source(failure.source))


def _not_finite(source: Source, probabilities: dict[str, float]) -> Failure:
    found = ", ".join(f"{p} for {label}" for label, p in probabilities.items())
    return Failure(
        Kind.NOT_FINITE,
        f"the model answers {found}; expected probabilities: export it again, or in a higher precision",
        source,
    )


def _as_image(made: NetworkInput) -> DecodedImage:
    """Turn an input `[C, H, W]` into an image `[H, W, C]`, of which a GPU makes the same bits."""
    return DecodedImage(np.ascontiguousarray(made.transpose(1, 2, 0)))


def _observed(observer: Observe, stage: Stage, function: F) -> F:
    def call(*arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            observer(stage, begin, time.perf_counter())

    return cast(F, call)
