"""Find the faces of photographs, one or many: the detector of an engine, beside its classifier."""

import threading
from collections.abc import Callable
from typing import cast

from ..backend.protocol import Backend
from ..backend.registry import CPU_BACKENDS, load_backend_class
from ..errors import BackendError
from ..model.detector import DetectorFile, load_detector_file
from ..model.spec import ModelSpec
from ..options import BackendOptions, FaceOptions, Limits
from ..pipeline.batch import Batch
from ..pipeline.executor import WINDOW, Executor
from ..pipeline.stages import Observe, make_error
from ..types import Channels, Failure, Scene, Source
from .scenes import SceneExecutor, SceneStages


class FaceFinder:
    """The detector runs on the CPU, one core a photograph where there are many. Thread-safe.

    Args:
        spec: of the classifier.
        limits: of what a picture may cost.
        backend: runs the classifier.
        open_for_many: opens the backend that classifies for several photographs at once.
        unsure_below: as of `Stages`.
        threads: that compute.
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
    ) -> None:
        self._spec, self._limits, self._backend, self._open_for_many = spec, limits, backend, open_for_many
        self._unsure_below, self._threads = unsure_below, threads
        self._file: DetectorFile = load_detector_file()
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
            detector_spec=self._file.spec,
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
        """Open the detector in the classifier's library, or in another for CPUs where that one is a GPU's."""
        with self._lock:
            if at_once not in self._detectors:
                # Between its layers and frames, decoders and the classifier need the cores.
                settings = BackendOptions(threads=self._threads, streams=at_once, spinning=False)
                own = self._backend.name
                names = dict.fromkeys((*((own,) if own in CPU_BACKENDS else ()), *CPU_BACKENDS))
                errors: list[BackendError] = []
                for name in names:
                    try:
                        kind = load_backend_class(name)
                        self._detectors[at_once] = kind.open(self._file, settings)  # type: ignore[arg-type]
                        break
                    except BackendError as error:
                        errors.append(error)
                else:
                    raise errors[0]
            return self._detectors[at_once]
