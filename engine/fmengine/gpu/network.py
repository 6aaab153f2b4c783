"""The protocols of what a runner runs: a network that is loaded onto the GPU, and its executions on streams."""

from typing import Any, Protocol

from ..trt.profile import Profile


class Execution(Protocol):
    """A network on one stream, that reads and writes at fixed addresses."""

    def enqueue(self, batch: int, stream: Any) -> None:
        """Put a run over `batch` pictures into the stream. Raises DeviceError."""
        ...

    def free(self) -> None:
        """Free its memory. Nothing may be in flight."""
        ...


class LoadedNetwork(Protocol):
    """A network on the GPU.

    Attributes:
        profiles: the batch sizes that it takes; each has an execution of its own.
        capturable: whether its runs may be captured into CUDA graphs; if not, its library may make its own.
    """

    profiles: tuple[Profile, ...]
    capturable: bool

    def create_execution(self, profile: int, addresses: dict[str, int], stream: Any) -> Execution:
        """Create an execution for one stream; `addresses` of images, logits and probabilities."""
        ...

    def create_class_execution(
        self, profile: int, batch: int, addresses: dict[str, int], stream: Any
    ) -> Execution:
        """Create an execution as `create_execution` does, which runs batches of this size alone."""
        ...

    def close(self) -> None:
        """Release everything, after its executions."""
        ...
