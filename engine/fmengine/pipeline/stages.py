"""The stages of a picture's way: read, decode, preprocess, infer, post.

Whatever any library raises on the way becomes the `Failure` of that picture here, and nowhere else.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np
from PIL import Image

from ..backend.protocol import Backend, DeviceBackend
from ..errors import FmengineError, Kind, SourceError
from ..image.decode import decode, decode_bytes
from ..image.faults import as_source_error
from ..image.jpeg import is_plain_jpeg, may_be_turned
from ..image.preprocess import preprocess, preprocess_rows
from ..image.source import (
    describe_source,
    get_bytes,
    get_path,
    is_file_like,
    is_on_device,
    read_file_like,
)
from ..model.spec import ModelSpec
from ..options import Limits
from ..system.files import read_file
from ..types import (
    UNSURE,
    Channels,
    Color,
    DecodedImage,
    DeviceImage,
    Failure,
    NetworkInput,
    Prediction,
    Reason,
    Source,
)
from .batch import Batch, Content, Task
from .chunk import Answers

Stage = Literal["read", "decode", "detect", "preprocess", "infer", "post"]
STAGES: tuple[Stage, ...] = ("read", "decode", "preprocess", "infer", "post")  # of a picture; photographs have all
Observe = Callable[[Stage, float, float], None]  # the stage, and when it began and ended, by `time.perf_counter`

MAX_HELD = 8 * 1024 * 1024  # bytes of a decoded image that waits for a GPU
MAX_SIDE_OF_GROUP = 256  # rows and columns of images that are preprocessed together

F = TypeVar("F", bound=Callable[..., Any])


class Preparer(Protocol):
    """Processes that read, decode and preprocess; see `workers.Workers`."""

    def prepare(self, tasks: Sequence[Task], batch: Batch, observer: Observe | None) -> None:
        """Each of the tasks takes a row of the batch, or gets its `Failure`."""
        ...


class DecodeStages:
    """The first two stages, read and decode. Thread-safe.

    Args:
        limits: of what a picture may cost.
        color: `gray` or `rgb`, the model's.
        min_side: rows and columns that a JPEG keeps at least where it is decoded smaller; 0 decodes it whole.
    """

    def __init__(self, limits: Limits, color: Color, *, min_side: int = 0) -> None:
        self.limits, self._color, self._min_side = limits, color, min_side
        self.observe(None)

    def observe(self, observer: Observe | None) -> None:
        """Call `observer(stage, begin, end)` after each stage, in whichever thread ran it; None stops it."""
        self.observer = observer
        self._read = self._observed("read", read_file)
        self._decode = self._observed("decode", decode_bytes)

    def decode(self, content: str | bytes) -> DecodedImage:
        """Read a path, and decode it or encoded bytes; raises whatever is raised on the way."""
        if isinstance(content, str):
            content = self._read(content, self.limits.max_bytes)
        return self._decode(content, self._color, self.limits, self._min_side)

    def decode_each(
        self, tasks: Iterable[Task], make: Callable[[DecodedImage], DecodedImage]
    ) -> Iterator[tuple[Task, DecodedImage]]:
        """Yield what is made of each task's image; one that fails gets its `Failure`."""
        for task in tasks:
            try:
                image = make(self.decode(cast("str | bytes", task.content)))
            except Exception as error:
                task.result = make_failure(error, task.source)
                continue
            yield task, image

    def _observed(self, stage: Stage, function: F) -> F:
        return function if self.observer is None else _observed(self.observer, stage, function)


