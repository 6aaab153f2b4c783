"""From a strongly typed FP16 model file to a TensorRT engine, over the API that `tensorrt` 10.12 to 11 and
`tensorrt_rtx` share.

TensorRT tells of failure by returning None, False or -1 and writing to its logger: every such value is
checked here, and the logger's own words are in the error.
"""

import dataclasses
import hashlib
import json
import platform
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args

from .. import __version__
from ..errors import (
    BackendError,
    ModelError,
    RefusedModelError,
    UnavailableError,
    install_hint,
)
from ..gpu.driver import Gpu
from ..model.file import ModelFile
from ..system.cache import Cache

Library = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
INSTALL = {
    "tensorrt": install_hint("gpu"),
    "tensorrt_rtx": install_hint("rtx"),
}
OLDEST = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 7)}
NEWEST_MAJOR = {"tensorrt": 11, "tensorrt_rtx": 1}


class BuildError(BackendError):
    """TensorRT does not build an engine from this model with these options."""

    exit_code = 1


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine takes in one of its profiles: least, the one to be fast at, most."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        # TensorRT's `set_shape` takes a least above the most, and the build fails without a word of it.
        if not 1 <= self.least <= self.best <= self.most:
            raise BuildError(
                f"a profile from {self.least} over {self.best} to {self.most} pictures; "
                "expected 1 ≤ least ≤ best ≤ most"
            )


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for; all of it is part of the cache's key.

    Attributes:
        profiles: batch sizes. The first is for single pictures, the second for throughput.
        compute_capabilities: of the GPUs to build for ahead of time, such as `8.6`; TensorRT-RTX only.
        optimization_level: 0 to 5, how long TensorRT looks for faster kernels.
        workspace: bytes of device memory that a kernel may use beside its tensors; 0 leaves it to TensorRT.
    """

    profiles: tuple[Profile, ...] = (Profile(1, 1, 1), Profile(1, 32, 64))
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace: int = 0

    def __post_init__(self) -> None:
        # TensorRT takes a level of 9 for 5, and says nothing.
        if not 0 <= self.optimization_level <= 5 or self.workspace < 0:
            raise BuildError(
                f"optimization level {self.optimization_level}, workspace {self.workspace}; expected 0 to 5, and "
                "bytes from 0"
            )

    @classmethod
    def for_batch(cls, most: int, **more: Any) -> "BuildOptions":
        """One profile for single pictures, and one up to `most`, fastest at half of it."""
        throughput = (Profile(1, max(1, most // 2), most),) if most > 1 else ()
        return cls((Profile(1, 1, 1), *throughput), **more)


class Timings(NamedTuple):
    """How fast this GPU's kernels are: `known` from earlier builds, and where to `keep` what this one learned."""

    known: bytes
    keep: Callable[[bytes], None]


def timings_on(library: Any, gpu: Gpu, cache: Cache) -> Timings | None:
    """What builds on a GPU learn of its kernels, kept from one to the next; TensorRT-RTX times nothing."""
    if is_rtx(library):
        return None
    key = {"library": f"{library.__name__} {library.__version__}", "gpu": str(gpu)}
    return Timings(cache.load("timings", key) or b"", lambda learned: cache.store("timings", key, learned))


