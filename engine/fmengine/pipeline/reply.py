"""What a worker made of a chunk: copied out of its arena, and checked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import Kind
from ..types import DecodedImage, Failure, PackedImages
from .arena import Slot
from .batch import Batch, Task
from .chunk import Answers
from .messages import Answer, NonsenseError

ROUNDING = 1e-3  # by which probabilities, rounded each, may miss 1 in their sum


class Reply(NamedTuple):
    """What a worker made of a chunk, copied and checked.

    Attributes:
        rows: which picture of the chunk is in which row of what follows.
        failures: index, kind and message of those that have none.
        unplaced: indices of those that there was no room for.
        flat: whether each shows nothing.
        probabilities: a tuple for each row; none where the network did not run.
        inputs: of the network, uint8; None where it ran.
        images: decoded ones, where a GPU is to do the rest.
    """

    rows: Sequence[int]
    failures: list[tuple[int, Kind, str]]
    unplaced: list[int]
    flat: Sequence[bool] = ()
    probabilities: Sequence[tuple[float, ...]] = ()
    inputs: npt.NDArray[np.uint8] | None = None
    images: Sequence[DecodedImage] = ()

    def fill(self, batch: Batch, tasks: list[Task]) -> list[Task]:
        """Append rows to a batch, give tasks without one their `Failure`, and return those to ask for again."""
        for index, kind, message in self.failures:
            tasks[index].result = Failure(kind, message, tasks[index].source)
        placed = [tasks[row] for row in self.rows]
        if self.images:
            for task, image in zip(placed, self.images, strict=True):
                batch.add_image(task, image)
        elif placed:
            rows = slice(len(batch.tasks), len(batch.tasks) + len(placed))
            batch.flat[rows] = self.flat
            if self.inputs is None:
                batch.probabilities[rows] = self.probabilities
            else:
                batch.inputs[rows] = self.inputs
            batch.tasks += placed
        return [tasks[index] for index in self.unplaced]

    def make_answers(self, paths: list[str], names: tuple[str, ...]) -> Answers:
        """Make the results of paths, without an object for each."""
        failures = {index: Failure(kind, text, paths[index]) for index, kind, text in self.failures}
        if self.rows == range(len(paths)):
            return Answers(names, paths, self.probabilities, self.flat, failures)
        probabilities, flat = [(0.0,) * len(names)] * len(paths), [False] * len(paths)
        for row, values, is_flat in zip(self.rows, self.probabilities, self.flat, strict=True):
            probabilities[row], flat[row] = values, is_flat
        return Answers(names, paths, probabilities, flat, failures)


def read_reply(answer: Answer, slot: Slot, network: bool, copy: bool) -> Reply:
    """Read what a slot holds: copied first, then checked, for the worker could change it between."""
    rows = _read_rows(slot, answer)
    reply, count = Reply(rows, answer.failures, answer.unplaced), len(rows)
    if slot.batch is None:
        images = _read_images(slot, count)
        return reply._replace(images=[DecodedImage(image.copy()) for image in images] if copy else images)
    flat = slot.batch.flat[:count].tolist()
    if not network:
        return reply._replace(flat=flat, inputs=slot.batch.inputs[:count].copy())
    copied = slot.batch.probabilities[:count]
    values: list[float] = copied.reshape(-1).tolist()
    # Of all rows together: each adds up to 1, and where one is not a number their sum is none.
    if count and not (min(values) >= 0 and max(values) <= 1 and abs(sum(values) / count - 1) < ROUNDING):
        raise NonsenseError(f"probabilities from {min(values)} to {max(values)}, {sum(values) / count} a picture")
    return reply._replace(flat=flat, probabilities=list(zip(*[iter(values)] * copied.shape[1], strict=True)))


def _read_rows(slot: Slot, answer: Answer) -> Sequence[int]:
    """Read which picture is in which row; every one of them must be in a row, or be without."""
    without = [*(index for index, _, _ in answer.failures), *answer.unplaced]
    pictures = range(answer.pictures)
    rows: list[int] = slot.rows[: max(0, answer.pictures - len(without))].tolist()
    if rows == list(pictures) and not without:
        return pictures
    if sorted([*rows, *without]) != list(pictures):
        raise NonsenseError("not every picture has a row")
    return rows


def _read_images(slot: Slot, count: int) -> PackedImages:
    """Read where the images of a slot are; none of them may lead out of it."""
    places, size = slot.places[:count].copy(), len(slot.pixels)
    at, height, width, channels = places.astype(np.int64).T
    possible = (at >= 0) & (height > 0) & (height <= size) & (width > 0) & (width <= size)
    possible &= (channels == 0) | (channels == 1) | (channels == 3)
    possible &= at + height * width * np.maximum(channels, 1) <= size
    if not possible.all():
        raise NonsenseError(f"an image of {places[~possible][0].tolist()}")
    return PackedImages(slot.pixels, places)
