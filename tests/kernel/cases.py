"""Random batches for the preprocessing kernel, and what the definition makes of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fmengine.gpu.launch import Geometry, InputShape

from .host import HostKernel, fits, pack

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One batch.

    Attributes:
        pictures: uint8 `[H, W]` or `[H, W, C]`, in the order of channels that `bgr` says.
        boxes: left, top, right, bottom of what is resized.
        paddings: bytes after each row.
        bgr: whether blue comes first.
        channels: of the output.
        size: rows and columns of the output.
    """

    pictures: list[npt.NDArray[np.uint8]]
    boxes: list[Box]
    paddings: list[int]
    bgr: list[bool]
    channels: int
    size: tuple[int, int]

    def expected(self) -> npt.NDArray[np.uint8]:
        """What Pillow makes of it, which is the definition of preprocessing (`fmengine.image.preprocess`)."""
        rows = zip(self.pictures, self.boxes, self.bgr, strict=True)
        return np.stack([reference(picture, box, bgr, self.channels, self.size) for picture, box, bgr in rows])

    def run(self, kernel: HostKernel) -> npt.NDArray[np.uint8]:
        """By every way through the kernels, which must all give the same."""
        first, *others = self.run_all(kernel)
        for other in others:
            np.testing.assert_array_equal(other, first)
        return first

    def run_all(self, kernel: HostKernel) -> list[npt.NDArray[np.uint8]]:
        """By the three launches, and by the one where it takes the batch."""
        buffer, geometries = pack(self.pictures, self.boxes, padding=self.paddings, bgr=self.bgr)
        base, shape = buffer.ctypes.data, InputShape(self.channels, *self.size)
        images, shown = kernel.preprocess_separately(geometries, base, shape)
        if not fits(geometries, shape):
            return [images]
        fused, its_shown = kernel.preprocess(geometries, base, shape, begin=0, end=len(buffer))
        np.testing.assert_array_equal(its_shown, shown)
        return [images, fused]

    def geometries(self) -> list[Geometry]:
        return pack(self.pictures, self.boxes, padding=self.paddings, bgr=self.bgr)[1]


def reference(
    picture: npt.NDArray[np.uint8], box: Box, bgr: bool, channels: int, size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """One picture by two calls of Pillow, `[C, H, W]`."""
    if picture.ndim == 3:
        picture = picture[..., 0] if picture.shape[2] == 1 else picture[..., 2::-1] if bgr else picture[..., :3]
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("L" if channels == 1 else "RGB").crop(box)
    image = image.resize((size[1], image.height), Image.Resampling.BILINEAR)
    array = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return array.reshape(*size, channels).transpose(2, 0, 1)


def random_case(rng: np.random.Generator, pictures: int) -> Case:
    """A batch of `pictures` random ones: mostly small, some long and thin, some crops beyond the edge."""
    size = (int(rng.integers(1, 130)), int(rng.integers(1, 130)))
    case = Case([], [], [], [], int(rng.choice([1, 1, 1, 3])), size)
    for _ in range(pictures):
        height, width = (max(1, round(2 ** rng.uniform(0, 7.5))) for _ in range(2))
        if rng.random() < 0.02:
            height, width = rng.permutation([int(rng.integers(1, 4)), int(rng.integers(1000, 8193))])
        channels = int(rng.choice([0, 1, 3, 4]))
        shape = (height, width, channels) if channels else (height, width)
        smooth = rng.random() < 0.2
        picture = (
            np.full(shape, rng.integers(0, 256), np.uint8) if smooth else rng.integers(0, 256, shape, np.uint8)
        )
        case.pictures.append(picture)
        case.boxes.append(random_box(rng, height, width))
        case.paddings.append(int(rng.choice([0, 0, 1, 3, 13])))
        case.bgr.append(bool(rng.integers(2)))
    return case


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """The whole picture, a part of it, or one that reaches beyond its edges."""
    kind = rng.choice(["whole", "inside", "pixel", "beyond"])
    if kind == "whole":
        return 0, 0, width, height
    if kind == "pixel":
        left, top = int(rng.integers(width)), int(rng.integers(height))
        return left, top, left + 1, top + 1
    margin = 0 if kind == "inside" else 9
    left, right = sorted(int(value) for value in rng.integers(-margin, width + margin + 1, 2))
    top, bottom = sorted(int(value) for value in rng.integers(-margin, height + margin + 1, 2))
    return left, top, max(right, left + 1), max(bottom, top + 1)
