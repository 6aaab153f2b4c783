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
from fmengine.gpu.launch import DESCRIPTOR, Geometry, Plan

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
    """The three launches, run on the CPU."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        if (size := self._library.size_of_descriptor()) != DESCRIPTOR.itemsize:
            raise RuntimeError(f"struct Descriptor has {size} bytes, its NumPy type {DESCRIPTOR.itemsize}")

    def run(
        self, geometries: Sequence[Geometry], base: int, channels: int, height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        """Preprocess a batch that lies at the address `base`; every buffer has just the size of the plan."""
        plan = Plan.make(geometries, channels, height, width)
        tables = np.full(plan.tables_size, 0xA5, np.uint8)
        workspace = np.full(plan.workspace_size, 0xA5, np.uint8)
        images = np.full(plan.shape, 0xA5, np.uint8)
        buffers = [plan.descriptors, tables, workspace, images]
        for launch in plan.list_launches(base, *(buffer.ctypes.data for buffer in buffers)):
            values = [np.array(argument) for argument in launch.arguments]
            pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            if self._library.launch(launch.kernel.encode(), launch.grid, *launch.block, pointers):
                raise RuntimeError(f"cannot launch {launch.kernel}")
        return images


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
