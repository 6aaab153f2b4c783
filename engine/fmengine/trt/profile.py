"""The options of a build: sizes of the input, GPUs, and how long to search for fast kernels."""

from dataclasses import dataclass
from typing import Any

from ..errors import BackendError
from ..model.detector import DetectorSpec
from ..model.spec import ModelSpec


class BuildError(BackendError):
    """TensorRT does not build an engine from this model with these options."""

    exit_code = 1


@dataclass(frozen=True)
class Profile:
    """The batch sizes of one of an engine's profiles: the smallest, the one to be fast at, the largest.

    Attributes:
        sides: pixels of each side at these three, where the model takes pictures of any size.
    """

    min: int
    opt: int
    max: int
    sides: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        # TensorRT's `set_shape` takes a smallest above the largest, and the build fails without a reason.
        if not 1 <= self.min <= self.opt <= self.max:
            raise BuildError(
                f"a profile from {self.min} over {self.opt} to {self.max} pictures; expected 1 ≤ min ≤ opt ≤ max"
            )

    def list_shapes(self, spec: ModelSpec | DetectorSpec) -> list[tuple[int, ...]]:
        """List the smallest shape of the input, the one to be fast at, and the largest."""
        batches = self.min, self.opt, self.max
        return [
            tuple(side if isinstance(size, str) else size for size in spec.input_shape(batch))
            for batch, side in zip(batches, self.sides, strict=True)
        ]


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for; all of it is part of the cache's key.

    Attributes:
        profiles: batch sizes. The first is for single pictures, the second for throughput.
        compute_capabilities: of the GPUs to build for ahead of time, such as `8.6`; TensorRT-RTX only.
        optimization_level: 0 to 5, how long TensorRT looks for faster kernels.
        workspace: bytes of device memory that a kernel may use beside its tensors; 0 leaves it to TensorRT.
    """

    profiles: tuple[Profile, ...] = (Profile(1, 1, 1), Profile(1, 32, 64))
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace: int = 0

    def __post_init__(self) -> None:
        # TensorRT silently takes a level of 9 for 5.
        if not 0 <= self.optimization_level <= 5 or self.workspace < 0:
            raise BuildError(
                f"optimization level {self.optimization_level}, workspace {self.workspace}; expected 0 to 5, and "
                "bytes from 0"
            )

    @property
    def max_batch(self) -> int:
        """The largest batch of all profiles."""
        return max(profile.max for profile in self.profiles)

    @classmethod
    def for_batch(cls, max_batch: int, **others: Any) -> "BuildOptions":
        """Make options with a profile for single pictures, and one up to `max_batch`, fastest at half of it.

        Args:
            max_batch: the largest batch.
            others: attributes by name.
        """
        throughput = (Profile(1, max(1, max_batch // 2), max_batch),) if max_batch > 1 else ()
        return cls((Profile(1, 1, 1), *throughput), **others)
