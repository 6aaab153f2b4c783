"""Build a TensorRT engine from a strongly typed FP16 model file, over the API that `tensorrt` 10.12 to 11 and
`tensorrt_rtx` share.

TensorRT reports failure by returning None, False or -1 and writing to its logger: every such value is checked
here, and the logger's messages are in the error.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import __version__
from ..errors import ModelError, RefusedModelError, UnavailableError
from ..model.detector import DetectorFile
from ..model.engine_file import AHEAD_OF_TIME
from ..model.file import ModelFile
from ..system.cache import Cache
from ..system.nvidia import Gpu
from .library import describe_library, describe_system, get_logger, is_rtx, take_messages
from .profile import BuildError, BuildOptions, Profile


class Timings(NamedTuple):
    """TensorRT's timing cache of a GPU: how fast its kernels are.

    Attributes:
        cached: from earlier builds; empty before the first.
        store: called with the timing cache after this build.
    """

    cached: bytes
    store: Callable[[bytes], None]


def load_timings(library: Any, gpu: Gpu, cache: Cache) -> Timings | None:
    """Load what earlier builds on a GPU measured of its kernels; None for TensorRT-RTX, which times nothing."""
    if is_rtx(library):
        return None
    key = {"library": describe_library(library), "gpu": str(gpu)}
    return Timings(cache.load("timings", key) or b"", lambda content: cache.store("timings", key, content))


def build_engine(
    library: Any,
    model: ModelFile | DetectorFile,
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
        timings: of this GPU's kernels, from `load_timings`; for TensorRT only.
        progress: called with the name of a phase, steps done, and steps in all.

    Returns:
        The serialised engine.

    Raises:
        ModelError: for a model that is not FP16, or that TensorRT cannot read.
        BuildError: with TensorRT's messages.
    """
    spec = model.spec
    if spec.precision != "fp16":
        raise ModelError(
            f"{model.path} is {spec.precision}; TensorRT is given the FP16 file (its parser takes no uint8 Q/DQ): "
            f"use {spec.name}.fp16.onnx, or export it with --precision fp16"
        )
    logger = get_logger(library)
    logger.messages.clear()
    try:
        builder = library.Builder(logger)
    except Exception as error:  # pybind's TypeError where the library cannot start
        raise UnavailableError(f"{library.__name__} does not start: {error}. {take_messages(logger)}") from error
    network = _require(builder.create_network(_make_network_flags(library)), "create a network", logger)
    _parse(library, network, model, logger)
    check_types(library, network)
    config = _require(builder.create_builder_config(), "create a configuration", logger)
    config.builder_optimization_level = options.optimization_level
    if options.workspace:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace)
    monitor = None if progress is None else _make_progress_monitor(library, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    _add_profiles(builder, config, model, options.profiles, logger)
    _set_targets(library, config, options.compute_capabilities, logger)
    if timings is not None:
        _set_timings(config, timings.cached, logger)
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    plan = _require(plan, "build the engine", logger)
    if timings is not None:
        timing_cache = _require(config.get_timing_cache(), "give its timing cache", logger)
        timings.store(bytes(_require(timing_cache.serialize(), "write its timing cache", logger)))
    return bytes(plan)


def check_types(library: Any, network: Any) -> None:
    """Check that every convolution and matrix product of a parsed network computes in half precision.

    It needs no GPU. Before the build nothing else shows it.

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
        raise BuildError(
            "the network has no convolution and no matrix product; expected a model of `fmengine export`"
        )


def _parse(library: Any, network: Any, model: ModelFile | DetectorFile, logger: Any) -> None:
    parser = library.OnnxParser(network, logger)
    if not parser.parse(model.data):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(f"node {error.node()}: {error.desc()}" for error in errors) or take_messages(logger)
        raise RefusedModelError(f"{library.__name__} cannot read {model.path}: {reasons}")


def _set_timings(config: Any, cached: bytes, logger: Any) -> None:
    """Set an earlier build's timing cache, or an empty one where another GPU or version wrote that."""
    for content in (cached, b""):
        cache = _require(config.create_timing_cache(content), "create a timing cache", logger)
        if config.set_timing_cache(cache, ignore_mismatch=False):
            return
    raise BuildError(f"TensorRT refuses an empty timing cache. {take_messages(logger)}")


def _add_profiles(
    builder: Any, config: Any, model: ModelFile | DetectorFile, profiles: Sequence[Profile], logger: Any
) -> None:
    if not profiles:
        raise BuildError("no profile is given; an engine takes a range of batch sizes, so it needs one")
    for profile in profiles:
        made = _require(builder.create_optimization_profile(), "create a profile", logger)
        shapes = profile.list_shapes(model.spec)
        made.set_shape("images", *shapes)
        if config.add_optimization_profile(made) < 0:
            raise BuildError(f"TensorRT refuses a profile of {shapes}. {take_messages(logger)}")


def _set_targets(library: Any, config: Any, capabilities: Sequence[str], logger: Any) -> None:
    """Set the GPUs that a TensorRT-RTX engine is built for; without any it is the library's own set."""
    if not capabilities:
        return
    if not is_rtx(library):
        raise BuildError("TensorRT builds on the GPU that it builds for; ahead of time only tensorrt-rtx does")
    supported = {
        _format_capability(name): member
        for name, member in library.ComputeCapability.__members__.items()
        if "SM" in name
    }
    if unknown := [capability for capability in capabilities if capability not in supported]:
        raise BuildError(
            f"TensorRT-RTX {library.__version__} does not build for compute capability {', '.join(unknown)}; "
            f"it does for {', '.join(supported)}"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(supported[capability], index):
            raise BuildError(f"TensorRT-RTX refuses compute capability {capability}. {take_messages(logger)}")


def _format_capability(name: str) -> str:
    """Return `8.6` for `SM86`."""
    return f"{name[2:-1]}.{name[-1]}"


def _make_network_flags(library: Any) -> int:
    return 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _require(value: Any, what: str, logger: Any) -> Any:
    if value is None:
        raise BuildError(f"TensorRT cannot {what}. {take_messages(logger)}")
    return value


def _make_progress_monitor(library: Any, progress: Callable[[str, int, int], None]) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.error: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self.report(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self.report(phase, step + 1)
            return self.error is None  # else TensorRT cancels the build

        def phase_finish(self, phase: str) -> None:
            self.report(phase, self.steps.pop(phase, 0))

        def report(self, phase: str, done: int) -> None:
            """Report progress, and keep an exception, also Ctrl-C's: TensorRT would print and drop it."""
            try:
                progress(phase, done, self.steps.get(phase, done))
            except BaseException as error:
                self.error = self.error or error

    return Monitor()


def make_engine_key(
    library: Any, model: ModelFile | DetectorFile, options: BuildOptions, gpu: Gpu | None
) -> dict[str, str]:
    """Make the key under which an engine is kept: everything that its bytes depend on.

    Args:
        library: that builds it.
        model: that it is built from.
        options: that it is built with.
        gpu: that it is built on; None for one that is built ahead of time.
    """
    return {
        "onnx": hashlib.sha256(model.data).hexdigest(),
        "library": describe_library(library),
        "gpu": gpu.model if gpu else AHEAD_OF_TIME,
        "driver": gpu.driver if gpu else "any",
        "system": describe_system(),
        "options": json.dumps(dataclasses.asdict(options), sort_keys=True),
        "fmengine": __version__,
    }
