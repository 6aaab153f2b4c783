"""The engines of this machine: loaded from the user's private cache, or built on its GPU and kept there."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from ..model.detector import DetectorFile
from ..model.file import ModelFile
from ..system.cache import Cache
from ..system.manifest import Key
from ..system.nvidia import Gpu
from .build import build_engine, load_timings, make_engine_key
from .engine import EngineFileError
from .profile import BuildOptions

log = logging.getLogger(__name__)
T = TypeVar("T")


def load_or_build_engine(
    library: Any, model: ModelFile | DetectorFile, options: BuildOptions, gpu: Gpu, load: Callable[[bytes], T]
) -> tuple[T, bytes, Key]:
    """Load an engine from the cache; build it where there is none, or where it does not load.

    Args:
        library: TensorRT or TensorRT-RTX.
        model: an FP16 model file.
        options: of the build.
        gpu: to build on.
        load: loads a serialised engine; raises EngineFileError.

    Returns:
        What `load` made, the serialised engine, and the key under which it is kept.

    Raises:
        BackendError: as `build_engine`.
    """
    cache, key = Cache(), make_engine_key(library, model, options, gpu)

    def build() -> bytes:
        log.warning(
            "building the %s engine of %s for %s; this is done once", library.__name__, model.spec.name, gpu.name
        )
        return build_engine(library, model, options, timings=load_timings(library, gpu, cache))

    engine = cache.get("engine", key, build)
    try:
        return load(engine), engine, key
    except EngineFileError as error:
        log.warning("building the engine again: %s", error)
    engine = build()
    loaded = load(engine)
    cache.store("engine", key, engine)
    return loaded, engine, key
