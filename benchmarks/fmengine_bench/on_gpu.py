"""Measures a GPU: a batch's parts on host and GPU, and every way to run the network, by graphs and streams."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

from fmengine.backend.protocol import DeviceBackend, HostTimes, StageTimes
from fmengine.backend.registry import load_backend_class
from fmengine.engine import Engine
from fmengine.errors import BackendError
from fmengine.options import BackendOptions
from fmengine.types import DecodedImage, InputBatch

from .timing import TURN, Call, Figure, estimate_median, random_inputs, random_pixels, time_calls

STREAMS = (1, 2, 4)
CUDA_PROVIDER = "onnxruntime-cuda"
SIDE = 48  # pixels of a face
EVENTS = 20  # runs a round that the GPU's events time, and the host's parts


@dataclass(frozen=True)
class Way:
    """One way to run the network on the GPU. Batches are of preprocessed pictures, uint8 `[N, C, H, W]`.

    Attributes:
        name: backend, graphs, streams.
        graphs: the batch sizes that run as a CUDA graph, or why none does.
        with_transfers: by batch, milliseconds from host memory to answers in host memory, one batch at a time, by
            the host's clock.
        network: by batch, milliseconds of the network alone, without transfers, by the GPU's events.
        host: by batch, milliseconds of each of the host's parts, by its clock: those of `HostTimes`.
        rate: pictures a second in the largest batch, a thread for each stream, transfers included.
    """

    name: str
    graphs: str
    with_transfers: dict[int, Figure]
    network: dict[int, Figure]
    host: dict[int, dict[str, float]]
    rate: Figure


@dataclass(frozen=True)
class BatchParts:
    """What a batch of gray faces takes from pixels to results, by who works on it, in milliseconds.

    Attributes:
        batch: pictures.
        host: by its clock: `stage` and `launch` of `HostTimes`, and `rows`, the results made of the answers.
        device: by the GPU's events: the parts of `StageTimes`.
    """

    batch: int
    host: dict[str, Figure]
    device: dict[str, Figure]

    def explain(self) -> str:
        """Say whether the host or the GPU takes longer, and which part of it most."""
        host, device = (sum(part.median for part in parts.values()) for parts in (self.host, self.device))
        name, parts = ("host", self.host) if host > device else ("GPU", self.device)
        slowest = max(parts, key=lambda part: parts[part].median)
        return (
            f"{name}-bound at batch {self.batch}: the host works {host:.3f} ms, the GPU {device:.3f}; most of "
            f"that is {slowest}, {parts[slowest].median:.3f}"
        )


def measure_parts(engine: Engine, batches: Sequence[int], rounds: int) -> list[BatchParts]:
    """Measure the parts of batches of gray faces of random pixels, `SIDE` rows and columns, in turn."""
    backend = engine.backend
    assert isinstance(backend, DeviceBackend)
    faces = {batch: [DecodedImage(face) for face in random_pixels(batch, SIDE, SIDE)] for batch in batches}
    found: dict[int, dict[str, list[float]]] = {batch: {} for batch in batches}
    for _ in range(rounds):
        for batch, images in faces.items():
            on_host = [backend.time_host(images) for _ in range(EVENTS)]
            on_device = [backend.time_stages(images)[1] for _ in range(EVENTS)]
            times = {
                "stage": [each.stage for each in on_host],
                "launch": [each.launch for each in on_host],
                "rows": _time_rows(engine, images),
            } | {part: [getattr(each, part) for each in on_device] for part in StageTimes._fields}
            for part, values in times.items():
                found[batch].setdefault(part, []).append(median(values))
    return [
        BatchParts(
            batch,
            {part: estimate_median(parts[part]) for part in ("stage", "launch", "rows")},
            {part: estimate_median(parts[part]) for part in StageTimes._fields},
        )
        for batch, parts in found.items()
    ]


def _time_rows(engine: Engine, images: Sequence[DecodedImage]) -> list[float]:
    """Time how long the results of batches take, in milliseconds."""
    taken: list[float] = []

    def note(stage: str, begin: float, end: float) -> None:
        if stage == "post":
            taken.append(1e3 * (end - begin))

    with engine.observe(note):
        for _ in range(EVENTS):
            for _ in engine.predict_many(images, batch_size=len(images)):
                pass
    return taken


def measure_ways(engine: Engine, rounds: int, notify: Callable[[str], None], turn: float = TURN) -> list[Way]:
    """Measure every way that works here, all of them open at once and in turn.

    Args:
        engine: on a GPU's backend; its model, GPU and largest batch are taken.
        rounds: of turns.
        notify: called with each way that does not work, as text.
        turn: seconds of each.
    """
    batches = sorted({1, engine.max_batch})
    images = {batch: random_inputs(engine.spec, batch) for batch in batches}
    alone: dict[str, list[float]] = {}
    with ExitStack() as stack:
        opened = dict(_open_backends(engine, stack, notify))
        calls: dict[str, Call] = {}
        for name, backend in opened.items():
            threads = stack.enter_context(ThreadPoolExecutor(backend.streams))
            for batch in batches:
                calls[f"{name}/{batch}"] = partial(backend.run, images[batch])
            calls[f"{name}/all"] = partial(_run_on_every_stream, backend, threads, images[batches[-1]])
        taken = time_calls(calls, rounds, turn, min_calls=3)
        for name, backend in rounds * list(opened.items()):
            for batch in batches:
                alone.setdefault(f"{name}/{batch}", []).append(measure_network(backend, batch))
        return [
            Way(
                name,
                backend.describe()["cuda graphs"],
                {batch: estimate_median([median(each) for each in taken[f"{name}/{batch}"]]) for batch in batches},
                {batch: estimate_median(alone[f"{name}/{batch}"]) for batch in batches},
                {batch: measure_host(backend, images[batch]) for batch in batches},
                estimate_median(
                    [1e3 * backend.streams * batches[-1] / fmean(each) for each in taken[f"{name}/all"]]
                ),
            )
            for name, backend in opened.items()
        ]


def measure_network(backend: DeviceBackend, batch: int) -> float:
    """Measure the milliseconds of the network alone, by the GPU's events: the median of some runs."""
    images = random_inputs(backend.spec, batch)
    return median(backend.time_stages(images)[1].network for _ in range(EVENTS))


