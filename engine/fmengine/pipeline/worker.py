"""What runs in a worker process: it answers for chunks of pictures, or decodes them, into its arena.

It holds the descriptors of its socket and of its own arena, and no other worker's. It is no sandbox all the same:
a worker has the user's rights.
"""

import fcntl
import mmap
import os
import resource
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from ..backend.protocol import Backend
from ..backend.registry import open_file
from ..image import cost
from ..image.pillow import raise_pillow_limit
from ..image.preprocess import preprocess
from ..model.file import check_model_file
from ..model.spec import InputSpec
from ..options import BackendOptions, Limits
from ..system.imports import load_object
from ..types import DecodedImage, Failure
from .arena import NO_PICTURE, Arena, Layout, Slot
from .batch import Task
from .messages import Answer, Request, receive_request
from .stages import MAX_HELD, DecodeStages, Stages, as_image

GRACE_SECONDS = 2.0  # after its time is up, until the kernel ends a worker whose engine does not

Make = Callable[[DecodedImage], DecodedImage]


class ChunkService(ABC):
    """Serves requests for chunks of pictures.

    Args:
        files: descriptor of the lock by which workers decode large pictures in turn, and others of the service.
        limits: of what a picture may cost.
        min_side: as for `Stages`.
        capacity: pictures a request, at most.
        seconds: that a picture may take; 0 for no limit that a worker knows of.
        memory: bytes that a worker may take beyond what it has when it is idle; 0 for no limit.
    """

    layout: Layout

    def __init__(
        self, files: list[int], limits: dict[str, int], min_side: int, capacity: int, seconds: float, memory: int
    ) -> None:
        self._turn = files[0]
        self._limits, self._min_side, self._capacity = Limits(**limits), min_side, capacity
        self._seconds, self._memory = seconds, memory
        raise_pillow_limit(self._limits.max_pixels)

    @abstractmethod
    def open(self) -> DecodeStages:
        """Open in the worker what cannot be forked."""

    @abstractmethod
    def handle(self, tasks: Iterable[Task], slot: Slot, network: bool) -> list[int]:
        """Make what comes of a chunk, and return the indices of pictures that there is no room for.

        The source of each task is its index. Its result is set where it fails.
        """

    def serve(self, connection: socket.socket, memory: int) -> None:
        """See `forkserver.Service`."""
        limit_rights()
        arena = Arena(self.layout, mmap.mmap(memory, self.layout.size))
        os.close(memory)
        try:
            stages = self.open()
        except Exception as error:
            problem = f"worker processes cannot be set up: {type(error).__name__}: {error}"
            connection.sendall(Answer(0, 0, 0, error=problem).pack())
            return
        alarm = _Alarm(self._seconds)
        cost.use_lock(_Turn(self._turn, arena, alarm))
        if self._memory:
            limit_memory(self._memory)
        connection.sendall(Answer(0, 0, 0).pack())  # ready
        while (request := receive_request(connection)) is not None:
            connection.sendall(self._answer(request, arena, stages, alarm).pack())

    def _answer(self, request: Request, arena: Arena, stages: DecodeStages, alarm: "_Alarm") -> Answer:
        observed: list[tuple[Any, float, float]] = []
        if request.observe:
            stages.observe(lambda *observation: observed.append(observation))
        tasks = [Task(index, content) for index, content in enumerate(self._find_files(request))]  # type: ignore[arg-type]
        unplaced: list[int] = []
        error = ""
        try:
            unplaced = self.handle(_watch(tasks, arena, alarm), arena.slots[request.slot], request.network)
        except Exception as problem:  # of no picture: the engine says what becomes of it
            error = f"{type(problem).__name__}: {problem}"
        finally:
            alarm.stop()
            if request.observe:
                stages.observe(None)
        failures = [
            (index, task.result.kind, task.result.message)
            for index, task in enumerate(tasks)
            if isinstance(task.result, Failure)
        ]
        return Answer(request.generation, request.slot, len(tasks), failures, unplaced, observed, error)

    def _find_files(self, request: Request) -> Sequence[str | bytes]:
        """Go to the engine's current folder, from which the request's paths start.

        Each time: another folder may have the name of the last one by now.
        """
        try:
            os.chdir(request.folder)
        except OSError:  # opening the files says why
            return [
                os.path.join(os.fsdecode(request.folder), content) if type(content) is str else content
                for content in request.contents
            ]
        return request.contents


