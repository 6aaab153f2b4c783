"""The preprocessing kernel on the CPU: compiled by g++ from the `.cu` that GPUs run, called through ctypes."""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fmengine.gpu
from fmengine.gpu.launch import ANYWHERE, BATCH, PICTURE, SHOWN, Geometry, InputShape, Launch, describe_pictures
from fmengine.gpu.plan import DESCRIPTOR, Plan
from fmengine.gpu.publish import Published, make_publish_launch
from fmengine.gpu.tables import Tables

HERE = Path(__file__).parent
SOURCE = Path(fmengine.gpu.__file__).parent / "preprocess.cu"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compile_kernel(folder: Path, source: str | None = None, *, sanitize: bool = False) -> Path:
    """Compile the kernel for the CPU into `folder`, unless the same was compiled there before.

    Args:
        folder: for the shared library.
        source: another text than preprocess.cu's, such as one with a planted fault.
        sanitize: under the address and undefined-behaviour sanitizers; the process that loads it needs
            `sanitized_environment()`.
    """
    text = SOURCE.read_text(encoding="utf-8") if source is None else source
    options = ["-g", "-O1", *SANITIZERS] if sanitize else ["-O2"]
    parts = [
        text,
        *(path.read_text(encoding="utf-8") for path in (HERE / "cuda_host.h", HERE / "host.cpp")),
        *options,
    ]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = folder.resolve() / f"kernel-{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kernel = library.with_suffix(".cu")
        kernel.write_text(text, encoding="utf-8")
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", *options]
        command += ["-include", str(HERE / "cuda_host.h"), f'-DKERNEL="{kernel}"', str(HERE / "host.cpp")]
        subprocess.run([*command, "-o", str(partial)], check=True, timeout=120)
        partial.replace(library)
    return library


def sanitized_environment() -> dict[str, str]:
    """What a Python process needs to load a sanitized library."""
    runtime = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python keeps memory until it ends, which is no leak; numpy's own libraries are not under test.
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return os.environ | {"LD_PRELOAD": ":".join(runtime)} | options


