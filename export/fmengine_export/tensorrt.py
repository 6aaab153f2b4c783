"""From an FP16 model file to a TensorRT engine in a file of its own."""

from contextlib import nullcontext
from pathlib import Path

from fmengine.cli.console import Progress
from fmengine.errors import OutputError
from fmengine.model.engine_file import SUFFIX, pack_engine
from fmengine.model.file import ModelFile
from fmengine.system.cache import Cache, write_private_file
from fmengine.system.files import check_target
from fmengine.trt.build import build_engine, load_timings, make_engine_key
from fmengine.trt.device import describe_gpu, use_gpu
from fmengine.trt.library import Library, load_library
from fmengine.trt.profile import BuildOptions

FORMS: dict[str, Library] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def make_engine_target(
    form: str, name: str, options: BuildOptions, folder: Path, device: int, overwrite: bool
) -> Path:
    """Make and check the path of an engine, `NAME.FORM.GPU.engine`, before it is built.

    Raises:
        UnavailableError: if the driver or the GPU is missing.
        OutputError: if it exists and must not be overwritten, or cannot be written.
    """
    gpu = describe_gpu(device) if form == "tensorrt" else None
    capability = gpu.capability if gpu else "+".join(options.compute_capabilities)
    target = folder / f"{name}.{form}.{capability or 'any'}{SUFFIX}"
    check_target(target, [target.suffix], overwrite=overwrite)
    return target


def export_engine(form: str, model: ModelFile, options: BuildOptions, target: Path, device: int) -> None:
    """Build an engine and write its file, the model file inside.

    Args:
        form: one of `FORMS`.
        model: an FP16 model file.
        options: batch sizes and targets.
        target: from `make_engine_target`.
        device: the GPU to build on; TensorRT-RTX builds ahead of time and needs none.

    Raises:
        UnavailableError: if the library, the driver or the GPU is missing.
        ModelError, BuildError: if TensorRT does not build it.
        OutputError: if it cannot be written.
    """
    library = load_library(FORMS[form])
    gpu = describe_gpu(device) if form == "tensorrt" else None
    outermost: list[str] = []

    def show(phase: str, done: int, total: int) -> None:
        if not outermost:
            outermost.append(phase)
        if phase in outermost:  # what is nested in it would make the bar jump
            bar.move_to(done, total)

    timings = load_timings(library, gpu, Cache()) if gpu else None
    bar = Progress(None, "steps", caption=f"building {target.name}")
    with bar, use_gpu(device) if form == "tensorrt" else nullcontext():
        engine = build_engine(library, model, options, progress=show, timings=timings)
    capabilities = (gpu.capability,) if gpu else options.compute_capabilities
    key = make_engine_key(library, model, options, gpu)
    try:
        write_private_file(target, pack_engine(form, key, capabilities, options.max_batch, engine, model.data))
    except OSError as error:
        raise OutputError(f"cannot write {target} ({len(engine):,} bytes): {error.strerror}") from error
