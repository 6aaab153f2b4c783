"""The engine: pictures in, labels with calibrated confidences out."""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from .backend.protocol import Backend, DeviceBackend
from .backend.registry import Attempt, open_backend
from .errors import ClosedError, DeadlineError, ModelError, UnavailableError
from .image.arrays import check_channels
from .image.faults import as_source_error
from .image.source import is_encoded, is_file_like, is_on_device, with_source
from .model.file import ModelFile
from .options import BackendOptions, EngineOptions, FaceOptions, Hint, Isolation, Limits, VideoOptions
from .pipeline.coalesce import Coalescer
from .pipeline.executor import FEEDS, WINDOW, Executor, Feed, InlineExecutor, ThreadExecutor
from .pipeline.features import FeatureStages
from .pipeline.stack import run_stack
from .pipeline.stages import Observe, Stages, make_error
from .pipeline.worker_count import choose_worker_count, find_long_job
from .system import fork
from .system.cores import usable_cores
from .types import Channels, Embedding, Failure, NetworkInput, Outputs, Prediction, Result, Scene, Source

if TYPE_CHECKING:
    from .detect.finder import FaceFinder
    from .media.watch import Watch
    from .pipeline.workers import Workers

SCALED = 2  # sides of the network's input that a JPEG keeps at least where it is decoded smaller

OpenAgain = Callable[[int], Backend]  # for so many batches at once


