"""The engine: pictures in, labels with calibrated confidences out."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

import numpy as np
from PIL import Image

from .ahead import outcomes as outcomes_ahead
from .backend.registry import Attempt, Backend, DeviceBackend, Options, open_backend
from .errors import (
    CLOSED,
    DeadlineError,
    FmengineError,
    Kind,
    SourceError,
    UnavailableError,
)
from .image.decode import (
    as_source_error,
    check_channels,
    decode,
    is_encoded,
    is_plain_jpeg,
    may_be_turned,
    on_gpu,
    read_file,
)
from .image.flatness import Prepared, is_flat_input
from .image.preprocess import Pixels, preprocess_batch
from .lanes import Lanes
from .model.file import ModelFile, ModelSpec
from .options import Isolation, Limits
from .pipeline.coalesce import Batcher
from .system.cores import usable_cores
from .types import UNSURE, AnyImage, Channels, Failure, ImageOutputs, Prediction, Reason, Source

if TYPE_CHECKING:
    from .pipeline.coalesce import Item
    from .pipeline.workers import InputWorkers

SCALED = 2  # sides of the network's input that a JPEG keeps at least where it is decoded scaled
MAX_HELD = 8 * 1024 * 1024  # bytes of a decoded picture that waits for a GPU
SMALL = 256  # rows and columns at most of one that is preprocessed on the CPU together with others


class Engine:
    """A loaded model on one backend. Thread-safe, without global state; make it with `Engine.load`.

    Attributes:
        spec: what the model file says of itself.
        backend: the bare network, `backend.run(uint8[N, C, H, W])`.
        attempts: the backends that were tried, and why each but the last was not taken.
    """

    def __init__(
        self,
        backend: Backend,
        model: ModelFile,
        *,
        max_batch: int = 64,
        workers: int = 0,
        limits: Limits | None = None,
        isolate: Isolation | None = None,
        unsure_below: float = 0.0,
        queue_delay: float = 0.002,
        queue_size: int = 256,
        scaled_jpeg: bool = False,
        attempts: Iterable[Attempt] = (),
        open_for_lanes: Callable[[], Backend] | None = None,
    ) -> None:
        """Use an open backend; `open_for_lanes` opens it once more, for several batches at once, when needed."""
        self.backend = backend
        # Asked once: to see whether an object follows a protocol takes longer than to preprocess a small face.
        self._on_device = backend if isinstance(backend, DeviceBackend) else None
        self.model_path = model.path
        self.spec: ModelSpec = model.spec
        self.limits = limits or Limits()
        self.max_batch = max_batch
        self.unsure_below = unsure_below
        self._least = SCALED * max(self.spec.height, self.spec.width) if scaled_jpeg else 0
        self.attempts = tuple(attempts)
        self._workers = workers or usable_cores()
        self._isolated: InputWorkers | None = None
        if isolate is not None:
            from .pipeline import (
                workers as isolation,  # what starts processes takes time to import, and needs Linux
            )

            arguments = self.spec, self.limits, isolate
            self._isolated = isolation.InputWorkers(*arguments, least=self._least, count=self._workers)
        self._queue_delay, self._queue_size = queue_delay, queue_size
        self._batcher: Batcher | None = None
        self._open_for_lanes = open_for_lanes
        self._backend_of_lanes: Backend | None = None
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        backend: str = "auto",
        *,
        device: int = 0,
        max_batch: int = 64,
        threads: int = 0,
        workers: int = 0,
        limits: Limits | None = None,
        isolate: Isolation | None = None,
        unsure_below: float | Literal["recommended"] = 0.0,
        queue_delay: float = 0.002,
        queue_size: int = 256,
        jpeg: Literal["cpu", "gpu"] = "cpu",
        scaled_jpeg: bool = False,
    ) -> Self:
        """Load a model and warm it up.

        Args:
            model: path of a model file, name of a shipped model, or None for the default one.
            backend: a backend's name, or `auto` for the first that works on this machine. A backend
                asked for by name works, or it is an error.
            device: index of the GPU.
            max_batch: the largest batch of pictures that the network is given at once.
            threads: that compute on a CPU, a single picture together, the batches of `predict_many` one each;
                0 for all cores.
            workers: threads of `predict_many`; 0 for as many as compute, or, beside a GPU, one a core.
            limits: what a picture may cost before it is refused.
            isolate: read and decode paths and encoded pictures in worker processes with limits of their own, so
                that a decoder that crashes, hangs or takes all memory costs one picture. Arrays and PIL images
                are not concerned.
            unsure_below: the label is `unsure` where the confidence is less, or where the picture is flat;
                `recommended` takes the threshold that the model file names. With 0 the label is always the
                network's, and `Prediction.reason` alone tells of such pictures.
            queue_delay: seconds that `apredict` waits at most for other pictures to share a batch with.
            queue_size: pictures that `apredict` has under way at most.
            jpeg: where JPEG files are decoded. A GPU's pixels may differ from the CPU's by some levels.
            scaled_jpeg: decode large JPEG files smaller by a factor of 2 to 8, never to less than twice the
                network's input: photographs take half the time, and pixels differ by some levels.

        Raises:
            ModelError: for a model file that cannot be used.
            UnavailableError: if this machine lacks what was asked for.
        """
        if max_batch < 1 or threads < 0 or workers < 0:
            raise ValueError(
                f"max_batch {max_batch}, threads {threads}, workers {workers}: expected 1, 0, 0 or more"
            )
        if queue_delay < 0 or queue_size < 1:
            raise ValueError(f"queue_delay {queue_delay}, queue_size {queue_size}: expected 0, 1 or more")
        if unsure_below != "recommended" and not 0 <= unsure_below <= 1:
            raise ValueError(f"unsure_below {unsure_below}; expected a confidence from 0 to 1, or 'recommended'")
        if jpeg not in ("cpu", "gpu"):
            raise ValueError(f"jpeg {jpeg!r}; expected 'cpu' or 'gpu'")
        if jpeg == "gpu" and isolate is not None:
            raise ValueError("jpeg 'gpu' decodes in this process; isolate needs jpeg 'cpu'")
        options = Options(device=device, max_batch=max_batch, threads=threads or usable_cores(), jpeg=jpeg)
        opened, file, attempts = open_backend(backend, None if model is None else str(model), options)
        on_cpu = not isinstance(opened, DeviceBackend)
        if jpeg == "gpu" and on_cpu:
            opened.close()
            raise UnavailableError(
                f"{opened.name} decodes no JPEG on a GPU: leave jpeg at 'cpu', or see fmengine doctor"
            )
        workers = workers or (options.threads if on_cpu else 0)
        again = partial(type(opened).open, file, replace(options, streams=workers))
        return cls(
            opened,
            file,
            max_batch=max_batch,
            workers=workers,
            open_for_lanes=again if on_cpu and workers > 1 else None,
            limits=limits,
            isolate=isolate,
            unsure_below=file.spec.unsure_below if unsure_below == "recommended" else unsure_below,
            queue_delay=queue_delay,
            queue_size=queue_size,
            scaled_jpeg=scaled_jpeg,
            attempts=attempts,
        )

    def predict(self, source: Source, *, channels: Channels = "rgb") -> Prediction:
        """Answer for one picture.

        Args:
            source: a path, an encoded picture, a uint8 array (`[H, W]`, or `[H, W, C]` in RGB order) or
                a PIL image.
            channels: `bgr` for arrays in BGR order, as cameras read with OpenCV give them.

        Raises:
            SourceError: if the picture cannot be read, with the kind of what went wrong.
            ValueError: for other `channels`.
        """
        check_channels(channels)
        try:
            (answer,) = self._answer([source], [self._picture(source, channels)])
        except FmengineError:
            raise
        except Exception as error:
            raise as_source_error(error) from error
        if isinstance(answer, Failure):
            raise SourceError(answer.kind, answer.message)
        return answer

    async def apredict(
        self, source: Source, *, channels: Channels = "rgb", timeout: float | None = None
    ) -> Prediction:
        """Answer for one picture without blocking the event loop; callers share batches.

        Args:
            source: as for `predict`.
            channels: as for `predict`.
            timeout: seconds until the answer is of no use any more; a picture whose time is up is not worked on.

        Raises:
            SourceError: as for `predict`.
            BusyError: at once, if `queue_size` pictures are under way.
            DeadlineError: if the time is up.
        """
        check_channels(channels)
        import asyncio  # a fifth of what `import fmengine` takes, and its callers have it

        if timeout is not None and timeout <= 0:
            raise DeadlineError(f"a timeout of {timeout} s leaves no time; expected more than 0")
        here = self._on_device is not None and on_gpu(source)
        asked = asyncio.wrap_future(self._batches_of_callers().submit(source, channels, here))
        try:
            return await asyncio.wait_for(asked, timeout)
        except TimeoutError:
            raise DeadlineError(
                f"no answer within {timeout} s; give it more, or ask for less at once: a smaller queue_size"
            ) from None

    def predict_many(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        channels: Channels = "rgb",
    ) -> Iterator[Prediction | Failure]:
        """Answer for any number of pictures, in order, in constant memory.

        Threads decode some pictures while the network runs on others. A picture that cannot be read gives a
        `Failure` in its place; nothing else is lost. Where `sources` itself raises, what came before it is
        answered first.

        Args:
            sources: as for `predict`; may be endless.
            batch_size: pictures a run of the network, at most `max_batch`, which is the default.
            in_flight: pictures under way at most: read, and not answered yet. By default as many as keep every
                thread busy, some batches each.
            channels: as for `predict`.

        Raises:
            TypeError: for one picture in place of many.
        """
        chunks = self.predict_chunks(sources, batch_size=batch_size, in_flight=in_flight, channels=channels)
        return (outcome for chunk in chunks for outcome in chunk)

    def predict_chunks(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        channels: Channels = "rgb",
    ) -> Iterator[list[Prediction | Failure]]:
        """As `predict_many`, in lists of those answers that are known: to store many at once costs less.

        A list never waits for more answers than its first.
        """
        check_channels(channels)
        size = self.max_batch if batch_size is None else batch_size
        if not 1 <= size <= self.max_batch:
            raise ValueError(f"batch_size {size}; expected 1 to max_batch, {self.max_batch}")
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"in_flight {in_flight}; expected 1 or more")
        _check_many(sources)
        size = min(size, in_flight or size)
        self._check_open()
        ended: list[Exception] = []
        until_error = _until_error(sources, ended)
        if self._on_device is None:
            return _then_raise(self._through_lanes(until_error, size, in_flight, channels), ended)
        ahead = outcomes_ahead(
            until_error,
            partial(self._picture_or_fail, channels=channels),
            self._answer_or_fail,
            workers=self._workers,
            lanes=self._on_device.streams,
            size=size,
            in_flight=in_flight,
        )
        return _then_raise(ahead, ended)

    def prepare(self, source: Source, *, channels: Channels = "rgb") -> Pixels:
        """Decode and preprocess one picture to the network's input, uint8 `[C, H, W]`.

        Raises:
            SourceError: as for `predict`.
            ValueError: as for `predict`.
        """
        check_channels(channels)
        try:
            return self._prepared(source, channels).image
        except FmengineError:
            raise
        except Exception as error:
            raise as_source_error(error) from error

    def close(self) -> None:
        """Give the backend's resources back. Closing twice is no error."""
        with self._lock:
            batcher = self._batcher
        if batcher is not None:
            batcher.close()  # what is under way is answered, and needs the backend
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self.backend.close()
            if self._isolated is not None:
                self._isolated.close()
            if self._backend_of_lanes is not None:
                self._backend_of_lanes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batches_of_callers(self) -> Batcher:
        """The batcher, which starts its threads when it is first needed."""
        with self._lock:
            self._check_open()
            if self._batcher is None:
                self._batcher = Batcher(
                    self._picture_or_fail,
                    self._answer_or_fail,
                    max_batch=self.max_batch,
                    workers=self._workers,
                    delay=self._queue_delay,
                    size=self._queue_size,
                )
            return self._batcher

    # The stages of a picture's way, each one method: `fmengine bench` times them.

    def _read(self, source: Source) -> Source:
        return read_file(source, self.limits) if isinstance(source, str | os.PathLike) else source

    def _decode(self, source: Source, channels: Channels) -> Pixels:
        return decode(source, self.spec.color, self.limits, channels, self._least)

    def _preprocess(self, pictures: list[Pixels]) -> list[Prepared]:
        spec = self.spec
        images = preprocess_batch(pictures, spec.height, spec.width, spec.color, spec.fit)
        sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in pictures]
        return list(map(Prepared, images, is_flat_input(images, sizes, spec.fit).tolist()))

    def _compute(self, pictures: "Sequence[Item]", backend: Backend) -> ImageOutputs:
        if self._on_device is not None:
            return self._on_device.run_pictures(cast("list[AnyImage]", pictures))
        images, flat = zip(*cast("list[Prepared]", pictures), strict=True)
        outputs = backend.run(images[0][np.newaxis] if len(images) == 1 else np.stack(images))
        return ImageOutputs(*outputs, np.array(flat))

    def _post(self, sources: list[Source], outputs: ImageOutputs) -> list[Prediction | Failure]:
        labels = self.spec.labels
        threshold = self.unsure_below or self.spec.unsure_below
        answers: list[Prediction | Failure] = []
        rows = outputs.probabilities.tolist(), outputs.flat.tolist()
        for source, row, flat in zip(sources, *rows, strict=True):
            probabilities = dict(zip(labels, row, strict=True))
            if not math.isfinite(sum(row)):
                answers.append(_not_finite(source, probabilities))
                continue
            confidence = max(row)
            reason = Reason.FLAT if flat else Reason.UNSURE if confidence < threshold else None
            label = UNSURE if reason and self.unsure_below else labels[row.index(confidence)]
            answers.append(Prediction(label, confidence, probabilities, source, reason))
        return answers

    def _answer(
        self,
        sources: list[Source],
        pictures: "Sequence[Item]",
        backend: Backend | None = None,
    ) -> list[Prediction | Failure]:
        self._check_open()
        return self._post(sources, self._compute(pictures, backend or self.backend))

    def _through_lanes(
        self, sources: Iterator[Source], size: int, in_flight: int | None, channels: Channels
    ) -> Iterator[list[Prediction | Failure]]:
        """Where the CPU computes: each thread decodes and runs the network on its own batch."""
        first = list(islice(sources, 2))
        if len(first) < 2:  # one picture: all threads work on it together
            yield from ([self._one_or_failure(source, channels)] for source in first)
            return
        backend = self._for_lanes()
        lanes = Lanes(
            partial(self._inputs_or_failures, channels=channels),
            partial(self._answers_or_failures, backend=backend),
            count=self._workers,
            size=size,
            in_flight=in_flight,
        )
        with closing(lanes):
            yield from lanes.outcomes(chain(first, sources))

    def _for_lanes(self) -> Backend:
        """The backend that runs several batches at once, each on its share of the cores."""
        if self._open_for_lanes is None:
            return self.backend
        with self._lock:
            self._check_open()
            if self._backend_of_lanes is None:
                self._backend_of_lanes = self._open_for_lanes()
            return self._backend_of_lanes

    def _one_or_failure(self, source: Source, channels: Channels) -> Prediction | Failure:
        try:
            return self.predict(source, channels=channels)
        except SourceError as error:
            return _failed(error, source)

    def _prepared(self, source: Source, channels: Channels) -> Prepared:
        if self._isolated is not None and is_encoded(source):
            return self._isolated.prepare(source)
        return self._preprocess([self._decode(self._read(source), channels)])[0]

    def _picture(self, source: Source, channels: Channels) -> "Item":
        """What the backend is given: a picture, or the network's input where it does not preprocess."""
        if self._on_device is None:
            return self._prepared(source, channels)
        if on_gpu(source):
            return self._on_device.admit(source, channels)
        if self._isolated is not None and is_encoded(source):
            return _as_picture(self._isolated.prepare(source).image)
        source = self._read(source)
        if isinstance(source, bytes) and is_plain_jpeg(source, self.limits) and not may_be_turned(source):
            picture = self._on_device.decode_jpeg(source)
            if picture is not None:
                return picture
        return self._decode(source, channels)

    def _picture_or_fail(self, source: Source, channels: Channels) -> "Item | Failure":
        try:
            picture = self._picture(source, channels)
            if isinstance(picture, np.ndarray) and picture.nbytes > MAX_HELD:
                # A batch of photographs must not fill the memory before it is uploaded.
                return _as_picture(self._preprocess([picture])[0].image)
            return picture
        except Exception as error:
            return _failed(error, source)

    def _inputs_or_failures(self, sources: list[Source], channels: Channels) -> "list[Item | Failure]":
        """The network's input of each source: on the CPU, small pictures are preprocessed together."""
        if self._isolated is not None:  # whose workers preprocess too
            return [self._picture_or_fail(source, channels) for source in sources]
        small: dict[int, Pixels] = {}
        found: dict[int, Item | Failure] = {}
        for index, source in enumerate(sources):
            try:
                pixels = self._decode(self._read(source), channels)
                if max(pixels.shape[:2]) > SMALL:  # a batch of photographs must not fill the memory
                    found[index] = self._preprocess([pixels])[0]
                else:
                    small[index] = pixels
            except Exception as error:
                found[index] = _failed(error, source)
        try:
            made = self._preprocess(list(small.values())) if small else ()
            found |= dict(zip(small, made, strict=True))
        except Exception:  # which of them it is shows when each is alone
            found |= {index: self._picture_or_fail(sources[index], channels) for index in small}
        return [found[index] for index in range(len(sources))]

    def _answer_or_fail(self, good: "list[tuple[Source, Item]]") -> list[Prediction | Failure]:
        sources, pictures = (list(column) for column in zip(*good, strict=True))
        return self._answers_or_failures(sources, pictures)

    def _answers_or_failures(
        self,
        sources: list[Source],
        pictures: "Sequence[Item]",
        backend: Backend | None = None,
    ) -> list[Prediction | Failure]:
        """A batch's answers; one by one where the backend fails for one of its pictures."""
        try:
            return self._answer(sources, pictures, backend)
        except Exception as error:
            if len(sources) == 1:
                return [_failed(error, sources[0])]
            if isinstance(error, FmengineError) and not isinstance(error, SourceError):
                raise
        pairs = zip(sources, pictures, strict=True)
        return [self._answers_or_failures([source], [picture], backend)[0] for source, picture in pairs]

    def _check_open(self) -> None:
        if self._closed:
            raise FmengineError(CLOSED)


