"""Every setting of the engine, checked once: of pictures, faces and videos, of backends and of an engine."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Hint = Literal["throughput", "latency"]  # what `auto` is to be fast for: many pictures, or one alone
HINTS: tuple[Hint, ...] = get_args(Hint)
MIN_ROW = (
    16  # pixels that a row costs a decoder, however short it is: a million rows of one pixel are no small picture
)
MAX_SEARCH = 8192  # pixels of the long side; each takes a kilobyte of memory and more
MAX_WORKERS = 1024  # processes of an engine: more than any machine has cores


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused before it is decoded.

    Attributes:
        max_bytes: of an encoded picture; over it is `file_too_large`.
        max_pixels: width times height, a row counting as `MIN_ROW` pixels or more; over it is `too_large`.
            Pixels that may cost more than those of a PNG count more than once: a JPEG's once for each 12 scans, a
            WebP's 2 times, an AVIF's 4, a JPEG 2000's 28; `cost` has them all. With the default, which photographs
            of 108 megapixels pass, no file of a megabyte takes over 5 seconds of a core, or much more than a
            gigabyte. Over 178,956,970 it needs a higher `PIL.Image.MAX_IMAGE_PIXELS` too, which is the whole
            process's and not ours to change.

    Raises:
        ValueError: for a limit that nothing passes.
    """

    max_bytes: int = 256 * 1024**2
    max_pixels: int = 2**27

    def __post_init__(self) -> None:
        if not (self.max_bytes >= 1 and self.max_pixels >= 1):  # NaN would pass every comparison the other way
            raise ValueError(f"max_bytes {self.max_bytes}, max_pixels {self.max_pixels}: expected 1 or more")


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a worker process may take for one picture; see `isolation`.

    Attributes:
        seconds: from the first byte that is read to the network's input; over it is `timeout`.
        memory: bytes beyond what an idle worker has; over it is `out_of_memory`, or `crashed` where a decoder does
            not notice.

    Raises:
        ValueError: for a limit that nothing passes.
    """

    seconds: float = 10.0
    memory: int = 2 * 1024**3

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and self.memory >= 1):
            raise ValueError(f"seconds {self.seconds}, memory {self.memory}: expected more than 0, and an end")


@dataclass(frozen=True, slots=True)
class FaceOptions:
    """Which faces of a photograph are wanted.

    Attributes:
        min_score: of the detector, from 0 to 1.
        min_size: pixels of the picture that the face's box is wide and high at least.
        max_faces: of a picture, those of the highest scores; None for all.
        search_size: pixels of the long side that the picture is searched at: what is smaller than 16 of them is
            often not found, and twice the size takes four times as long. None for 160 where the picture has fewer
            than 300 pixels, and is a face itself, else 640.

    Raises:
        ValueError: for a value that cannot be.
    """

    min_score: float = 0.6
    min_size: float = 0.0
    max_faces: int | None = None
    search_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_score < 1:
            raise ValueError(f"min_score {self.min_score}; expected more than 0 and less than 1")
        if not 0 <= self.min_size < math.inf:
            raise ValueError(f"min_size {self.min_size}; expected pixels, 0 or more")
        if self.max_faces is not None and self.max_faces < 1:
            raise ValueError(f"max_faces {self.max_faces}; expected 1 or more, or None for all")
        if self.search_size is not None and not 32 <= self.search_size <= MAX_SEARCH:
            raise ValueError(f"search_size {self.search_size}; expected 32 to {MAX_SEARCH} pixels, or None")


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """How a video, a stream or a camera is read; `Engine.watch` says what each is.

    Raises:
        ValueError: for a value that cannot be.
    """

    every: float = 0.0
    timeout: float | tuple[float, float] = 10.0
    reconnect: int = 5
    live: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.every < math.inf:
            raise ValueError(f"every {self.every}; expected seconds, 0 or more")
        if not (min(self.timeouts) > 0 and max(self.timeouts) < math.inf):
            raise ValueError(f"timeout {self.timeout}; expected seconds, more than 0, or two: to open, to read")
        if self.reconnect < 0:
            raise ValueError(f"reconnect {self.reconnect}; expected 0 tries or more")

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to open a source, and to wait for its next data."""
        return self.timeout if isinstance(self.timeout, tuple) else (self.timeout, self.timeout)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What a backend is opened with.

    Attributes:
        device: index of the GPU; CPU backends take no notice.
        max_batch: the largest batch that will be asked for.
        threads: of the network on a CPU; 0 for all cores.
        streams: batches in flight at once: on a GPU, so that one's copies overlap another's work; on a CPU each
            has its share of the threads. 0 for one on a CPU and `gpu.backend.STREAMS` on a GPU.
        jpeg: where JPEG files are decoded, `cpu` or `gpu`.
        graphs: whether a GPU's network is launched as a CUDA graph where its batch size allows it.
        spinning: whether idle threads of a network on a CPU spin, so that the next layer begins sooner; where
            others need the cores meanwhile they should sleep.
        allow_untrusted_engine: whether an engine file that somebody else could have written is run.
    """

    device: int = 0
    max_batch: int = 64
    threads: int = 0
    streams: int = 0
    jpeg: Literal["cpu", "gpu"] = "cpu"
    graphs: bool = True
    spinning: bool = True
    allow_untrusted_engine: bool = False


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is loaded with; `Engine.load` says what each is.

    Raises:
        ValueError: for a value, or two together, that cannot be.
    """

    device: int = 0
    max_batch: int = 64
    threads: int = 0
    workers: int | Literal["auto", "threads"] = "auto"
    limits: Limits = Limits()
    isolate: Isolation | None = None
    unsure_below: float | Literal["recommended"] = 0.0
    queue_delay: float = 0.002
    queue_size: int = 256
    jpeg: Literal["cpu", "gpu"] = "cpu"
    scaled_jpeg: bool = False
    hint: Hint = "throughput"

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.threads < 0:
            raise ValueError(f"max_batch {self.max_batch}, threads {self.threads}: expected 1, 0 or more")
        number = isinstance(self.workers, int) and 1 <= self.workers <= MAX_WORKERS
        if not number and self.workers not in ("auto", "threads"):
            raise ValueError(
                f"workers {self.workers!r}; expected a number from 1 to {MAX_WORKERS}, 'auto' or 'threads'"
            )
        if self.workers == "threads" and self.isolate is not None:
            raise ValueError("workers 'threads' leaves no process to decode in; isolate needs 'auto', or a number")
        if self.queue_delay < 0 or self.queue_size < 1:
            raise ValueError(
                f"queue_delay {self.queue_delay}, queue_size {self.queue_size}: expected 0, 1 or more"
            )
        if self.unsure_below != "recommended" and not 0 <= self.unsure_below <= 1:
            raise ValueError(
                f"unsure_below {self.unsure_below}; expected a confidence from 0 to 1, or 'recommended'"
            )
        if self.hint not in HINTS:
            raise ValueError(f"hint {self.hint!r}; expected 'throughput' or 'latency'")
        if self.jpeg not in ("cpu", "gpu"):
            raise ValueError(f"jpeg {self.jpeg!r}; expected 'cpu' or 'gpu'")
        if self.jpeg == "gpu" and self.isolate is not None:
            raise ValueError("jpeg 'gpu' decodes in this process; isolate needs jpeg 'cpu'")