class HostKernel:
    """The launches, run on the CPU."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        sizes = (ctypes.c_size_t * 4)()
        self._library.sizes_of_structs(sizes)
        if list(sizes) != (expected := [kind.itemsize for kind in (PICTURE, BATCH, SHOWN, DESCRIPTOR)]):
            raise RuntimeError(f"the structs have {list(sizes)} bytes, their NumPy types {expected}")
        self._tables: dict[Tables, npt.NDArray[np.uint8]] = {}

    def run(
        self, geometries: Sequence[Geometry], base: int, channels: int, height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        """Preprocess a batch that lies at the address `base`, as the runtime would."""
        shape = InputShape(channels, height, width)
        if fits(geometries, shape):
            return self.preprocess(geometries, base, shape)[0]
        return self.preprocess_separately(geometries, base, shape)[0]

    def preprocess(
        self,
        geometries: Sequence[Geometry],
        base: int,
        shape: InputShape,
        *,
        begin: int = -ANYWHERE,
        end: int = ANYWHERE,
        bands: int = 3,
        more: int = 1,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """Preprocess a batch by the one launch; every buffer has just the size that is needed.

        Args:
            geometries: of the pictures.
            base: address that they count from.
            shape: of the input.
            begin: bytes from there, from which on may be read.
            end: where that ends.
            bands: blocks a picture, at most.
            more: pictures that the launch has blocks for, and which are not there.
        """
        tables = Tables.for_input(shape)
        pictures = np.zeros(len(geometries), PICTURE)
        describe_pictures(geometries, pictures)
        batch = np.zeros(1, BATCH)
        batch["base"], batch["begin"], batch["end"], batch["count"] = base, begin, end, len(geometries)
        return self.launch_preprocess(tables, batch, pictures, bands=bands, more=more)

    def launch_preprocess(
        self, tables: Tables, batch: npt.NDArray[np.void], pictures: npt.NDArray[np.void], *, bands: int, more: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        images = np.full((len(pictures), *tables.shape), 0xA5, np.uint8)
        shown = np.full(len(pictures) * SHOWN.itemsize, 0xA5, np.uint8).view(SHOWN)
        if tables not in self._tables:
            self._tables = {tables: np.full(tables.size, 0xA5, np.uint8)}
            self._launch(tables.list_launches(self._tables[tables].ctypes.data))
        # There is room for those that are not there, and nothing in it.
        room = np.concatenate([pictures, np.full(more * PICTURE.itemsize, 0xA5, np.uint8).view(PICTURE)])
        addresses = [part.ctypes.data for part in (self._tables[tables], batch, room, images, shown)]
        most = len(pictures) + more
        self._launch([tables.make_launch(*addresses, most=most, bands=tables.choose_bands(most, bands * most))])
        return images, shown

    def preprocess_separately(
        self, geometries: Sequence[Geometry], base: int, shape: InputShape
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """Preprocess a batch by the three launches."""
        plan = Plan.make(geometries, shape)
        tables = np.full(plan.tables_size, 0xA5, np.uint8)
        workspace = np.full(plan.workspace_size, 0xA5, np.uint8)
        images = np.full(plan.shape, 0xA5, np.uint8)
        shown = np.full(len(geometries) * SHOWN.itemsize, 0xA5, np.uint8).view(SHOWN)
        buffers = [plan.descriptors, tables, workspace, images, shown]
        self._launch(plan.list_launches(base, *(buffer.ctypes.data for buffer in buffers)))
        return images, shown

    def publish(
        self,
        images: npt.NDArray[np.uint8],
        shown: npt.NDArray[np.void],
        logits: npt.NDArray[np.float32],
        probabilities: npt.NDArray[np.float32],
        counters: npt.NDArray[np.uint32],
        *,
        more: int = 1,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8], int]:
        """Publish answers; returns logits, probabilities, marks, and the number that says that they are there."""
        batch = np.zeros(1, BATCH)
        batch["count"] = len(images)
        outputs = np.full((2, *logits.shape), np.nan, np.float32)
        marks, published = np.full(len(images), 0xA5, np.uint8), np.zeros(1, np.uint32)
        addresses = Published(*(part.ctypes.data for part in (outputs[0], outputs[1], marks, published)))
        inputs = [part.ctypes.data for part in (batch, shown, images, logits, probabilities)]
        shape = InputShape(*images.shape[1:])
        launch = make_publish_launch(
            shape, logits.shape[1], *inputs, addresses, counters.ctypes.data, most=len(images) + more
        )
        self._launch([launch])
        return outputs[0], outputs[1], marks, int(published[0])

    def _launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            values = [np.array(argument) for argument in launch.arguments]
            pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            if self._library.launch(launch.kernel.encode(), launch.grid, *launch.block, pointers):
                raise RuntimeError(f"cannot launch {launch.kernel}")


def fits(geometries: Sequence[Geometry], shape: InputShape) -> bool:
    """Whether the one launch takes all boxes."""
    longest = Tables.for_input(shape).longest
    boxes = [geometry.box for geometry in geometries]
    return all(max(right - left, bottom - top) <= longest for left, top, right, bottom in boxes)


def pack(
    pictures: Sequence[npt.NDArray[np.uint8]], boxes: Sequence[tuple[int, int, int, int]], **options: Any
) -> tuple[npt.NDArray[np.uint8], list[Geometry]]:
    """Put pictures, `[H, W]` or `[H, W, C]`, one after the other into one buffer.

    Args:
        pictures: of any sizes.
        boxes: of each.
        options: `padding`, bytes between the rows of each picture, and `bgr`, whether blue comes first.
    """
    paddings = options.get("padding", [0] * len(pictures))
    orders = options.get("bgr", [False] * len(pictures))
    parts, geometries, offset = [], [], 0
    for picture, box, padding, bgr in zip(pictures, boxes, paddings, orders, strict=True):
        height, width, channels = (*picture.shape, 1)[:3]
        rows = picture.reshape(height, width * channels)
        stride = width * channels + padding
        padded = np.full((height, stride), 0x5A, np.uint8)
        padded[:, : width * channels] = rows
        # The last row ends with its last pixel, so that a read past it is past the buffer, or in the next picture.
        part = padded.ravel()[: (height - 1) * stride + width * channels]
        geometries.append(Geometry(offset, height, width, stride, channels, bgr, box))
        parts.append(part)
        offset += len(part)
    return np.concatenate(parts), geometries
