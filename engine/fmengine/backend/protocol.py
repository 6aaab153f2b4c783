"""What runs a network: the four methods of every backend, and what one on a GPU has besides."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..model.file import ModelFile
from ..model.spec import ModelSpec, Precision
from ..options import BackendOptions
from ..types import AnyImage, Channels, DeviceImage, ImageOutputs, InputBatch, Outputs


class Backend(Protocol):
    """A network on some hardware, without preprocessing. `run` may be called from several threads at once."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]  # that it can run, best first

    @classmethod
    def open(cls, model: ModelFile, options: BackendOptions) -> Self:
        """Load the network. Raises UnavailableError if this machine lacks something that it needs."""
        ...

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run uint8 `[N, C, H, W]`, any N from 1."""
        ...

    def describe(self) -> dict[str, str]:
        """Return library, version, device and settings, for people and reports."""
        ...

    def close(self) -> None:
        """Release everything; `run` is an error afterwards."""
        ...


class StageTimes(NamedTuple):
    """What a batch took on a GPU, in milliseconds between events of its stream."""

    upload: float
    preprocess: float
    network: float
    download: float


class HostTimes(NamedTuple):
    """What a batch took on the host of a GPU, in milliseconds by its own clock.

    Attributes:
        stage: pixels into pinned memory, and their description.
        launch: calls into the driver.
        wait: until the answers were there, and copied.
    """

    stage: float
    launch: float
    wait: float


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend on a GPU, which preprocesses there too: it takes decoded images of any sizes."""

    @property
    def spec(self) -> ModelSpec:
        """The model file's specification."""
        ...

    @property
    def device_index(self) -> int:
        """Index of the GPU."""
        ...

    @property
    def pci_bus_id(self) -> str:
        """Address of the GPU, such as `0000:01:00.0`."""
        ...

    @property
    def streams(self) -> int:
        """Batches that are in flight at once, for as many threads."""
        ...

    def admit(self, source: object, channels: Channels) -> DeviceImage:
        """Import an image that is in the GPU's memory. Raises SourceError for one that it cannot read there."""
        ...

    def decode_jpeg(self, data: bytes) -> DeviceImage | None:
        """Decode a plain JPEG on the GPU; None where that is not switched on, or not possible."""
        ...

    def register_memory(self, memory: npt.NDArray[np.uint8]) -> Callable[[], None]:
        """Have the GPU read memory by itself, where the system lets it, until what is returned is called.

        Args:
            memory: whose `PackedImages` are given to `run_pictures`; nothing may write to them meanwhile.
        """
        ...

    def run_pictures(self, pictures: Sequence[AnyImage] | npt.NDArray[np.uint8]) -> ImageOutputs:
        """Preprocess images and run the network. Raises SourceError if there is no room for one of them alone.

        Args:
            pictures: of any sizes; or of one size as one array, uint8 `[N, H, W]` or `[N, H, W, C]`.
        """
        ...

    def time_stages(self, batch: InputBatch | Sequence[AnyImage]) -> tuple[Outputs | ImageOutputs, StageTimes]:
        """Run a batch of `max_batch` or fewer, and measure what each stage took on the GPU."""
        ...

    def time_host(self, batch: InputBatch | Sequence[AnyImage]) -> HostTimes:
        """Run a batch of `max_batch` or fewer as always, and measure what each part took on the host."""
        ...


def describe_threads(threads: int, streams: int) -> str:
    """Describe, for `Backend.describe`, the threads of a batch, and the batches in flight if several."""
    return f"{threads}" if streams == 1 else f"{threads} each for {streams} batches"
