"""Brings batches of pictures to the device that trains, so that it does not wait for them.

A GPU holds all pictures as bytes, where they fit, and gathers its batches itself. Where they do not fit, a thread
gathers blocks of batches into pinned memory, and copies one while the one before it is trained on. On the CPU the
pictures stay where they are.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]
Batch = list[Tensor]  # a tensor for each array, on the device that trains

RESIDENT_SHARE = 0.5  # of the free GPU memory, which the pictures may take
BLOCK_BYTES = 256 << 20  # that are gathered and copied at once


class Feed(Protocol):
    """A source of batches of some arrays, `[N, …]` each, such as pictures and their labels."""

    def take(self, batches: Sequence[Rows]) -> Iterator[Batch]:
        """Yield these rows of every array, batch by batch."""
        ...

    def shrink(self) -> "Feed | None":
        """Return a feed of the same arrays that takes less GPU memory; None if there is none."""
        ...


class HostFeed:
    """Gathers batches in the host's memory, for training on the CPU."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        self._arrays = arrays

    def take(self, batches: Sequence[Rows]) -> Iterator[Batch]:
        for rows in batches:
            yield [torch.from_numpy(array[rows]) for array in self._arrays]

    def shrink(self) -> Feed | None:
        return None


class ResidentFeed:
    """Holds all pictures on a device, and gathers there."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> None:
        self._arrays = arrays
        self._held = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]

    def take(self, batches: Sequence[Rows]) -> Iterator[Batch]:
        device = self._held[0].device
        rows = torch.from_numpy(np.concatenate(batches)).to(device)  # of all batches in one copy
        for part in torch.split(rows, [len(batch) for batch in batches]):
            yield [tensor.index_select(0, part) for tensor in self._held]

    def shrink(self) -> Feed | None:
        device = self._held[0].device
        self._held = []
        return BlockFeed(self._arrays, device, BLOCK_BYTES)


class BlockFeed:
    """Gathers blocks of batches on the host, a block ahead of the device."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], device: torch.device, block_bytes: int) -> None:
        self._arrays, self._device, self._block_bytes = arrays, device, block_bytes

    def take(self, batches: Sequence[Rows]) -> Iterator[Batch]:
        blocks = self._split(batches)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._gather, blocks[0])
            for block, following in zip(blocks, [*blocks[1:], None], strict=True):
                gathered = ahead.result()
                if following is not None:
                    ahead = pool.submit(self._gather, following)
                # From pinned memory a copy waits for nothing, and PyTorch frees that memory after it.
                copied = [tensor.to(self._device, non_blocking=True) for tensor in gathered]
                sizes = [len(rows) for rows in block]
                yield from map(list, zip(*(torch.split(tensor, sizes) for tensor in copied), strict=True))

    def _split(self, batches: Sequence[Rows]) -> list[Sequence[Rows]]:
        picture = sum(array[:1].nbytes for array in self._arrays)
        count = max(1, self._block_bytes // (picture * len(batches[0])))  # batches a block
        return [batches[start : start + count] for start in range(0, len(batches), count)]

    def _gather(self, block: Sequence[Rows]) -> list[Tensor]:
        rows = np.concatenate(block)
        tensors = [torch.from_numpy(array[rows]) for array in self._arrays]
        return [tensor.pin_memory() for tensor in tensors] if self._device.type == "cuda" else tensors

    def shrink(self) -> Feed | None:
        largest = max(array[:1].nbytes for array in self._arrays)
        smaller = self._block_bytes // 4
        return BlockFeed(self._arrays, self._device, smaller) if smaller > largest else None


def open_feed(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> Feed:
    """Choose where batches come from: the host's memory, the device's, or blocks between them."""
    if device.type != "cuda":
        return HostFeed(arrays)
    free, _ = torch.cuda.mem_get_info(device)
    if sum(array.nbytes for array in arrays) <= RESIDENT_SHARE * free:
        return ResidentFeed(arrays, device)
    return BlockFeed(arrays, device, BLOCK_BYTES)