class Engine:
    """A loaded model on one backend. Thread-safe, without global state; make it with `Engine.load`.

    Attributes:
        spec: what the model file says of itself.
        model_file: that was read, once.
        backend: the bare network, `backend.run(uint8[N, C, H, W])`.
        attempts: the backends that were tried, and why each but the last was not taken.
    """

    def __init__(
        self,
        backend: Backend,
        model: ModelFile,
        options: EngineOptions,
        *,
        attempts: Sequence[Attempt] = (),
        open_again: OpenAgain | None = None,
    ) -> None:
        """Use an open backend; `open_again` opens it once more, for several batches at once, when needed."""
        spec, device = model.spec, backend if isinstance(backend, DeviceBackend) else None
        self.backend, self.spec, self.attempts = backend, spec, tuple(attempts)
        self.model_file, self.model_path = model, model.path
        self.limits, self.max_batch = options.limits, options.max_batch
        recommended = options.unsure_below == "recommended"
        self.unsure_below = spec.unsure_below if recommended else float(options.unsure_below)
        self._options, self._device = options, device
        self._lock = threading.Lock()
        self._threads = usable_cores() if device else options.threads or usable_cores()
        self._worker_count = choose_worker_count(
            options.workers, self._threads, isolated=options.isolate is not None
        )
        self._long_job = find_long_job(self._threads)
        self._workers: Workers | None = None
        min_side = SCALED * max(spec.height, spec.width) if options.scaled_jpeg else 0
        self._set_up = partial(_set_up_workers, backend, model, options, min_side)
        must_delegate = self._get_workers() if options.isolate is not None else None
        self._stages = Stages(
            spec,
            options.limits,
            backend,
            min_side=min_side,
            unsure_below=self.unsure_below,
            workers=must_delegate,
        )
        self._feature_stages = FeatureStages(
            spec, options.limits, backend, min_side=min_side, workers=must_delegate
        )
        self._open_again = open_again
        self._backend_of_many: Backend | None = None
        self._coalescer: Coalescer | None = None
        self._finder: FaceFinder | None = None
        self._executors: weakref.WeakSet[Executor] = weakref.WeakSet()
        self._closed = False
        fork.register(self)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        backend: str = "auto",
        *,
        device: int = 0,
        max_batch: int = 64,
        threads: int = 0,
        workers: int | Literal["auto", "threads"] = "auto",
        limits: Limits | None = None,
        isolate: Isolation | None = None,
        unsure_below: float | Literal["recommended"] = 0.0,
        queue_delay: float = 0.002,
        queue_size: int = 256,
        jpeg: Literal["cpu", "gpu"] = "cpu",
        scaled_jpeg: bool = False,
        hint: Hint = "throughput",
        allow_untrusted_engine: bool = False,
    ) -> Self:
        """Load a model and warm it up.

        Args:
            model: path of a model file, name of a shipped model, or None for the default one. An engine file,
                `x.engine`, names its backend, and its own largest batch holds where `max_batch` is larger.
            backend: a backend's name, or `auto` for the first that works on this machine. A backend
                asked for by name works, or it is an error.
            device: index of the GPU.
            max_batch: the largest batch of pictures that the network is given at once.
            threads: that compute on a CPU, a single picture together, the batches of `predict_many` one each;
                0 for all cores.
            workers: processes that answer for the paths and encoded pictures of `predict_many`, on a GPU that
                decode them: a number, `auto` for one a core where a job turns out long and this machine can, or
                `threads` for none.
            limits: what a picture may cost before it is refused.
            isolate: read and decode paths and encoded pictures in worker processes with limits of their own, so
                that a decoder that crashes, hangs or takes all memory costs one picture. Arrays and PIL images
                are not concerned.
            unsure_below: the label is `unsure` where the confidence is less, or where the picture is flat;
                `recommended` takes the threshold that the model file names. With 0 the label is always the
                network's, and `Prediction.reason` alone informs of such pictures.
            queue_delay: seconds that `apredict` waits at most for other pictures to share a batch with.
            queue_size: pictures that `apredict` has in flight at most.
            jpeg: where JPEG files are decoded. A GPU's pixels may differ from the CPU's by some levels.
            scaled_jpeg: decode large JPEG files smaller by a factor of 2 to 8, never to less than twice the
                network's input: photographs take half the time, and pixels differ by some levels.
            hint: what backend `auto` is to be fast for, `throughput` of many pictures or `latency` of one alone: a
                GPU is taken where it measures faster for that than the CPU.
            allow_untrusted_engine: run an engine file also where somebody else could have written it: another user
                owns it or its folder, others may write them, or one is a symbolic link. An engine is executable
                code and runs with all your rights.

        Raises:
            ModelError: for a model file that cannot be used.
            UnavailableError: if this machine lacks what was asked for.
            ValueError: for a setting that cannot be.
        """
        options = EngineOptions(
            device=device,
            max_batch=max_batch,
            threads=threads,
            workers=workers,
            limits=limits or Limits(),
            isolate=isolate,
            unsure_below=unsure_below,
            queue_delay=queue_delay,
            queue_size=queue_size,
            jpeg=jpeg,
            scaled_jpeg=scaled_jpeg,
            hint=hint,
        )
        threads = threads or usable_cores()
        settings = BackendOptions(
            device=device,
            max_batch=max_batch,
            threads=threads,
            jpeg=jpeg,
            allow_untrusted_engine=allow_untrusted_engine,
        )
        opened, file, attempts = open_backend(backend, None if model is None else str(model), settings, hint)
        if file.engine is not None:
            options = replace(options, max_batch=min(max_batch, file.engine.max_batch))
        if isinstance(opened, DeviceBackend):
            return cls(opened, file, options, attempts=attempts)
        if jpeg == "gpu":
            opened.close()
            raise UnavailableError(
                f"{opened.name} decodes no JPEG on a GPU: leave jpeg at 'cpu', or see fmengine doctor"
            )

        def open_again(streams: int) -> Backend:
            return type(opened).open(file, replace(settings, streams=streams))

        return cls(opened, file, options, attempts=attempts, open_again=open_again)

    def predict(self, source: Source, *, channels: Channels = "rgb") -> Prediction:
        """Answer for one picture.

        Args:
            source: a path, an encoded picture, a file open for reading bytes, a uint8 array (`[H, W]`, or
                `[H, W, C]` in RGB order), a PIL image, or an array in device memory.
            channels: `bgr` for arrays in BGR order, as cameras read with OpenCV give them.

        Raises:
            SourceError: if the picture cannot be read, with the kind of what went wrong.
            ValueError: for other `channels`.
            DeviceError: if a GPU fails, or has no room.
            ClosedError: after `close`.
        """
        check_channels(channels)
        return cast(Prediction, self._answer(self._stages, source, channels))

    async def apredict(
        self, source: Source, *, channels: Channels = "rgb", timeout: float | None = None
    ) -> Prediction:
        """Answer for one picture without blocking the event loop; callers share batches.

        Args:
            source: as for `predict`.
            channels: as for `predict`.
            timeout: seconds until the answer is of no use any more; a picture whose time is up is not worked on.

        Raises:
            SourceError: as for `predict`, and what else it raises.
            BusyError: at once, if `queue_size` pictures are in flight.
            DeadlineError: if the time is up.
        """
        check_channels(channels)
        import asyncio  # a fifth of what `import fmengine` takes, and its callers have it

        if timeout is not None and timeout <= 0:
            raise DeadlineError(f"a timeout of {timeout} s leaves no time; expected more than 0")
        inline = self._device is not None and is_on_device(source)
        future = asyncio.wrap_future(self._start_coalescer().submit(source, channels, inline=inline))
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise DeadlineError(
                f"no answer within {timeout} s; give it more, or ask for less at once: a smaller queue_size"
            ) from None

    def predict_batch(self, images: npt.NDArray[np.uint8], *, channels: Channels = "rgb") -> Outputs:
        """Answer for an array of images of one size with arrays: the fastest way in for pixels.

        The labels of the columns are `spec.labels`; nothing is said of flat or unsure pictures.

        Args:
            images: uint8 `[N, H, W]`, or `[N, H, W, C]` with C of 1, 3 or 4, any N from 1.
            channels: as for `predict`.

        Returns:
            Logits and probabilities, float32 `[N, K]`, those of `predict` for each image.

        Raises:
            SourceError: for an array that is none of images.
            ValueError: for other `channels`.
            DeviceError: if a GPU fails, or has no room.
            ClosedError: after `close`.
        """
        check_channels(channels)
        self._check_open()
        return run_stack(self.backend, self.spec.input, np.asarray(images), self.limits, channels, self.max_batch)

    def predict_many(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        channels: Channels = "rgb",
        feed: Feed = "auto",
    ) -> Iterator[Result]:
        """Answer for any number of pictures, in order, in constant memory.

        Threads decode some pictures while the network runs on others. A picture that cannot be read gives a
        `Failure` in its place; nothing else is lost. Where `sources` itself raises, what came before it is
        answered first. A source may change as soon as the next one is asked for, but for what is in device memory.

        Args:
            sources: as for `predict`; may be endless. A list or tuple is read ahead in this thread; anything else
                is advanced by a thread of its own, so that no answer waits for a source that does not come.
            batch_size: pictures a run of the network, at most `max_batch`, which is the default.
            in_flight: pictures in flight at most: read, and not answered yet. By default as many as keep every
                thread busy, some batches each.
            channels: as for `predict`.
            feed: `caller` advances the sources in this thread whatever they are; answers may wait for them then.

        Raises:
            TypeError: for one picture in place of many.
            ValueError: for a `batch_size`, `in_flight`, `channels` or `feed` that cannot be.
        """
        chunks = self.predict_chunks(
            sources, batch_size=batch_size, in_flight=in_flight, channels=channels, feed=feed
        )
        return (result for chunk in chunks for result in chunk)

    def predict_chunks(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        channels: Channels = "rgb",
        feed: Feed = "auto",
    ) -> Iterator[Sequence[Result]]:
        """As `predict_many`, in sequences of those answers that are known: to store many at once costs less.

        A sequence never waits for more answers than its first.
        """
        size = self._check_many(sources, batch_size, in_flight, channels, feed)
        return self._make_executor(sources, size, in_flight).map(sources, channels, feed)

    def embed(self, source: Source, *, channels: Channels = "rgb") -> Embedding:
        """Describe one picture by the model's features: what its last layer takes, before any label.

        Pictures that look alike to the model have embeddings of a cosine near 1. They are the same bits in any
        batch of one model file on one backend, and comparable with no other model's.

        Args:
            source: as for `predict`, but in the host's memory.
            channels: as for `predict`.

        Returns:
            float32 `[spec.features]`, 0 or more.

        Raises:
            ModelError: for a model file without features.
            SourceError: as for `predict`, and what else it raises.
        """
        check_channels(channels)
        self._check_features()
        return cast(Embedding, self._answer(self._feature_stages, source, channels))

    def embed_many(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        channels: Channels = "rgb",
        feed: Feed = "auto",
    ) -> Iterator[Embedding | Failure]:
        """Give the embeddings of any number of pictures, in order, in constant memory, by threads.

        The contract, and the arguments, are those of `predict_many`: a picture that cannot be read gives a
        `Failure` in its place.

        Raises:
            ModelError: for a model file without features.
            TypeError: for one picture in place of many.
            ValueError: for a `batch_size`, `in_flight`, `channels` or `feed` that cannot be.
        """
        self._check_features()
        size = self._check_many(sources, batch_size, in_flight, channels, feed)
        executor = self._make_threads(self._feature_stages, sources, size, in_flight)
        results = executor.map(sources, channels, feed)
        return (cast("Embedding | Failure", result) for chunk in results for result in chunk)

    def find_faces(
        self,
        source: Source,
        *,
        channels: Channels = "rgb",
        min_score: float = 0.6,
        min_size: float = 0.0,
        max_faces: int | None = None,
        search_size: int | None = None,
    ) -> Scene:
        """Find the faces of a photograph, and answer for each of them.

        A face is cut out of what `predict` would read of the same source, a JPEG's luma plane at full size for a
        gray model; the detector sees colours.

        Args:
            source: as for `predict`, but for device memory.
            channels: as for `predict`.
            min_score: of the detector, from 0 to 1.
            min_size: pixels of the picture that a face's box is wide and high at least.
            max_faces: those of the highest scores; None for all.
            search_size: pixels of the long side that the picture is searched at; None for 160 where it has fewer
                than 300, and is a face itself, else 640. What is smaller than 16 of these pixels is often not
                found; twice the size takes four times as long.

        Returns:
            The faces, the highest score first; none is no error.

        Raises:
            SourceError: as for `predict`, and what else it raises.
            ValueError: for a setting that cannot be.
        """
        check_channels(channels)
        options = FaceOptions(min_score, min_size, max_faces, search_size)
        self._check_open()
        return self._get_finder().find(source, channels, options)

    def predict_scenes(
        self,
        sources: Iterable[Source],
        *,
        in_flight: int | None = None,
        channels: Channels = "rgb",
        feed: Feed = "auto",
        min_score: float = 0.6,
        min_size: float = 0.0,
        max_faces: int | None = None,
        search_size: int | None = None,
    ) -> Iterator[Scene | Failure]:
        """Find the faces of any number of photographs, in order, in constant memory, one on each core.

        The contract is that of `predict_many`: a picture that cannot be read gives a `Failure` in its place.

        Args:
            sources: as for `find_faces`; may be endless.
            in_flight: photographs in flight at most: read, and not answered yet.
            channels: as for `predict`.
            feed: as for `predict_many`.
            min_score: as for `find_faces`, as what follows.
            min_size: as for `find_faces`.
            max_faces: as for `find_faces`.
            search_size: as for `find_faces`.

        Raises:
            TypeError: for one picture in place of many.
            ValueError: for a setting that cannot be.
        """
        check_channels(channels)
        options = FaceOptions(min_score, min_size, max_faces, search_size)
        _check_job(sources, in_flight, feed)
        self._check_open()
        pictures = len(sources) if isinstance(sources, list | tuple) else None
        executor = self._get_finder().make_executor(options, in_flight, pictures)
        self._executors.add(executor)
        results = executor.map(sources, channels, feed)
        return (cast("Scene | Failure", result) for chunk in results for result in chunk)

    def watch(
        self,
        source: str | os.PathLike[str],
        *,
        every: float = 0.0,
        min_score: float = 0.6,
        min_size: float = 0.0,
        max_faces: int | None = None,
        search_size: int | None = None,
        timeout: float | tuple[float, float] = 10.0,
        reconnect: int = 5,
        live: bool | None = None,
    ) -> "Watch":
        """Find the faces of a video, a stream or a camera, follow each, and answer for it, frame by frame.

        No frame of a file is lost. A live source does not wait: of the frames that come while one is worked on,
        the newest is taken and the others are counted in `Watch.dropped`. Damaged frames are left out, and counted
        too.

        Args:
            source: path of a file, URL (`rtsp://…`, `http://…`), camera (`/dev/video0`), or `lavfi:` and a graph
                of FFmpeg's filters.
            every: seconds from one frame that is looked at to the next; 0 for all frames.
            min_score: of the detector, from 0 to 1; half of it is enough for a face that is followed already.
            min_size: as for `find_faces`, as what follows.
            max_faces: as for `find_faces`.
            search_size: as for `find_faces`.
            timeout: seconds that a server may be mute; or two, to open and to read.
            reconnect: tries in a row, with growing pauses, to open a camera or a stream again that is lost.
            live: whether frames come by themselves; None to go by the source.

        Returns:
            An iterator of frames, which is a context manager too, and counts what it gives, drops and follows.

        Raises:
            SourceError: at once if the source cannot be opened; from the iterator, after the last good frame, if
                it breaks off.
            UnavailableError: if PyAV is missing.
            ValueError: for a setting that cannot be.
        """
        from .media.watch import Watch  # what it takes, pictures do not need

        faces = FaceOptions(min_score, min_size, max_faces, search_size)
        video = VideoOptions(every, timeout, reconnect, live)
        self._check_open()
        return Watch(source, self._get_finder().make_stages, faces, video, self.limits.max_pixels)

    def start_workers(self) -> None:
        """Start the worker processes now, in the background, and not first when a job turns out long.

        Nothing happens where threads do their work; `doctor` says why.
        """
        self._check_open()
        if self._worker_count.number and self._options.jpeg == "cpu":
            self._get_workers().start()

    def list_processes(self) -> list[int]:
        """List the process IDs of the workers that run, and of the server that forks them, which comes first."""
        return [] if self._workers is None else self._workers.list_processes()

    def preprocess(self, source: Source, *, channels: Channels = "rgb") -> NetworkInput:
        """Decode and preprocess one picture to the network's input, uint8 `[C, H, W]`.

        Raises:
            SourceError: as for `predict`.
            ValueError: as for `predict`.
        """
        check_channels(channels)
        try:
            return self._stages.preprocess(source, channels)
        except Exception as error:
            raise with_source(as_source_error(error), source) from error

    prepare = preprocess

    @contextmanager
    def observe(self, observer: Observe) -> Iterator[None]:
        """Call `observer(stage, begin, end)` after each stage of each picture or batch, as long as it is open.

        Stages are `read`, `decode`, `preprocess`, `infer` and `post`; times are seconds of `time.perf_counter`. It
        is called in whichever thread ran the stage, by one observer at a time.
        """
        for stages in (self._stages, self._feature_stages):
            stages.observe(observer)
        try:
            yield
        finally:
            for stages in (self._stages, self._feature_stages):
                stages.observe(None)

    def close(self) -> None:
        """Give the backend's resources back. Closing twice is no error."""
        with self._lock:
            coalescer = self._coalescer
        if coalescer is not None:
            coalescer.close()  # what is in flight is answered, and needs the backend
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        for executor in list(self._executors):
            executor.close()
        self.backend.close()
        if self._workers is not None:
            self._workers.close()
        if self._backend_of_many is not None:
            self._backend_of_many.close()
        if self._finder is not None:
            self._finder.close()

    def reset_after_fork(self) -> None:
        """Begin anew in a forked child, with threads of its own; a GPU says that it does not survive it."""
        self._lock, self._coalescer, self._executors = threading.Lock(), None, weakref.WeakSet()
        self._finder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)  # which waits for what is in flight

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"Engine({self.spec.name}.{self.spec.precision} on {self.backend.name}{state})"

    def _answer(self, stages: Stages, source: Source, channels: Channels) -> Prediction | Embedding:
        """Answer for one picture in this thread: all threads of the network work on it together."""
        self._check_open()
        task = stages.admit(source, channels, copy=False)
        stages.run_alone(task, self.backend)
        if isinstance(task.result, BaseException):
            raise task.result
        if isinstance(task.result, Failure):
            raise make_error(task.result)
        return cast("Prediction | Embedding", task.result)

    def _make_executor(self, sources: Iterable[Source], batch_size: int, in_flight: int | None) -> Executor:
        """Choose the body that suits a job."""
        workers, threads = self._choose_workers(sources), self._count_threads(sources)
        if workers is None or (workers is self._stages.workers and _is_for_one(sources, threads)):
            return self._make_threads(self._stages, sources, batch_size, in_flight)
        from .pipeline.process_executor import ProcessExecutor  # needs Linux

        pictures = len(sources) if isinstance(sources, list | tuple) else 0
        at_once = self._options.workers != "auto" or pictures >= self._long_job or workers.started
        executor = ProcessExecutor(
            self._stages,
            # Threads compute for a moment only: to open the network once more would take as long.
            self._backend_of_many or self.backend if at_once else self._open_for_many(),
            threads=threads,
            batch_size=batch_size,
            max_in_flight=in_flight or 2 * WINDOW * batch_size * max(threads, workers.count),
            workers=workers,
            start_after=0 if at_once else self._long_job // 2,
        )
        self._executors.add(executor)
        return executor

    def _make_threads(
        self, stages: Stages, sources: Iterable[Source], batch_size: int, in_flight: int | None
    ) -> Executor:
        """Make what answers in this process."""
        threads = self._count_threads(sources)
        executor: Executor
        if _is_for_one(sources, threads):
            size = in_flight or batch_size
            executor = InlineExecutor(stages, self.backend, batch_size=batch_size, max_in_flight=size)
        else:
            executor = ThreadExecutor(
                stages,
                self._open_for_many(),
                threads=threads,
                batch_size=batch_size,
                max_in_flight=in_flight or WINDOW * batch_size * threads,
            )
        self._executors.add(executor)
        return executor

    def _count_threads(self, sources: Iterable[Source]) -> int:
        """Count the threads that a job can keep busy."""
        threads = self._threads + (self._device.streams if self._device else 0)
        return min(threads, len(sources)) if isinstance(sources, list | tuple) else threads

    def _choose_workers(self, sources: Iterable[Source]) -> "Workers | None":
        """Return the workers for a job; None for one that is short, or has nothing to decode."""
        if self._worker_count.number == 0 or self._options.jpeg == "gpu":
            return None
        if isinstance(sources, list | tuple):
            # What the first is they all are, nearly always: threads do what workers cannot.
            if not sources or not is_encoded(sources[0]):
                return None
            if len(sources) < self._long_job and self._options.workers == "auto" and self._stages.workers is None:
                return None
        return self._get_workers()

    def _get_workers(self) -> "Workers":
        """Set the workers up, which start when they are first needed."""
        with self._lock:
            if self._workers is None:
                self._workers = self._set_up(self._worker_count.number)
            return self._workers

    def _open_for_many(self) -> Backend:
        """Open the backend that runs several batches at once, each on its share of the cores."""
        if self._open_again is None:
            return self.backend
        with self._lock:
            self._check_open()
            if self._backend_of_many is None:
                self._backend_of_many = self._open_again(self._threads)
            return self._backend_of_many

    def _get_finder(self) -> "FaceFinder":
        """Make what finds faces, when it is first needed."""
        from .detect.finder import FaceFinder  # what it takes, pictures of faces alone do not need

        with self._lock:
            if self._finder is None:
                self._finder = FaceFinder(
                    self.spec,
                    self.limits,
                    self.backend,
                    self._open_for_many,
                    unsure_below=self.unsure_below,
                    threads=self._threads,
                    device=self._options.device,
                )
            self._finder.observer = self._stages.observer
            return self._finder

    def _start_coalescer(self) -> Coalescer:
        """Make the coalescer, whose threads start when it is first needed."""
        with self._lock:
            self._check_open()
            if self._coalescer is None:
                self._coalescer = Coalescer(
                    self._stages,
                    self.backend,
                    max_batch=self.max_batch,
                    threads=self._threads,
                    delay=self._options.queue_delay,
                    size=self._options.queue_size,
                )
            return self._coalescer

    def _check_many(
        self,
        sources: Iterable[Source],
        batch_size: int | None,
        in_flight: int | None,
        channels: Channels,
        feed: Feed,
    ) -> int:
        """Check what a job of many pictures is given, and return the size of its batches."""
        check_channels(channels)
        size = self.max_batch if batch_size is None else batch_size
        if not 1 <= size <= self.max_batch:
            raise ValueError(f"batch_size {size}; expected 1 to max_batch, {self.max_batch}")
        _check_job(sources, in_flight, feed)
        self._check_open()
        return min(size, in_flight or size)

    def _check_features(self) -> None:
        if not self.spec.features:
            raise ModelError(
                f"{self.model_path} gives no features for embeddings: an older fmengine exported it. "
                "Export it again, or add them with `python -m fmengine_export.features IN.onnx OUT.onnx`"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError


def _set_up_workers(
    backend: Backend, model: ModelFile, options: EngineOptions, min_side: int, count: int
) -> "Workers":
    # What starts processes takes time to import, and needs Linux.
    from .pipeline.worker_setup import set_up_answers, set_up_images
    from .pipeline.workers import Workers

    limits, isolation = options.limits, options.isolate
    if isinstance(backend, DeviceBackend):
        setup = set_up_images(model.spec, limits, isolation, min_side=min_side, register=backend.register_memory)
    else:
        setup = set_up_answers(
            backend.name, model, limits, isolation, min_side=min_side, max_batch=options.max_batch
        )
    return Workers(setup, count)


def _is_for_one(sources: Iterable[Source], threads: int) -> bool:
    """Return whether one thread does a job best: of one picture, all threads of the network compute together."""
    return threads <= 1 or (isinstance(sources, list | tuple) and len(sources) <= 1)


def _check_job(sources: object, in_flight: int | None, feed: Feed) -> None:
    if in_flight is not None and in_flight < 1:
        raise ValueError(f"in_flight {in_flight}; expected 1 or more")
    if feed not in FEEDS:
        raise ValueError(f"feed {feed!r}; expected 'auto' or 'caller'")
    _check_many(sources)


def _check_many(sources: object) -> None:
    """Refuse one picture: text and arrays can be iterated too, and each letter or row would be a picture."""
    one = is_encoded(sources) or isinstance(sources, np.ndarray | Image.Image) or is_file_like(sources)
    if one or hasattr(sources, "__dlpack_device__") or hasattr(sources, "__cuda_array_interface__"):
        raise TypeError(
            f"sources is one {type(sources).__name__}; expected an iterable of pictures, such as a list of them, "
            "or `predict` for one alone"
        )
    if not isinstance(sources, Iterable) and not hasattr(sources, "__getitem__"):
        raise TypeError(f"sources is a {type(sources).__name__}; expected an iterable of pictures")
