"""Find the faces of photographs, one or many: the detector of an engine, beside its classifier."""

import logging
import threading
from collections.abc import Callable
from typing import cast

from ..backend.protocol import Backend
from ..backend.registry import CPU_BACKENDS, load_detector_class
from ..errors import BackendError
from ..model.detector import load_detector_file
from ..model.spec import ModelSpec
from ..options import BackendOptions, FaceOptions, Limits
from ..pipeline.batch import Batch
from ..pipeline.executor import WINDOW, Executor
from ..pipeline.stages import Observe, make_error
from ..types import Channels, Failure, Scene, Source
from .scenes import SceneExecutor, SceneStages

log = logging.getLogger(__name__)


class FaceFinder:
    """The detector runs where the classifier does; on a CPU with one core a photograph where there are many.

    Thread-safe.

    Args:
        spec: of the classifier.
        limits: of what a picture may cost.
        backend: runs the classifier.
        open_for_many: opens the backend that classifies for several photographs at once.
        unsure_below: as of `Stages`.
        threads: that compute.
        device: index of the GPU, where the classifier runs on one.
    """

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        backend: Backend,
        open_for_many: Callable[[], Backend],
        *,
        unsure_below: float,
        threads: int,
        device: int,
    ) -> None:
        self._spec, self._limits, self._backend, self._open_for_many = spec, limits, backend, open_for_many
        self._unsure_below, self._threads, self._device = unsure_below, threads, device
        self._lock = threading.Lock()
        self._detectors: dict[int, Backend] = {}  # by the photographs at once
        self.observer: Observe | None = None

    def find(self, source: Source, channels: Channels, options: FaceOptions) -> Scene:
        """Find the faces of one photograph. Raises SourceError, and what else `Engine.predict` raises."""
        stages = self.make_stages(options)
        task = stages.admit(source, channels, copy=False)
        stages.prepare([task], Batch.of_images())
        if isinstance(task.result, Failure):
            raise make_error(task.result)
        if isinstance(task.result, BaseException):
            raise task.result
        return cast(Scene, task.result)

    def make_executor(self, options: FaceOptions, in_flight: int | None, pictures: int | None) -> Executor:
        """Make what answers for many photographs, of a number that may be known."""
        threads = self._threads if pictures is None else max(1, min(self._threads, pictures))
        stages = self.make_stages(options, at_once=threads)
        return SceneExecutor(
            stages,
            self._backend,
            threads=threads,
            batch_size=1,
            max_in_flight=in_flight or WINDOW * 8 * threads,
        )

    def make_stages(self, options: FaceOptions, *, at_once: int = 1) -> SceneStages:
        """Make the stages of photographs, of which so many are answered at once."""
        stages = SceneStages(
            self._spec,
            self._limits,
            self._backend if at_once == 1 else self._open_for_many(),
            unsure_below=self._unsure_below,
            detector=self._open_detector(at_once),
            detector_spec=load_detector_file().spec,
            options=options,
        )
        stages.observe(self.observer)
        return stages

    def close(self) -> None:
        """Give the detectors' resources back."""
        with self._lock:
            while self._detectors:
                self._detectors.popitem()[1].close()

    def _open_detector(self, at_once: int) -> Backend:
        """Open the detector in the classifier's library; where that fails, in one for CPUs."""
        with self._lock:
            if at_once not in self._detectors:
                # Between its layers and frames, decoders and the classifier need the cores.
                settings = BackendOptions(
                    device=self._device, threads=self._threads, streams=at_once, spinning=False
                )
                errors: list[BackendError] = []
                for name in dict.fromkeys((self._backend.name, *CPU_BACKENDS)):
                    try:
                        kind = load_detector_class(name)
                        file = load_detector_file(precisions=kind.precisions)
                        self._detectors[at_once] = kind.open(file, settings)  # type: ignore[arg-type]
                        break
                    except BackendError as error:
                        log.info("%s does not find faces: %s", name, error)
                        errors.append(error)
                else:
                    raise errors[0]
                if errors and self._backend.name not in CPU_BACKENDS:
                    log.warning("faces are found on the CPU, by %s: %s", name, errors[0])
            return self._detectors[at_once]