def load_library(name: Library) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        UnavailableError: if it is missing, or of a version that fmengine does not know.
    """
    install = INSTALL[name]
    try:
        library = import_module(name)
    except Exception as error:  # a missing shared library raises whatever the loader likes
        raise UnavailableError(f"{name} cannot be imported ({error}); install it with: {install}") from error
    found = tuple(int(part) for part in re.findall(r"\d+", library.__version__)[:2])
    if not OLDEST[name] <= found or found[0] > NEWEST_MAJOR[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise UnavailableError(
            f"{name} {library.__version__} is installed; expected {oldest} to {NEWEST_MAJOR[name]}.x: {install}"
        )
    return library


def build_engine(
    library: Any,
    model: ModelFile,
    options: BuildOptions,
    *,
    timings: Timings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> bytes:
    """Build an engine.

    Args:
        library: from `load_library`.
        model: an FP16 model file.
        options: batch sizes and targets.
        timings: what builds learn of this GPU's kernels; for TensorRT only.
        progress: called with the name of a phase, steps done, and steps in all.

    Returns:
        The serialised engine.

    Raises:
        ModelError: for a model that is not FP16, or that TensorRT cannot read.
        BuildError: with TensorRT's own words.
    """
    spec = model.spec
    if spec.precision != "fp16":
        raise ModelError(
            f"{model.path} is {spec.precision}; TensorRT is given the FP16 file (its parser takes no uint8 Q/DQ): "
            f"use {spec.name}.fp16.onnx, or export it with --precision fp16"
        )
    logger = logger_of(library)
    logger.words.clear()
    try:
        builder = library.Builder(logger)
    except Exception as error:  # pybind's TypeError where the library cannot start
        raise UnavailableError(f"{library.__name__} does not start: {error}. {words_of(logger)}") from error
    network = _some(builder.create_network(_strongly_typed(library)), "create a network", logger)
    _parse(library, network, model, logger)
    check_types(library, network)
    config = _some(builder.create_builder_config(), "create a configuration", logger)
    config.builder_optimization_level = options.optimization_level
    if options.workspace:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace)
    monitor = None if progress is None else _progress_monitor(library, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    _add_profiles(builder, config, model, options.profiles, logger)
    _set_targets(library, config, options.compute_capabilities, logger)
    if timings is not None:
        _begin_timings(config, timings.known, logger)
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    plan = _some(plan, "build the engine", logger)
    if timings is not None:
        learned = _some(config.get_timing_cache(), "give its timing cache", logger)
        timings.keep(bytes(_some(learned.serialize(), "write its timing cache", logger)))
    return bytes(plan)


def check_types(library: Any, network: Any) -> None:
    """See that every convolution and matrix product of a parsed network computes in half precision.

    It needs no GPU, and it is the only way to see it before the build.

    Raises:
        BuildError: naming each layer that does not.
    """
    heavy = (library.LayerType.CONVOLUTION, library.LayerType.MATRIX_MULTIPLY)
    wrong, seen = [], 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in heavy:
            seen += 1
            wrong += [
                f"{layer.name} ({tensor.dtype.name})"
                for tensor in (layer.get_output(i) for i in range(layer.num_outputs))
                if tensor.dtype != library.DataType.HALF
            ]
    if wrong:
        raise BuildError(f"not in half precision: {', '.join(wrong)}; export the model again as fp16")
    if not seen:
        raise BuildError("the network has no convolution and no matrix product; expected an exported classifier")


def _parse(library: Any, network: Any, model: ModelFile, logger: Any) -> None:
    parser = library.OnnxParser(network, logger)
    if not parser.parse(model.data):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"node {error.node()}: {error.desc()}" for error in errors) or words_of(logger)
        raise RefusedModelError(f"{library.__name__} cannot read {model.path}: {told}")


def _begin_timings(config: Any, known: bytes, logger: Any) -> None:
    """Begin with what an earlier build learned; with nothing where another GPU or version wrote it."""
    for content in (known, b""):
        cache = _some(config.create_timing_cache(content), "create a timing cache", logger)
        if config.set_timing_cache(cache, ignore_mismatch=False):
            return
    raise BuildError(f"TensorRT refuses an empty timing cache. {words_of(logger)}")


def _add_profiles(builder: Any, config: Any, model: ModelFile, profiles: Sequence[Profile], logger: Any) -> None:
    if not profiles:
        raise BuildError("no profile is given; an engine takes a range of batch sizes, so it needs one")
    for profile in profiles:
        made = _some(builder.create_optimization_profile(), "create a profile", logger)
        sizes = (profile.least, profile.best, profile.most)
        made.set_shape("images", *(model.spec.input_shape(size) for size in sizes))
        if config.add_optimization_profile(made) < 0:
            raise BuildError(f"TensorRT refuses a profile of {sizes} pictures. {words_of(logger)}")


def _set_targets(library: Any, config: Any, capabilities: Sequence[str], logger: Any) -> None:
    """Which GPUs a TensorRT-RTX engine is built for; none leaves it the library's own set."""
    if not capabilities:
        return
    if not is_rtx(library):
        raise BuildError("TensorRT builds on the GPU that it builds for; ahead of time only tensorrt-rtx does")
    known = {
        _number(name): member for name, member in library.ComputeCapability.__members__.items() if "SM" in name
    }
    if unknown := [capability for capability in capabilities if capability not in known]:
        raise BuildError(
            f"TensorRT-RTX {library.__version__} does not build for compute capability {', '.join(unknown)}; "
            f"it does for {', '.join(known)}"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(known[capability], index):
            raise BuildError(f"TensorRT-RTX refuses compute capability {capability}. {words_of(logger)}")


def _number(name: str) -> str:
    """`SM86` as `8.6`."""
    return f"{name[2:-1]}.{name[-1]}"


def is_rtx(library: Any) -> bool:
    return bool(library.__name__ == "tensorrt_rtx")


def _strongly_typed(library: Any) -> int:
    return 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _some(value: Any, what: str, logger: Any) -> Any:
    if value is None:
        raise BuildError(f"TensorRT cannot {what}. {words_of(logger)}")
    return value


_loggers: dict[type, Any] = {}  # by the library's own class
_making = threading.Lock()


def logger_of(library: Any) -> Any:
    """The one logger of a library in this process, which keeps what it says instead of printing it.

    TensorRT writes to the first logger that it is given, and to no other after it.
    """
    with _making:
        if library.ILogger not in _loggers:
            _loggers[library.ILogger] = _make_logger(library)
        return _loggers[library.ILogger]


def _make_logger(library: Any) -> Any:
    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.words: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR, library.ILogger.WARNING):
                self.words.append(message)

    return Logger()


def words_of(logger: Any) -> str:
    """The last things that TensorRT said, once: the next error has words of its own."""
    words = "; ".join(logger.words)
    logger.words.clear()
    return f"It says: {words}" if words else "It does not say why"


def _progress_monitor(library: Any, progress: Callable[[str, int, int], None]) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.error: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self.tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell(phase, step + 1)
            return self.error is None  # else TensorRT gives the build up

        def phase_finish(self, phase: str) -> None:
            self.tell(phase, self.steps.pop(phase, 0))

        def tell(self, phase: str, done: int) -> None:
            """TensorRT would print and swallow an exception; Ctrl-C is one that is raised only in here."""
            try:
                progress(phase, done, self.steps.get(phase, done))
            except BaseException as error:
                self.error = self.error or error

    return Monitor()


def engine_key(library: Any, model: ModelFile, options: BuildOptions, gpu: Gpu | None) -> dict[str, str]:
    """Everything that an engine's bytes depend on: the key under which it is kept.

    Args:
        library: that builds it.
        model: that it is built from.
        options: that it is built with.
        gpu: that it is built on; None for one that is built ahead of time.
    """
    return {
        "onnx": hashlib.sha256(model.data).hexdigest(),
        "library": f"{library.__name__} {library.__version__}",
        "gpu": str(gpu[:3]) if gpu else "ahead of time",
        "driver": gpu.driver if gpu else "any",
        "system": f"{platform.system()} {platform.machine()}",
        "options": json.dumps(dataclasses.asdict(options), sort_keys=True),
        "fmengine": __version__,
    }
