"""The way of a picture to its embedding: as to an answer, up to what the network's last layer takes."""

from collections.abc import Iterable, Sequence
from typing import cast

from ..backend.protocol import Backend
from ..errors import BackendError, Kind, SourceError
from ..image.preprocess import preprocess_rows
from ..image.source import is_on_device
from ..model.spec import ModelSpec
from ..options import Limits
from ..types import Channels, DecodedImage, Source
from .batch import Batch, Content, Task
from .stages import Preparer, Stages


class FeatureStages(Stages):
    """The stages of pictures whose result is an `Embedding`. Thread-safe.

    Pictures are preprocessed on the CPU also where the network runs on a GPU: its kernels publish answers alone.
    """

    def __init__(
        self, spec: ModelSpec, limits: Limits, backend: Backend, *, min_side: int, workers: Preparer | None
    ) -> None:
        """Set them up; the arguments are those of `Stages`."""
        super().__init__(spec, limits, backend, min_side=min_side, workers=workers)
        self.device = None

    def prepare(self, tasks: Iterable[Task], batch: Batch) -> None:
        begin = len(batch.tasks)
        super().prepare(tasks, batch)
        if batch.images:  # of workers, which leave preprocessing to a GPU
            rows = slice(begin, begin + len(batch.images))
            images = cast(Sequence[DecodedImage], batch.images)
            preprocess_rows(images, self.spec.input, batch.inputs[rows], batch.flat[rows])
            batch.images, batch.image_bytes = [], 0

    def _get_content(self, source: Source, channels: Channels, copy: bool) -> Content:
        if is_on_device(source):
            raise SourceError(
                Kind.UNSUPPORTED,
                "the picture lies in a GPU's memory, and embeddings are of pictures in the host's: copy it there",
            )
        return super()._get_content(source, channels, copy)

    def _run_network(self, batch: Batch, backend: Backend) -> None:
        """Run the network on a batch, and give each task its row; raises BackendError where there is none."""
        count = len(batch.tasks)
        outputs = backend.run(batch.inputs[:count])
        if outputs.features is None:
            raise BackendError(
                f"{backend.name} gives no features, although the model file has them: load the model with another "
                "backend, such as onnxruntime"
            )
        batch.probabilities[:count] = outputs.probabilities  # what is not finite there is not finite here
        for task, row in zip(batch.tasks, outputs.features, strict=True):
            task.result = row.copy()  # or one that is kept would keep those of the whole batch