def measure_host(backend: DeviceBackend, images: InputBatch) -> dict[str, float]:
    """Measure the milliseconds of the host's parts of a batch: the median of some runs."""
    runs = [backend.time_host(images) for _ in range(EVENTS)]
    return {part: median(getattr(run, part) for run in runs) for part in HostTimes._fields}


def _open_backends(
    engine: Engine, stack: ExitStack, notify: Callable[[str], None]
) -> Iterator[tuple[str, DeviceBackend]]:
    """Open the engine's own backend with and without graphs, and the same file in ONNX Runtime's CUDA provider."""
    own = engine.backend
    assert isinstance(own, DeviceBackend)
    names = dict.fromkeys((own.name, CUDA_PROVIDER))
    for kind, graphs in ((name, graphs) for name in names for graphs in (True, False)):
        title = f"{kind}, graphs" if graphs else kind
        try:
            for streams in STREAMS:
                options = BackendOptions(
                    own.device_index,
                    engine.max_batch,
                    streams=streams,
                    graphs=graphs,
                    allow_untrusted_engine=True,  # these very bytes run already
                )
                backend = stack.enter_context(closing(load_backend_class(kind).open(engine.model_file, options)))
                assert isinstance(backend, DeviceBackend)
                name = f"{title}, {streams} stream{'s' if streams > 1 else ''}"
                if backend.streams == streams:
                    yield name, backend
                else:
                    notify(f"{name} is not measured: the GPU has room for {backend.streams}")
        except BackendError as error:
            notify(f"{title} is not measured: {error}")


def _run_on_every_stream(backend: DeviceBackend, threads: ThreadPoolExecutor, images: InputBatch) -> None:
    list(threads.map(backend.run, [images] * backend.streams))
