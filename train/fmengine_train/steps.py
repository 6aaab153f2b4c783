"""Trains on one batch at a time: distortions, forward, backward, and what changes the weights.

On a GPU a step asks nothing of the host and tells it nothing, so that the host runs ahead of it; it is captured
once, and replayed as a CUDA graph. On the CPU there is nobody to wait for: each loss is looked at.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmengine.cli.console import warn

from .augment import augment, mix
from .augment_masked import augment_masked, mix_masked
from .feed import Batch
from .hints import Guided, compute_hint_loss
from .optimize import MovingAverage
from .recipe import Recipe

Distort = Callable[[Batch], tuple[Tensor, ...]]
ComputeLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

WARM_UP = 3  # steps before one is captured: by then libraries and optimizers hold all that they allocate


@dataclass(frozen=True)
class Totals:
    """Sums over the pictures of an epoch.

    Attributes:
        loss: of all pictures together.
        seen: pictures.
        right: pictures that are answered as they are labelled.
        labelled: pictures with a label.
    """

    loss: float
    seen: float
    right: float
    labelled: float


class Steps:
    """Makes the steps of a run.

    Args:
        recipe: the hyperparameters.
        guided: the network that is trained.
        parallel: the same, wrapped for several processes.
        ema: the average of its weights.
        optimizer: of its weights.
        loss: of logits and answers.
        dtype: of mixed precision.
        device: to train on.
        masked: distort with `augment_masked`, and wait for nothing; by default, on a GPU.

    Attributes:
        distort: gives a batch's distorted images in float32, and its answers and hints, perhaps blended in pairs.
        compute_loss: of images, answers and hints, gives logits `[N, K]`, and the loss that is minimised.
    """

    def __init__(
        self,
        recipe: Recipe,
        guided: Guided,
        parallel: nn.Module,
        ema: MovingAverage,
        optimizer: torch.optim.Optimizer,
        loss: nn.CrossEntropyLoss,
        dtype: torch.dtype,
        device: torch.device,
        masked: bool | None = None,
    ) -> None:
        self.recipe, self.guided, self.parallel, self.ema = recipe, guided, parallel, ema
        self.optimizer, self.loss, self.dtype, self.device = optimizer, loss, dtype, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self._masked = device.type == "cuda" if masked is None else masked
        self._generator = torch.Generator()  # of the host
        self._totals = torch.zeros(4, dtype=torch.float64, device=device)
        # A scaler looks at the gradients on the host, and other processes are waited for.
        alone = device.type == "cuda" and parallel is guided and not self.scaler.is_enabled()
        self._compute: Callable[[Batch], None] = CapturedStep(self.compute) if alone else self.compute
        self.distort: Distort = self._distort
        self.compute_loss: ComputeLoss = self._compute_loss
        self._to_compile = recipe.compile and parallel is guided

    @property
    def compiled(self) -> bool:
        """Whether steps run as torch.compile made them."""
        return self.compute_loss != self._compute_loss

    def begin_epoch(self, seed: int) -> None:
        """Begin to count, and to draw: everything random in an epoch derives from its seed."""
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)
        self._totals.zero_()

    def step(self, batch: Batch) -> None:
        """Train on a batch: uint8 images `[N, C, H, W]`, targets `[N]`, answers `[N, K]` and hints `[N, D]`.

        Raises:
            FloatingPointError: unless masked, for a loss that is no number, before it reaches the weights.
        """
        if self._to_compile:
            self._to_compile = False
            self._compile(batch)
        self._compute(batch)
        self.ema.update_parameters(self.guided.student)

    def read_totals(self) -> Totals:
        """Return the sums of the epoch so far; this waits for the device."""
        return Totals(*self._totals.tolist())

    def compute(self, batch: Batch) -> None:
        """Compute what `step` does but for the average of the weights."""
        targets = batch[1]
        images, answers, hints = self.distort(batch)
        logits, loss = self.compute_loss(images, answers, hints)
        if not self._masked and not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"the loss became {value}")
        self.update(loss)
        with torch.no_grad():
            right = (logits.argmax(1) == targets).sum()
            seen = torch.full_like(right, len(targets))
            self._totals += torch.stack([loss.double() * len(targets), seen, right, (targets >= 0).sum()])

    def _distort(self, batch: Batch) -> tuple[Tensor, ...]:
        images, _, answers, hints = batch
        strength, harsh, mixup = self.recipe.augment, self.recipe.harsh, self.recipe.mixup
        if self._masked:
            return mix_masked((augment_masked(images, strength, harsh), answers, hints.float()), mixup)
        images = augment(images, self._generator, strength, harsh)
        return mix((images, answers, hints.float()), self._generator, mixup)

    def _compute_loss(self, images: Tensor, answers: Tensor, hints: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.dtype):
            logits, guesses = self.parallel(images.contiguous(memory_format=torch.channels_last))
            loss: Tensor = self.loss(logits.float(), answers)
            if guesses is not None:
                loss = loss + self.recipe.hint_weight * compute_hint_loss(guesses, hints)
        return logits, loss

    def _compile(self, batch: Batch) -> None:
        """Compile distortions and network for batches like this one, or say why that fails; nothing else changes.

        Whatever is amiss shows here, in a step that changes no weights: forward and backward are compiled when
        they run first.
        """
        # Distortions that the host draws have other shapes in every batch.
        distort: Distort = torch.compile(self._distort, dynamic=False) if self._masked else self._distort
        compute_loss: ComputeLoss = torch.compile(self._compute_loss, dynamic=False)
        kept = {name: buffer.clone() for name, buffer in self.guided.named_buffers()}
        drawn = self._generator.get_state()
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                compute_loss(*distort(batch))[1].backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler, of what it calls, of a library that is not there
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            warn(f"note: a step cannot be compiled ({first}); training goes on without torch.compile")
        else:
            self.distort, self.compute_loss = distort, compute_loss
        finally:
            self._generator.set_state(drawn)
            self.optimizer.zero_grad(set_to_none=True)
            for name, buffer in self.guided.named_buffers():
                buffer.copy_(kept[name])

    def update(self, loss: Tensor) -> None:
        """Change the weights by the loss's gradient, clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.guided.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class CapturedStep:
    """Replays a step as one CUDA graph, from when it has run often enough to be captured.

    A step that cannot be captured runs as it is, which is said once.
    """

    def __init__(self, step: Callable[[Batch], None]) -> None:
        self._step, self._ran = step, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: Batch = []  # what the graph reads

    def __call__(self, batch: Batch) -> None:
        self._ran += 1
        if self._ran == WARM_UP + 1:
            self._capture(batch)
        if self._graph is not None:
            for held, tensor in zip(self._held, batch, strict=True):
                held.copy_(tensor)
            self._graph.replay()
        elif self._ran <= WARM_UP:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(batch)
            torch.cuda.current_stream().wait_stream(side)
        else:
            self._step(batch)

    def _capture(self, batch: Batch) -> None:
        graph, self._held = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in batch]
        try:
            # Threads that gather pictures and write checkpoints may use the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(self._held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            warn(f"note: a step cannot be captured in a CUDA graph ({first}); training goes on without one")
            torch.cuda.synchronize()
            return
        self._graph = graph


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Compute in mixed precision; float32 means none."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)