class AnswerService(ChunkService):
    """Answers with probabilities, or with the network's inputs.

    Args:
        backend: that runs the network.
        model: path of its file, for messages; its bytes are the second of the files.
        options: of `ChunkService`.
    """

    def __init__(self, files: list[int], backend: str, model: str, **options: Any) -> None:
        super().__init__(files, **options)
        with open(files[1], "rb") as file:
            file.seek(0)
            self._model = check_model_file(Path(model), file.read())
        self._name = backend
        self.layout = Layout(self._capacity, self._model.spec)
        # Imported before the fork: once, and its pages are shared. It starts no thread before a model is opened.
        with suppress(Exception):  # a worker's own attempt says more
            import_module(backend)  # a CPU backend has its library's name

    def open(self) -> Stages:
        # A batch of one shows that it runs; the engine has tried a large one.
        options = BackendOptions(max_batch=1, threads=1)
        self._backend: Backend = open_file(self._name, self._model, options)
        self._stages = Stages(self._model.spec, self._limits, self._backend, min_side=self._min_side)
        return self._stages

    def handle(self, tasks: Iterable[Task], slot: Slot, network: bool) -> list[int]:
        batch = slot.batch
        assert batch is not None
        self._stages.prepare(tasks, batch)
        if network:
            self._stages.infer(batch, self._backend)
        good = [row for row, task in enumerate(batch.tasks) if task.result is None]
        if len(good) < len(batch.tasks):
            batch.probabilities[: len(good)], batch.flat[: len(good)] = batch.probabilities[good], batch.flat[good]
        slot.rows[: len(good)] = [_get_index(batch.tasks[row]) for row in good]
        batch.clear()
        return []


class ImageService(ChunkService):
    """Decodes images.

    Args:
        color: `gray` or `rgb`.
        pixel_bytes: of the images of a chunk.
        make: `module:function` of ours that makes each image smaller.
        arguments: of that function, after the image.
        options: of `ChunkService`.
    """

    def __init__(
        self, files: list[int], color: Any, pixel_bytes: int, make: str, arguments: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(files, **options)
        self._make: Make = partial(load_object(make), **arguments)
        self._stages = DecodeStages(self._limits, color, min_side=self._min_side)
        self.layout = Layout(self._capacity, pixel_bytes=pixel_bytes)

    def open(self) -> DecodeStages:
        return self._stages

    def handle(self, tasks: Iterable[Task], slot: Slot, network: bool) -> list[int]:
        at, row = 0, 0
        unplaced: list[int] = []
        for task, image in self._stages.decode_each(tasks, self._make):
            end = at + image.size
            if end > len(slot.pixels):
                unplaced.append(_get_index(task))
                continue
            slot.pixels[at:end] = image.reshape(-1)
            slot.rows[row] = _get_index(task)
            slot.places[row] = at, *image.shape[:2], image.shape[2] if image.ndim == 3 else 0
            at, row = end, row + 1
        return unplaced


def make_holdable(image: DecodedImage, spec: dict[str, Any]) -> DecodedImage:
    """Make of a photograph what a GPU makes the same bits of: the network's input; return others as they are."""
    return as_image(preprocess(image, InputSpec(**spec))) if image.nbytes > MAX_HELD else image


def _get_index(task: Task) -> int:
    return cast(int, task.source)


class _Alarm:
    """Has the kernel end this process where a picture takes too long, even in a loop in C."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds + GRACE_SECONDS if seconds else 0.0

    def start(self) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _watch(tasks: Sequence[Task], arena: Arena, alarm: _Alarm) -> Iterator[Task]:
    """Yield the tasks, and tell the engine which of them is being worked on."""
    pulse = arena.pulse
    for index, task in enumerate(tasks):
        pulse[1] = index
        pulse[0] += 1
        alarm.start()
        yield task
    pulse[1] = NO_PICTURE
    pulse[0] += 1
    alarm.start()


class _Turn:
    """A lock that all workers of an engine share. The kernel takes it from one that dies."""

    def __init__(self, descriptor: int, arena: Arena, alarm: _Alarm) -> None:
        self._descriptor, self._pulse, self._alarm = descriptor, arena.pulse, alarm

    def __enter__(self) -> None:
        self._pulse[2] = 1  # the time of others is not this picture's
        self._alarm.stop()
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        finally:
            self._alarm.start()
            self._pulse[0] += 1
            self._pulse[2] = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def limit_rights() -> None:
    """Give up what no decoder needs."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # pictures in a core file would outlive the run
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder has nothing to write
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out all the same, not the engine is to be killed


def limit_memory(size: int) -> None:
    """Have the kernel refuse this process more than so many bytes beyond what it has, or than it may have."""
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + size
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