class Stages(DecodeStages):
    """The stages of one model on one backend. Thread-safe."""

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        backend: Backend,
        *,
        min_side: int = 0,
        unsure_below: float = 0.0,
        workers: "Preparer | None" = None,
    ) -> None:
        """Set the stages up.

        Args:
            spec: of the model.
            limits: of what a picture may cost.
            backend: that runs the network.
            min_side: as of `DecodeStages`.
            unsure_below: confidence under which the label is `unsure`.
            workers: processes that must read and decode paths and encoded pictures; None where threads may.
        """
        self.spec, self.workers = spec, workers
        # Asked once: whether an object follows a protocol takes longer to see than a small face to preprocess.
        self.device = backend if isinstance(backend, DeviceBackend) else None
        self._unsure_below = unsure_below
        self._spare: list[Batch] = []  # of one row: to lay one out takes longer than to read a small file
        super().__init__(limits, spec.color, min_side=min_side)

    def observe(self, observer: Observe | None) -> None:
        super().observe(observer)
        self._decode_source = self._observed("decode", decode)
        self._preprocess = self._observed("preprocess", preprocess_rows)

    def admit(self, source: Source, channels: Channels = "rgb", *, copy: bool = True) -> Task:
        """Take a source over: what its owner does to it afterwards changes nothing.

        An image is decoded, an array copied and a file-like read; what is in device memory stays there.

        Args:
            source: of one picture. Where it cannot be taken, the task has its `Failure`, or the error that is no
                picture's.
            channels: the order of an array's channels.
            copy: False where the owner waits for the result, and so changes nothing meanwhile.
        """
        if type(source) is str or type(source) is bytes:
            return Task(source, source)
        try:
            return Task(source, self._get_content(source, channels, copy))
        except Exception as error:
            return Task(source, None, _make_result(error, source))

    def run(self, tasks: Sequence[Task], batch: Batch, backend: Backend) -> None:
        """Give every task its result. `batch` must be empty and have room for all; it is empty afterwards."""
        self.prepare(tasks, batch)
        self.answer(batch, backend)

    def run_alone(self, task: Task, backend: Backend) -> None:
        """Give one task its result."""
        batch = self.borrow_row()
        self.run([task], batch, backend)
        self.return_row(batch)

    def borrow_row(self) -> Batch:
        """Lend an empty batch of one row; one that is not returned is no loss."""
        try:
            return self._spare.pop()
        except IndexError:
            return Batch(self.spec, 1)

    def return_row(self, batch: Batch) -> None:
        """Take back an empty batch of one row."""
        self._spare.append(batch)

    def prepare(self, tasks: Iterable[Task], batch: Batch) -> None:
        """Read, decode and preprocess: each task takes a row of the batch, or gets its `Failure`.

        Small images are preprocessed together; a group of photographs would fill the memory.
        """
        if self.workers is not None:
            tasks = list(tasks)
            if delegated := [task for task in tasks if is_delegable(task)]:
                self.workers.prepare(delegated, batch, self.observer)
                tasks = [task for task in tasks if not is_delegable(task)]
        group: list[Task] = []
        images: list[DecodedImage] = []
        for task in tasks:
            if task.result is not None:
                continue
            content = task.content
            try:
                if self.device is not None:
                    self._prepare_for_device(self.device, task, batch)
                    continue
                image = self._get_image(content)
                if max(image.shape[:2]) > MAX_SIDE_OF_GROUP:
                    task.content = None  # which frees a photograph once its row is written
                    self._preprocess_one(task, image, batch)
                else:
                    group.append(task)
                    images.append(image)
            except Exception as error:
                task.result = make_failure(error, task.source)
        if not group:
            return
        begin, end = len(batch.tasks), len(batch.tasks) + len(group)
        try:
            self._preprocess(images, self.spec.input, batch.inputs[begin:end], batch.flat[begin:end])
            batch.tasks += group
        except Exception:  # of one of them: each alone shows which
            self._preprocess_one_by_one(group, images, batch)

    def answer(self, batch: Batch, backend: Backend) -> None:
        """Run the network on a batch, give its tasks their results, and free it; raises as `infer` does."""
        self.infer(batch, backend)
        self.post(batch)

    def infer(self, batch: Batch, backend: Backend) -> None:
        """Run the network on a batch: its rows have their probabilities, or their tasks a `Failure`.

        Where the network fails for one of them, it is run on each alone.

        Raises:
            FmengineError: for an error that is no picture's, such as of a GPU that failed; the batch is free then.
        """
        count = len(batch.tasks)
        if not count:
            return
        begin = time.perf_counter()
        try:
            self._run_network(batch, backend)
        except Exception as error:
            self._infer_one_by_one(batch, backend, error)
            return
        if self.observer is not None:
            self.observer("infer", begin, time.perf_counter())
        if not math.isfinite(batch.probabilities[:count].sum()):
            self._refuse_not_finite(batch)

    def infer_images(
        self, device: DeviceBackend, images: Sequence[DecodedImage]
    ) -> tuple[list[tuple[float, ...]], list[bool]] | None:
        """Run a GPU's network on images of a chunk, and return the probabilities and whether each is flat.

        None where it fails, or answers NaN: a batch of them finds out for which.
        """
        begin = time.perf_counter()
        try:
            _, probabilities, flat = device.run_pictures(images)
        except Exception:
            return None
        if self.observer is not None:
            self.observer("infer", begin, time.perf_counter())
        if not math.isfinite(probabilities.sum()):
            return None
        return list(map(tuple, probabilities.tolist())), flat.tolist()

    def post(self, batch: Batch) -> None:
        """Give the tasks of a batch the results that its probabilities say, and free it."""
        count, begin = len(batch.tasks), time.perf_counter()
        rows, names = list(map(tuple, batch.probabilities[:count].tolist())), self.spec.labels
        _, labels, reasons = self._decide(rows, batch.flat[:count].tolist())
        for task, row, label, reason in zip(batch.tasks, rows, labels, reasons, strict=True):
            if task.result is None:
                task.result = Prediction(label, max(row), dict(zip(names, row, strict=True)), task.source, reason)
        batch.clear()
        if count and self.observer is not None:
            self.observer("post", begin, time.perf_counter())

    def post_columns(self, answers: Answers) -> None:
        """Say what the probabilities of answers mean."""
        begin = time.perf_counter()
        answers.best, answers.labels, answers.reasons = self._decide(answers.probabilities, answers.flat)
        if self.observer is not None:
            self.observer("post", begin, time.perf_counter())

    def _decide(
        self, rows: Sequence[tuple[float, ...]], flat: Sequence[bool]
    ) -> tuple[list[int], list[str], list[Reason | None]]:
        """Say what probabilities mean: the best of each row, its label, and a reason not to trust it."""
        names, threshold = self.spec.labels, self._unsure_below or self.spec.unsure_below
        confidences = list(map(max, rows))
        best = list(map(tuple.index, rows, confidences))
        labels = [names[index] for index in best]
        reasons: list[Reason | None] = [None] * len(rows)
        if True in flat or min(confidences, default=1.0) < threshold:
            reasons = [
                Reason.FLAT if is_flat else Reason.UNSURE if confidence < threshold else None
                for is_flat, confidence in zip(flat, confidences, strict=True)
            ]
        if self._unsure_below:
            labels = [UNSURE if reason else label for label, reason in zip(labels, reasons, strict=True)]
        return best, labels, reasons

    def preprocess(self, source: Source, channels: Channels) -> NetworkInput:
        """Make one picture's input for the network, on the CPU; raises whatever is raised on the way."""
        content = self._get_content(source, channels, copy=False)
        if self.workers is not None and isinstance(content, str | bytes):
            return self._preprocess_in_worker(self.workers, content)
        return preprocess(self._get_image(content), self.spec.input)

    def _get_content(self, source: Source, channels: Channels, copy: bool) -> Content:
        """Return what the next stages take of a source."""
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

    def _get_image(self, content: Content) -> DecodedImage:
        """Return a picture's image, read and decoded unless it is one."""
        return self.decode(content) if isinstance(content, str | bytes) else cast(DecodedImage, content)

    def _preprocess_in_worker(self, workers: "Preparer", content: str | bytes) -> NetworkInput:
        task, batch = Task(content, content), Batch(self.spec, 1)
        workers.prepare([task], batch, self.observer)
        if isinstance(task.result, Failure):
            raise SourceError(task.result.kind, task.result.message)
        if self.device is not None:
            return preprocess(cast(DecodedImage, batch.images[0]), self.spec.input)
        return NetworkInput(batch.inputs[0])

    def _prepare_for_device(self, device: DeviceBackend, task: Task, batch: Batch) -> None:
        """Read and decode a picture, which the backend is to preprocess: a photograph is made small here."""
        content = task.content
        if isinstance(content, str):
            content = self._read(content, self.limits.max_bytes)
        if isinstance(content, bytes):
            image: DecodedImage | DeviceImage | None = None
            if is_plain_jpeg(content, self.limits) and not may_be_turned(content):
                image = device.decode_jpeg(content)
            if image is None:
                image = self.decode(content)
            content = image
        if isinstance(content, np.ndarray) and content.nbytes > MAX_HELD:
            content = as_image(preprocess(content, self.spec.input))
        batch.add_image(task, cast("DecodedImage | DeviceImage", content))

    def _preprocess_one(self, task: Task, image: DecodedImage, batch: Batch) -> None:
        """Write one image as the next row of a batch."""
        row = len(batch.tasks)
        self._preprocess([image], self.spec.input, batch.inputs[row : row + 1], batch.flat[row : row + 1])
        batch.tasks.append(task)

    def _preprocess_one_by_one(self, tasks: list[Task], images: list[DecodedImage], batch: Batch) -> None:
        for task, image in zip(tasks, images, strict=True):
            try:
                self._preprocess_one(task, image, batch)
            except Exception as error:
                task.result = make_failure(error, task.source)

    def _infer_one_by_one(self, batch: Batch, backend: Backend, error: Exception) -> None:
        """Find out whose error it is; raise it where it is no picture's."""
        try:
            if len(batch.tasks) == 1:
                batch.tasks[0].result = make_failure(error, batch.tasks[0].source)
                return
            if isinstance(error, FmengineError) and not isinstance(error, SourceError):
                raise error
            for row in range(len(batch.tasks)):
                self.infer(batch.select(row), backend)
        except BaseException:
            batch.clear()
            raise

    def _run_network(self, batch: Batch, backend: Backend) -> None:
        """Run the network on a batch, whose rows have their probabilities then."""
        count = len(batch.tasks)
        if self.device is None:
            batch.probabilities[:count] = backend.run(batch.inputs[:count]).probabilities
        else:
            _, batch.probabilities[:count], batch.flat[:count] = self.device.run_pictures(batch.images)

    def _refuse_not_finite(self, batch: Batch) -> None:
        for task, row in zip(batch.tasks, batch.probabilities.tolist(), strict=False):
            if not math.isfinite(sum(row)):
                task.result = _make_not_finite(task.source, dict(zip(self.spec.labels, row, strict=True)))


def make_failure(error: Exception, source: Source) -> Failure:
    """Make a picture's `Failure` of whatever was raised on its way; an error that is no picture's is raised."""
    error = as_source_error(error)
    return Failure(error.kind, error.message, source)


def _make_result(error: Exception, source: Source) -> Failure | FmengineError:
    """Make the result of a picture that cannot be taken; an error that is no picture's is returned."""
    try:
        return make_failure(error, source)
    except FmengineError as other:
        return other


def make_error(failure: Failure) -> SourceError:
    """Make the error that `predict` raises, which names its source."""
    return SourceError(failure.kind, failure.message, describe_source(failure.source))


def _make_not_finite(source: Source, probabilities: dict[str, float]) -> Failure:
    found = ", ".join(f"{p} for {label}" for label, p in probabilities.items())
    return Failure(
        Kind.NOT_FINITE,
        f"the model answers {found}; expected probabilities: export it again, or in a higher precision",
        source,
    )


def is_delegable(task: Task) -> bool:
    """Return whether a worker process can do what is left to do for a task: its content is a path, or encoded."""
    return task.result is None and type(task.content) in (str, bytes)


def as_image(made: NetworkInput) -> DecodedImage:
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
