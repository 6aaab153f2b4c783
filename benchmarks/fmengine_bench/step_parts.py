"""Takes a training step apart: its parts, each alone, their time, their operations and their arithmetic."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fmengine_train.feed import Feed, HostFeed, ResidentFeed, Rows
from fmengine_train.steps import Steps
from fmengine_train.trainer import Trainer

from .timing import Call

# What the host has to wait for on a GPU: a value, or a shape that depends on values.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
# What computes nothing, beside views: room is made, memory takes another shape, a profiler is told.
SILENT = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
SILENT |= {"_record_function_enter_new", "_record_function_exit"}
DRAWS = 8  # batches: by parts, chance decides how many operations distort one
SIDES = {"cuda": 8192, "cpu": 2048}  # of the matrices that are multiplied
PEAK_ROUNDS, PEAK_SECONDS = 5, 0.2


@dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
        call: runs it.
        steps: how many steps' share one call runs.
    """

    call: Call
    steps: int = 1


@dataclass(frozen=True)
class Count:
    """What one step asks for.

    Attributes:
        operations: calls of PyTorch's that compute or copy; on a GPU each is a kernel's launch, of some a few.
        waits: those among them that read a value, or whose shape depends on one: a GPU's host waits for them.
    """

    operations: float
    waits: float


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of products and convolutions.

    Attributes:
        step: floating-point operations of a step, forward and backward.
        peak: of them a second, in a product of large matrices.
        share: of the peak, in forward and backward alone, and in the whole step.
    """

    step: int
    peak: float
    share: dict[str, float]


def make_parts(trainer: Trainer, steps: Steps, feed: Feed, batches: Sequence[Rows]) -> dict[str, Part]:
    """Make the parts of a step by name, each but the first on one batch again and again.

    Weights stay as they are where the learning rate is 0.

    Args:
        trainer: whose pictures are taken.
        steps: the trainer's, or others of the same weights.
        feed: that the batches of an epoch are gathered by.
        batches: of the epoch.
    """
    batch = next(iter(trainer.feed.take(batches[:1])))
    inputs = steps.distort(batch)

    def gather() -> None:
        for _ in feed.take(batches):
            pass

    def propagate() -> None:
        steps.optimizer.zero_grad(set_to_none=True)
        _, loss = steps.compute_loss(*inputs)
        steps.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def optimise() -> None:  # how `Steps.update` ends; it begins as `propagate` does
        steps.scaler.unscale_(steps.optimizer)
        nn.utils.clip_grad_norm_(steps.guided.parameters(), steps.recipe.clip_norm)
        steps.scaler.step(steps.optimizer)
        steps.scaler.update()

    return {
        "data": Part(gather, len(batches)),
        "augmentation": Part(lambda: steps.distort(batch)),
        "forward and backward": Part(propagate),
        "optimiser": Part(optimise),
        "moving average": Part(lambda: steps.ema.update_parameters(steps.guided.student)),
    }


def count_parts(trainer: Trainer, batches: Sequence[Rows], as_on: str) -> dict[str, Count]:
    """Count what each part asks for, `as_on` a `cpu` or a `gpu`, whichever the trainer's device is.

    On a GPU pictures are gathered where they lie, whole batches are distorted, and the optimizer is fused.
    """
    gpu = as_on == "gpu"
    of_weights = (trainer.guided, trainer.parallel, trainer.ema, trainer.optimizer)
    steps = Steps(trainer.recipe, *of_weights, trainer.loss, trainer.dtype, trainer.device, masked=gpu)
    groups = trainer.optimizer.param_groups
    kept = [group["fused"] for group in groups]
    for group in groups:
        group["fused"] = gpu or None
    try:
        parts = make_parts(trainer, steps, _open_feed(trainer, gpu), batches)
        return {name: count(part, DRAWS if name == "augmentation" else 1) for name, part in parts.items()}
    finally:
        for group, fused in zip(groups, kept, strict=True):
            group["fused"] = fused


def _open_feed(trainer: Trainer, gpu: bool) -> Feed:
    if gpu == (trainer.device.type == "cuda"):
        return trainer.feed
    data = trainer.data
    arrays = (data.pixels, data.targets, data.answers, trainer.hints)
    return ResidentFeed(arrays, trainer.device) if gpu else HostFeed(arrays)


def count(part: Part, calls: int = 1) -> Count:
    """Count a part's operations, from when it has run once: some set up what they need the first time."""
    part.call()
    with _Counter() as counter:
        for _ in range(calls):
            part.call()
    return Count(counter.operations / calls / part.steps, counter.waits / calls / part.steps)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations as they reach a device, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations += not func.is_view and name not in SILENT
        self.waits += name in WAITS
        return func(*args, **(kwargs or {}))


def measure_arithmetic(call: Call, milliseconds: dict[str, float], trainer: Trainer) -> Arithmetic:
    """Hold a step's forward and backward, and whatever they are part of, against the device's peak."""
    flops, peak = count_flops(call), measure_peak(trainer.device, trainer.dtype)
    return Arithmetic(flops, peak, {name: 1e3 * flops / taken / peak for name, taken in milliseconds.items()})


def count_flops(call: Call) -> int:
    """Count the floating-point operations of products and convolutions in a call, two for each multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return int(counter.get_total_flops())


def time_call(call: Call, device: torch.device, seconds: float) -> float:
    """Time a call in milliseconds: their mean over so many seconds, with one wait for the device at the end."""
    call()
    wait = make_wait(device)
    wait()
    began = time.perf_counter()
    calls = 0
    while not calls or time.perf_counter() - began < seconds:
        call()
        calls += 1
    wait()
    return 1e3 * (time.perf_counter() - began) / calls


def make_wait(device: torch.device) -> Callable[[], None]:
    """Make a call that waits until a device has done all it was asked for."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations a second in a product of large matrices: the best of several rounds."""
    side = SIDES[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)
    rounds = (time_call(lambda: matrix @ matrix, device, PEAK_SECONDS) for _ in range(PEAK_ROUNDS))
    return 2 * side**3 / (min(rounds) / 1e3)
