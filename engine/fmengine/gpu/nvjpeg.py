"""Decode JPEG files on the GPU with nvImageCodec: off by default, because its pixels may differ.

Its inverse transform and chroma upsampling on the GPU are not libjpeg-turbo's; `fmengine doctor --verify` measures
how far pixels and answers differ on the GPU at hand. Everything but plain JPEGs stays with the CPU.
"""

import logging
import threading
from typing import Any

from ..errors import UnavailableError, format_install_command
from ..types import Color
from .context import Context

log = logging.getLogger(__name__)
INSTALL = format_install_command("gpu,nvjpeg")


class JpegDecoder:
    """One decoder and one stream, for one thread at a time. Make, use and free it within the context."""

    def __init__(self, context: Context, color: Color) -> None:
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise UnavailableError(
                f"nvImageCodec cannot be imported ({error}); install it with: {INSTALL}"
            ) from error
        self._codec = nvimgcodec
        self._parameters = make_parameters(nvimgcodec, color)
        self._stream = context.cuda.Stream(context.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        try:
            self._decoder: Any = nvimgcodec.Decoder(device_id=context.index)
        except Exception as error:  # its errors have no base class of their own
            raise UnavailableError(f"nvImageCodec does not start on GPU {context.index}: {error}") from error
        self._lock = threading.Lock()

    def decode(self, data: bytes) -> Any:
        """Decode to an image in device memory, uint8 `[H, W, C]`; None where nvImageCodec does not decode it."""
        with self._lock:
            try:
                stream = self._codec.CodeStream(data)
                image = self._decoder.decode(stream, params=self._parameters, cuda_stream=self._stream.handle)
            except Exception as error:  # the CPU's decoder decides whether a file can be decoded
                log.debug("nvImageCodec refuses a file: %s", error)
                image = None
            self._stream.synchronize()
        return image

    def free(self) -> None:
        """Release everything."""
        self._decoder = self._stream = None


def make_parameters(codec: Any, color: Color) -> Any:
    """Make nvImageCodec's parameters: decode to luma as it is stored for a gray model, else to RGB."""
    gray = color == "gray"
    return codec.DecodeParams(
        apply_exif_orientation=False,  # such files stay with the CPU
        color_spec=codec.ColorSpec.GRAY if gray else codec.ColorSpec.SRGB,
        sample_format=codec.SampleFormat.I_Y if gray else codec.SampleFormat.I_RGB,
    )
