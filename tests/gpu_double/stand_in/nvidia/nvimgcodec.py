"""Found in place of nvImageCodec by the processes that run these tests, and by no other: Pillow behind its names.

It decodes into device memory on the stream that it is given, late, as a GPU may.
"""

import ctypes
import io
from enum import Enum
from typing import Any

import numpy as np
from cuda.bindings import driver
from PIL import Image as Pillow


class ColorSpec(Enum):
    GRAY = 1
    SRGB = 2


class SampleFormat(Enum):
    I_Y = 1
    I_RGB = 2


class DecodeParams:
    def __init__(
        self, *, apply_exif_orientation: bool, color_spec: ColorSpec, sample_format: SampleFormat
    ) -> None:
        self.gray = color_spec is ColorSpec.GRAY
        assert self.gray == (sample_format is SampleFormat.I_Y)


class CodeStream:
    def __init__(self, data: bytes) -> None:
        self.data = data


class Image:
    """Device memory that frees itself, in whichever thread."""

    def __init__(self, pixels: np.ndarray, device: int, stream: int) -> None:
        self.shape, self.device, self.size = pixels.shape, device, pixels.nbytes
        _, self.pinned = driver.cuMemHostAlloc(self.size, 0)
        ctypes.memmove(self.pinned, np.ascontiguousarray(pixels).ctypes.data, self.size)
        _, self.memory = driver.cuMemAlloc(self.size)
        driver.cuMemcpyHtoDAsync(self.memory, self.pinned, self.size, stream)

    def __del__(self) -> None:
        _, context = driver.cuDevicePrimaryCtxRetain(self.device)
        driver.cuCtxPushCurrent(context)
        driver.cuMemFree(self.memory)
        driver.cuMemFreeHost(self.pinned)
        driver.cuCtxPopCurrent()
        driver.cuDevicePrimaryCtxRelease(self.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = (int(self.memory), False)
        return {"shape": self.shape, "typestr": "|u1", "data": address, "version": 3, "stream": None}


class Decoder:
    def __init__(self, *, device_id: int) -> None:
        self.device_id = device_id

    def decode(self, stream: CodeStream, *, params: DecodeParams, cuda_stream: int) -> Image | None:
        try:
            image = Pillow.open(io.BytesIO(stream.data))
            if params.gray:
                image.draft("L", None)
            pixels = np.asarray(image.convert("L" if params.gray else "RGB"))
        except OSError:
            return None
        return Image(pixels.reshape(*pixels.shape[:2], -1), self.device_id, cuda_stream)
