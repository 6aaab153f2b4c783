"""Trains one model in several processes, on any number of GPUs and nodes:

    torchrun --nproc-per-node 8 -m -- fmengine train faces/ --batch-size 1024 --run runs/mine

Each process takes its share of every batch, and gradients and BatchNorm's statistics are taken over all of it. So
the weights are those of one process with the same batch size, up to rounding, where nothing is drawn at random;
augmentation and dropout draw differently in each process.

Where one process ends, or its network does, the others say so and end too (`peers.py`).
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fmengine.errors import DataError
from fmengine.wording import pluralise

from .peers import convert_peer_errors, read_timeout, tell_torchrun

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Describes this process among those that train one model.

    Attributes:
        rank: from 0; the first one alone writes files and messages.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def slice_batch(self, batch_size: int) -> slice:
        """Return which of a batch's pictures are this process's.

        Raises:
            DataError: if the batch cannot be shared evenly, or leaves BatchNorm fewer than two pictures.
        """
        if batch_size % self.size or batch_size // self.size < 2:
            batch = f"a batch of {pluralise(batch_size, 'picture')}"
            raise DataError(
                f"{batch} cannot be shared by {self.size} processes; expected a multiple of {self.size}, "
                f"at least {2 * self.size}: change --batch-size, which counts the pictures of all, or the "
                "number of processes"
            )
        return slice(self.rank, None, self.size)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a model for training: its gradients are the mean over all processes."""
        if self.size == 1:
            return model
        # BatchNorm's buffers need no broadcast: every process computes the same ones.
        ids = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a new name that older versions do not know
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def check_agreement(self, what: str, value: object) -> None:
        """Check that all processes have the same value, as they must to make the same steps.

        Raises:
            DataError: in every process, if they differ.
        """
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        if any(other != value for other in values):
            raise DataError(
                f"the processes differ in {what}: {_list_differences(values)}; expected the same pictures on "
                "every node, the same options, and a --run folder on a disk that all of them share"
            )

    def take_first(self, value: T) -> T:
        """Return the first process's value in all: other processors round otherwise."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, *figures: float) -> list[float]:
        """Sum each figure over all processes."""
        if self.size == 1:
            return list(figures)
        # On the CPU under gloo, on the current GPU under NCCL.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        sums = torch.tensor(figures, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return list(sums.tolist())


def _list_differences(values: list[Any]) -> str:
    """List the values that are not alike; of dictionaries with the same keys, those under each key."""
    if not isinstance(values[0], dict):
        return ", ".join(dict.fromkeys(map(str, values)))
    each = {name: dict.fromkeys(str(value[name]) for value in values) for name in values[0]}
    return ", ".join(f"{name} {' or '.join(texts)}" for name, texts in each.items() if len(texts) > 1)


@contextmanager
def join(device: torch.device, folder: Path) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started, if it did; yield this process's rank and size, and its device.

    Args:
        device: to train on.
        folder: of the run that an error says how to go on with.

    Raises:
        DataError: for a FMENGINE_PEER_TIMEOUT that is no time.
        PeerError: if another process ends before all are done, or cannot be reached.
    """
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        yield World(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    seconds = read_timeout()
    with tell_torchrun(), convert_peer_errors(seconds, folder):
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=seconds))
        try:
            world = World(dist.get_rank(), size)
            yield world, device
            world.sum(0)  # waits for all, so that none ends well where the first one's last files were not written
        finally:
            dist.destroy_process_group()


def synchronize(model: nn.Module, world: World, device: torch.device) -> None:
    """Make every BatchNorm inside a model take its statistics over all processes; names and weights stay."""
    if world.size == 1:
        return
    if device.type == "cuda":
        # In place, for the model itself is no BatchNorm.
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                ours = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                ours.load_state_dict(child.state_dict())
                setattr(module, name, ours)


class _Sum(torch.autograd.Function):
    """Sums over all processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Normalises as `nn.SyncBatchNorm` does on accelerators, for processes on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        levels = x.float()
        processes = dist.get_world_size()
        moments = torch.stack([levels.mean((0, 2, 3)), levels.square().mean((0, 2, 3))])
        mean, square = _Sum.apply(moments) / processes
        variance = square - mean.square()
        with torch.no_grad():
            count = processes * x.numel() / x.shape[1]
            momentum = 0.1 if self.momentum is None else self.momentum
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        shape = (1, -1, 1, 1)
        factor = self.weight * torch.rsqrt(variance + self.eps)
        normalised = (levels - mean.view(shape)) * factor.view(shape) + self.bias.view(shape)
        result: Tensor = normalised.to(x.dtype)
        return result
