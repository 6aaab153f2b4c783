"""The gate: the comparison with the CPU that a newly built engine must pass on its GPU before it may answer."""

from collections.abc import Callable, Sequence
from importlib import resources
from io import BytesIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import BackendError
from ..image.preprocess import preprocess, preprocess_batch
from ..model.spec import ModelSpec
from ..trt.profile import Profile
from ..types import DecodedImage, ImageOutputs, InputBatch, Outputs
from .compare import HALF_PRECISION, compare

PICTURES = 256
SEED = 20

Run = Callable[[InputBatch], Outputs | ImageOutputs]


class GateError(BackendError):
    """An engine does not answer as the CPU does: it must not answer at all."""

    exit_code = 1


class ExecutionPath(NamedTuple):
    """One path through an engine: a profile, or a graph.

    Attributes:
        name: for people.
        profile: the batch sizes that it takes.
        run: the network, on that path.
    """

    name: str
    profile: Profile
    run: Run


class Passed(NamedTuple):
    """One path at one batch size, and the largest difference of a probability."""

    path: str
    batch: int
    largest: float


def check_engine(paths: Sequence[ExecutionPath], reference: Run, spec: ModelSpec) -> list[Passed]:
    """Compare an engine's answers with the CPU's, on every path through it, at three batch sizes each.

    Args:
        paths: every profile, and every graph.
        reference: the same weights on the CPU.
        spec: of the model.

    Returns:
        What was checked.

    Raises:
        GateError: naming the first picture whose probabilities differ by more than `HALF_PRECISION` allows.
    """
    images = draw_gate_inputs(spec)
    expected = reference(images).probabilities
    passed = []
    for name, profile, run in paths:
        for batch in list_batch_sizes(profile):
            # Every batch is full: after the last picture comes the first again.
            order = np.arange(-(-len(images) // batch) * batch) % len(images)
            parts = [run(InputBatch(images[rows])).probabilities for rows in order.reshape(-1, batch)]
            where = f"{name}, batches of {batch}"
            largest = _check_answers(np.concatenate(parts), expected[order], where)
            passed.append(Passed(name, batch, largest))
    return passed


def check_kernel(
    run: Callable[[Sequence[DecodedImage]], InputBatch],
    spec: ModelSpec,
    batch: int,
    *,
    pictures: int = 64,
    seed: int = SEED,
    smallest: int = 1,
    largest: int = 300,
) -> None:
    """Compare the preprocessing kernel with its definition.

    Args:
        run: preprocesses a batch on the GPU.
        spec: of the model.
        batch: pictures at once.
        pictures: how many in all, gray and in colour.
        seed: of the pictures.
        smallest: side of a picture, in pixels.
        largest: side of a picture, in pixels.

    Raises:
        GateError: naming the first picture that differs in a pixel.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, pictures, batch):
        drawn = [draw_picture(rng, smallest, largest) for _ in range(min(batch, pictures - start))]
        for index, (picture, found) in enumerate(zip(drawn, run(drawn), strict=True)):
            expected = preprocess(picture, spec.input)
            if wrong := int((found != expected).sum()):
                raise GateError(
                    f"the preprocessing kernel is refused: {wrong} levels of picture {start + index} (seed "
                    f"{seed}, shape {picture.shape}) differ from the definition. Update the driver, and report it"
                )


def list_batch_sizes(profile: Profile) -> list[int]:
    """Return the smallest, an odd and the largest batch size of a profile."""
    odd = (profile.min + profile.max) // 2 | 1
    return sorted({profile.min, min(odd, profile.max), profile.max})


def draw_gate_inputs(spec: ModelSpec) -> InputBatch:
    """Preprocess `draw_gate_pictures`, to uint8 `[257, C, H, W]`."""
    return preprocess_batch(draw_gate_pictures(), spec.input)


def draw_gate_pictures() -> list[DecodedImage]:
    """Draw 256 seeded pictures and load a portrait, uint8 `[H, W, 3]`.

    The seeded ones are noise of random coarseness and contrast: they drive every layer through its range, which
    faces alone would not.
    """
    rng = np.random.default_rng(SEED)
    pictures: list[DecodedImage] = []
    for _ in range(PICTURES):
        cells = int(rng.integers(2, 65))
        levels = rng.normal(rng.uniform(40, 215), rng.uniform(5, 90), (cells, cells, 3))
        pictures.append(DecodedImage(levels.clip(0, 255).astype(np.uint8)))
    pictures.append(DecodedImage(np.asarray(load_portrait())))
    return pictures


def load_portrait() -> Image.Image:
    """Load the picture of a face that ships, of 130 x 160 pixels, in RGB."""
    portrait = resources.files(__package__).joinpath("portrait.png").read_bytes()
    return Image.open(BytesIO(portrait)).convert("RGB")


def draw_picture(rng: np.random.Generator, smallest: int = 1, largest: int = 300) -> DecodedImage:
    """Draw uniform noise of so many pixels a side, gray or in colour, on which every wrong weight shows."""
    height, width = (int(side) for side in np.exp(rng.uniform(np.log(smallest), np.log(largest), 2)).round())
    shape = (height, width) if rng.random() < 0.5 else (height, width, 3)
    return DecodedImage(rng.integers(0, 256, shape, np.uint8))


def _check_answers(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], where: str) -> float:
    """Return the largest difference of a probability; raise GateError where one is too large."""
    if found.shape != expected.shape:
        raise GateError(f"{where}: {found.shape} answers; expected {expected.shape}")
    comparison = compare(found, expected, HALF_PRECISION)
    if (wrong := comparison.excessive).any():
        first = int(wrong.argmax())
        raise GateError(
            f"the engine is refused. {where}: picture {first % (PICTURES + 1)} of the gate gets "
            f"{found[first].tolist()}, on the CPU {expected[first].tolist()}; allowed is a difference of "
            f"{HALF_PRECISION.probability}. {int(wrong.sum())} of {len(wrong)} answers are off. Update the driver "
            "or the library, and report it"
        )
    return comparison.largest
