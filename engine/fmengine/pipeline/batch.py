"""A batch: the memory that pictures share on their way through the network, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..image.scene import SceneImage
from ..model.spec import ModelSpec
from ..types import DecodedImage, DeviceImage, Embedding, InputBatch, Result, Scene, Source

MAX_IMAGE_BYTES = 32 * 1024 * 1024  # of decoded images that wait for a GPU: photographs must not fill the memory
ALIGNMENT = 64  # bytes, a cache line

Content = str | bytes | DecodedImage | DeviceImage | SceneImage | None


@dataclass(slots=True, eq=False)
class Task:
    """One picture on its way.

    Attributes:
        source: what was given, for the result.
        content: what there is of it, until it has a row: a path, encoded bytes, or an image, which nobody changes.
        result: None until it is known; an error that is no picture's is raised by whoever takes the result.
        weight: how many pictures it counts for among those in flight.
    """

    source: Source
    content: Content
    result: Result | Scene | Embedding | BaseException | None = None
    weight: int = 1


class Batch:
    """A fixed number of rows at fixed addresses, in one block of memory.

    Attributes:
        capacity: rows.
        tasks: of the rows that are in use, in order.
        inputs: of a network on the CPU, uint8 `[capacity, C, H, W]`.
        images: of a backend that preprocesses itself, one a row; empty otherwise.
        image_bytes: of those images, in host memory.
        flat: whether each picture shows nothing, bool `[capacity]`.
        probabilities: the answers, float32 `[capacity, K]`.
    """

    __slots__ = ("capacity", "flat", "image_bytes", "images", "inputs", "probabilities", "tasks")

    def __init__(self, spec: ModelSpec, capacity: int, memory: Any = None) -> None:
        """Lay out a batch.

        Args:
            spec: of the model.
            capacity: rows.
            memory: a writable buffer of at least `Batch.size_of(spec, capacity)` bytes, such as shared memory;
                None for the heap.
        """
        sizes = _sizes(spec, capacity)
        if memory is None:
            memory = np.empty(sum(map(align, sizes)), np.uint8)
        starts = [0, align(sizes[0]), align(sizes[0]) + align(sizes[1])]
        regions = [np.frombuffer(memory, np.uint8, n, at) for n, at in zip(sizes, starts, strict=True)]
        self.capacity = capacity
        self.inputs = InputBatch(regions[0].reshape(spec.input_shape(capacity)))
        self.probabilities: npt.NDArray[np.float32] = regions[1].view(np.float32).reshape(capacity, -1)
        self.flat: npt.NDArray[np.bool_] = regions[2].view(np.bool_)
        self.tasks: list[Task] = []
        self.images: list[DecodedImage | DeviceImage] = []
        self.image_bytes = 0

    @classmethod
    def of_images(cls) -> "Batch":
        """Make a batch for images alone, such as those that workers decode."""
        one = object.__new__(cls)
        one.capacity, one.tasks, one.images, one.image_bytes = 0, [], [], 0
        return one

    @staticmethod
    def size_of(spec: ModelSpec, capacity: int) -> int:
        """Compute the bytes of memory that a batch takes."""
        return sum(map(align, _sizes(spec, capacity)))

    @property
    def room(self) -> int:
        """Rows that are free; none where the images that wait take as much memory as they may."""
        return 0 if self.image_bytes >= MAX_IMAGE_BYTES else self.capacity - len(self.tasks)

    def add_image(self, task: Task, image: DecodedImage | DeviceImage) -> None:
        """Take the next row for an image that the backend is to preprocess."""
        self.tasks.append(task)
        self.images.append(image)
        self.image_bytes += 0 if isinstance(image, DeviceImage) else image.nbytes

    def add_batches(self, others: "Sequence[Batch]") -> None:
        """Copy the rows of other batches, which must fit, behind those that are in use."""
        begin = len(self.tasks)
        for other in others:
            self.tasks += other.tasks
            self.images += other.images
            self.image_bytes += other.image_bytes
        if not self.images:
            rows = slice(begin, len(self.tasks))
            np.concatenate([other.inputs[: len(other.tasks)] for other in others], out=self.inputs[rows])
            np.concatenate([other.flat[: len(other.tasks)] for other in others], out=self.flat[rows])

    def select(self, row: int) -> "Batch":
        """Make a batch of one row, over the same memory."""
        one = object.__new__(Batch)
        one.capacity, one.tasks, one.image_bytes = 1, self.tasks[row : row + 1], 0
        one.images = self.images[row : row + 1]
        one.inputs = InputBatch(self.inputs[row : row + 1])
        one.flat, one.probabilities = self.flat[row : row + 1], self.probabilities[row : row + 1]
        return one

    def clear(self) -> None:
        """Free every row."""
        self.tasks, self.images, self.image_bytes = [], [], 0


def _sizes(spec: ModelSpec, capacity: int) -> tuple[int, int, int]:
    """Bytes of inputs, probabilities and flags."""
    _, channels, height, width = spec.input_shape(1)
    return capacity * channels * height * width, 4 * capacity * len(spec.labels), capacity


def align(size: int) -> int:
    """Round a number of bytes up to whole cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT
