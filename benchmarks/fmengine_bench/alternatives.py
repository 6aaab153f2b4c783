"""Times what the CPU path could use instead: decoders, resizers and ways to call the network, on one core in turn.

    pip install opencv-python-headless kornia-rs
    python -m fmengine_bench.alternatives faces/

A library that is not installed is left out. Speed alone is no reason to take one: its pixels must be those of the
definition, and their distance stands beside each figure.
"""

import io
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.cli import main
from fmengine.cli.console import print_data
from fmengine.errors import DataError
from fmengine.image.decode import decode_bytes
from fmengine.image.jpeg import may_be_turned
from fmengine.image.preprocess import preprocess, preprocess_batch
from fmengine.jobs.sources import walk
from fmengine.model.file import load_model_file, resolve
from fmengine.model.spec import InputSpec
from fmengine.options import BackendOptions, Limits

from .timing import Call, random_inputs, time_in_turn

PICTURES = 256  # spread over the folder
BATCH = 64
SIDE = 80  # of the network's input
SPEC = InputSpec(SIDE, SIDE, fit="stretch")

One = Callable[[Any], npt.NDArray[np.uint8]]


def list_decoders() -> dict[str, One]:
    """List decoders from a file's bytes to `[H, W]` luma; the first is ours."""
    limits = Limits()

    def draft(data: bytes) -> npt.NDArray[np.uint8]:
        image = Image.open(io.BytesIO(data))
        image.draft("L", None)
        return np.asarray(image.convert("L"))

    found: dict[str, One] = {
        "libjpeg-turbo's luma (simplejpeg)": lambda data: decode_bytes(data, "gray", limits),
        'Pillow, draft("L")': draft,
        "Pillow, decoded in colour": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("L")),
    }
    if find_spec("cv2"):
        cv2: Any = import_module("cv2")  # untyped: its types change from version to version

        cv2.setNumThreads(1)
        found["OpenCV, IMREAD_GRAYSCALE"] = lambda data: cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE
        )
    if find_spec("kornia_rs"):
        from kornia_rs.io import decode_image_jpegturbo

        found["kornia-rs, jpegturbo, mono"] = lambda data: decode_image_jpegturbo(data, "mono")[..., 0]
    return found


def list_resizers() -> dict[str, One]:
    """List resizers from `[H, W]` luma to the network's size; the first is the definition, picture by picture."""
    found: dict[str, One] = {"Pillow, two passes": lambda pixels: preprocess(pixels, SPEC)[0]}
    if find_spec("cv2"):
        cv2: Any = import_module("cv2")  # untyped: its types change from version to version

        for name in ("INTER_LINEAR", "INTER_AREA"):
            found[f"OpenCV, {name}"] = partial(cv2.resize, dsize=(SIDE, SIDE), interpolation=getattr(cv2, name))
    if find_spec("kornia_rs"):
        from kornia_rs.imgproc import resize

        # It takes no gray pictures.
        found["kornia-rs, bilinear, as three channels"] = lambda pixels: resize(
            np.ascontiguousarray(np.broadcast_to(pixels[..., np.newaxis], (*pixels.shape, 3))),
            (SIDE, SIDE),
            "bilinear",
        )[..., 0]
    return found


def list_networks() -> dict[str, Call]:
    """List calls that run a batch through the shipped network on one thread."""
    file = load_model_file(resolve(None, ("int8",)))
    images = random_inputs(file.spec, BATCH)
    backend = OnnxRuntimeBackend.open(file, BackendOptions(threads=1))
    calls: dict[str, Call] = {"ONNX Runtime, run": lambda: backend.run(images)}
    for name, arena in (("its IO binding", True), ("run, without its memory arena", False)):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.enable_cpu_mem_arena = 1, arena
        session = onnxruntime.InferenceSession(file.data, settings, providers=["CPUExecutionProvider"])
        calls[f"ONNX Runtime, {name}"] = _run_bound(session, images) if arena else _run_plainly(session, images)
    if find_spec("openvino"):
        from fmengine.backend.openvino import OpenVinoBackend

        other = OpenVinoBackend.open(file, BackendOptions(threads=1))
        calls["OpenVINO"] = lambda: other.run(images)
    return calls


def _run_plainly(session: Any, images: npt.NDArray[np.uint8]) -> Call:
    return lambda: session.run(["logits", "probabilities"], {"images": images})


def _run_bound(session: Any, images: npt.NDArray[np.uint8]) -> Call:
    binding = session.io_binding()
    for name in ("logits", "probabilities"):
        binding.bind_output(name, "cpu")

    def call() -> None:
        binding.bind_cpu_input("images", images)  # another batch each time, as in a run
        session.run_with_iobinding(binding)
        binding.copy_outputs_to_cpu()

    return call


def _measure_distance(found: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> int:
    return int(np.abs(found.astype(int) - right).max())


def _print_table(title: str, calls: dict[str, Call], pictures: int, notes: dict[str, str]) -> None:
    print_data(title)
    for name, taken in time_in_turn(calls).items():
        print_data(f"  {name:<42}{1e3 * float(np.median(taken)) / pictures:9.1f}   {notes.get(name, '')}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def alternatives(folder: Path) -> None:
    """Time them on JPEG files of FOLDER, in microseconds a picture."""
    paths = [path for path in walk(str(folder)) if path.lower().endswith((".jpg", ".jpeg"))]
    if not paths:
        raise DataError(f"no JPEG files in {folder}; expected some")
    files = [Path(path).read_bytes() for path in paths[:: -(-len(paths) // PICTURES)]]
    files = [data for data in files if not may_be_turned(data)]  # which not every decoder undoes
    calls, notes, pixels = _compare_with_first(list_decoders(), files)
    _print_table(f"decode, {len(files)} files", calls, len(files), notes)
    calls, notes, _ = _compare_with_first(list_resizers(), pixels)
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    grouped = f"Pillow, those of one size together, {BATCH}"
    calls[grouped] = _repeat_over(lambda batch: preprocess_batch(batch, SPEC), batches)
    notes[grouped] = "the same bits"
    _print_table(f"resize to {SIDE}×{SIDE}", calls, len(files), notes)
    _print_table(f"the network, batches of {BATCH}, one thread", list_networks(), BATCH, {})


def _compare_with_first(
    ways: dict[str, One], inputs: list[Any]
) -> tuple[dict[str, Call], dict[str, str], list[npt.NDArray[np.uint8]]]:
    """Return a call of each way over all inputs, its distance from the first way, and the first way's pixels."""
    right = [next(iter(ways.values()))(item) for item in inputs]
    calls, notes = {}, {}
    for name, way in ways.items():
        calls[name] = _repeat_over(way, inputs)
        off = max(_measure_distance(way(item), made) for item, made in zip(inputs, right, strict=True))
        notes[name] = f"pixels differ by at most {off}"
    return calls, notes, right


def _repeat_over(way: Callable[[Any], Any], inputs: list[Any]) -> Call:
    def call() -> None:
        for item in inputs:
            way(item)

    return call


if __name__ == "__main__":
    main(alternatives, "python -m fmengine_bench.alternatives")
