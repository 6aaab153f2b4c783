"""Hold the kernel against the definition on the cases that the planted faults need.

python -m tests.kernel.differ LIBRARY SEED prints `equal`, or `differs` at the first case in which a pixel does.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmengine.gpu.launch import Geometry, InputShape

from .cases import Case, random_case, reference
from .host import HostKernel


def make_case(picture: np.ndarray, box: tuple[int, int, int, int] | None = None, **options: object) -> Case:
    """A batch of one picture, gray, 16×16, unless told otherwise."""
    whole = (0, 0, picture.shape[1], picture.shape[0])
    values = {"paddings": [0], "bgr": [False], "channels": 1, "size": (16, 16)} | options
    return Case(pictures=[picture], boxes=[box or whole], **values)


def wide_case() -> Case:
    """A picture whose rows need many tiles of shared memory."""
    return make_case(np.random.default_rng(0).integers(0, 256, (9, 8000), np.uint8), size=(9, 32))


def tall_case() -> Case:
    """A picture whose rows do not all fit between the passes, nor its source rows at once."""
    picture = np.random.default_rng(0).integers(0, 256, (1000, 700, 3), np.uint8)
    return make_case(picture, size=(100, 120))


def far_case(kernel: HostKernel) -> int:
    """Differing pixels of a picture that begins past 2^32 bytes, in memory that is otherwise never touched."""
    picture = np.random.default_rng(1).integers(0, 256, (9, 9), np.uint8)
    far = 2**32 + 5
    buffer = np.zeros(far + 81, np.uint8)
    buffer[far:] = picture.ravel()
    there, shape = [Geometry(far, 9, 9, 9, 1, False, (0, 0, 9, 9))], InputShape(1, 12, 12)
    found = [run(there, buffer.ctypes.data, shape)[0] for run in (kernel.preprocess, kernel.preprocess_separately)]
    return int((np.concatenate(found) != reference(picture, (0, 0, 9, 9), False, 1, (12, 12))).sum())


def count_differing(kernel: HostKernel, seed: int) -> Iterator[int]:
    """Differing pixels of each case: random ones, and a buffer beyond 2 GiB."""
    rng = np.random.default_rng(seed)
    for case in [*(random_case(rng, 8) for _ in range(12)), wide_case(), tall_case()]:
        expected = case.expected()
        for images in case.run_all(kernel):
            yield int((images != expected).sum())
    yield far_case(kernel)


if __name__ == "__main__":
    differs = any(count_differing(HostKernel(Path(sys.argv[1])), int(sys.argv[2])))
    print("differs" if differs else "equal")