def _check_many(sources: object) -> None:
    """Refuse one picture: text and arrays can be iterated too, and each letter or row would be a picture."""
    one = is_encoded(sources) or isinstance(sources, np.ndarray | Image.Image)
    if one or hasattr(sources, "__dlpack_device__") or hasattr(sources, "__cuda_array_interface__"):
        raise TypeError(
            f"sources is one {type(sources).__name__}; expected an iterable of pictures, such as a list of them, "
            "or `predict` for one alone"
        )
    if not isinstance(sources, Iterable) and not hasattr(sources, "__getitem__"):
        raise TypeError(f"sources is a {type(sources).__name__}; expected an iterable of pictures")


def _failed(error: Exception, source: Source) -> Failure:
    """The outcome of a picture for whatever was raised on its way; an error that is no picture's is raised."""
    error = as_source_error(error)
    return Failure(error.kind, error.message, source)


def _not_finite(source: Source, probabilities: dict[str, float]) -> Failure:
    found = ", ".join(f"{p} for {label}" for label, p in probabilities.items())
    return Failure(
        Kind.NOT_FINITE,
        f"the model answers {found}; expected probabilities: export it again, or in a higher precision",
        source,
    )


def _as_picture(made: Pixels) -> Pixels:
    """The network's input `[C, H, W]` as a picture `[H, W, C]`, of which a GPU makes the same bits."""
    return np.ascontiguousarray(made.transpose(1, 2, 0))


def _until_error(sources: Iterable[Source], ended: list[Exception]) -> Iterator[Source]:
    """The sources, and what ended them if it was an error: what came before it is answered first."""
    try:
        yield from sources
    except Exception as error:
        ended.append(error)


def _then_raise(
    outcomes: Iterator[list[Prediction | Failure]], ended: list[Exception]
) -> Iterator[list[Prediction | Failure]]:
    yield from outcomes
    if ended:
        raise ended[0]
