"""Copy images one after the other into pinned memory, large ones by several threads.

One thread moves 7 GB/s into pinned memory and eight move 51, measured beside an H200, which takes 55.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..system.cores import usable_cores

THREADS = 8  # at most
PARALLEL_BYTES = 4 * 1024 * 1024  # from which on several threads copy
CHUNK_BYTES = 2 * 1024 * 1024  # that a thread copies at once


class Copier:
    """Copies images; used by one thread at a time, and its own threads wait from the first large copy on."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def copy(self, images: Sequence[npt.NDArray[np.uint8]], target: npt.NDArray[np.uint8]) -> None:
        """Copy the pixels of images, one image after the other, to a target that has just their size."""
        flat = [image.reshape(-1) for image in images]
        if len(target) < PARALLEL_BYTES or usable_cores() == 1:
            np.concatenate(flat, out=target)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(THREADS, usable_cores()), "fmengine-copy")
        chunks = [
            source[begin : begin + CHUNK_BYTES] for source in flat for begin in range(0, len(source), CHUNK_BYTES)
        ]
        ends = np.cumsum([len(chunk) for chunk in chunks]).tolist()
        places = [target[end - len(chunk) : end] for chunk, end in zip(chunks, ends, strict=True)]
        list(self._threads.map(np.copyto, places, chunks))  # which raises what a copy raised

    def free(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
