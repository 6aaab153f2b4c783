"""Trains one epoch at a time, and saves and restores all that changes from step to step."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fmengine
from fmengine.cli.console import Progress
from fmengine.errors import DataError, FmengineError
from fmengine.system.files import write_file

from . import checkpoint
from .augment import augment, mix
from .data import Dataset
from .device import pick_precision
from .distributed import World, synchronize
from .hints import Guided, compute_hint_loss
from .networks import Network, build, make_network_config
from .optimize import compute_class_weights, compute_learning_rate, make_moving_average, make_optimizer
from .recipe import Recipe
from .summary import format_csv, summarise

EVAL_BATCH = 256  # pictures; bounds memory, changes no figure


class DivergedError(FmengineError):
    """The loss is no longer a number; the last good checkpoint stays."""

    exit_code = 1


class Trainer:
    """One run: its network, optimizer and history, from the first step to the last.

    Args:
        recipe: the hyperparameters.
        data: from `data.load`.
        folder: of the run.
        device: to train on.
        initial: a checkpoint whose weights to begin with.
        world: the processes that train one model.

    Raises:
        DataError: if the processes differ in their data, or the recipe does not fit the data.
        ValueError: for an input too small for the network.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        folder: Path,
        device: torch.device,
        initial: Path | None = None,
        world: World = World(),  # noqa: B008 - immutable
    ) -> None:
        torch.manual_seed(recipe.seed)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # a seed repeats a run; costs a few per cent
            torch.backends.cudnn.benchmark = False
        self.recipe, self.data, self.folder, self.device, self.world = recipe, data, folder, device, world
        self.slice = world.slice_batch(
            min(recipe.batch_size, len(data.train)) if world.size > 1 else recipe.batch_size
        )
        world.check_agreement("their training data", data.fingerprint)
        config = make_network_config(recipe, len(data.labels))
        fresh = build(config)
        if initial is not None:
            checkpoint.load_initial_weights(fresh, data.labels, initial)
        synchronize(fresh, world, device)
        self.model = fresh.to(device).to(memory_format=torch.channels_last)
        self.hints = data.hints if recipe.hint_weight else data.hints[:, :0]
        self.guided = Guided(self.model, self.hints.shape[1]).to(device)
        self.parallel = world.wrap(self.guided, device)
        self.ema = AveragedModel(self.model, avg_fn=make_moving_average(recipe.ema), use_buffers=True)
        self.optimizer = make_optimizer(recipe, self.guided)
        self.dtype = pick_precision(recipe.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.loss = nn.CrossEntropyLoss(
            compute_class_weights(recipe, data, device), label_smoothing=recipe.label_smoothing
        )
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    def train_epoch(self) -> tuple[float, float]:
        """Pass once over the training pictures; return mean loss and accuracy on the augmented pictures."""
        recipe, order = self.recipe, self._shuffle()
        # Everything random in an epoch derives from (seed, epoch): a resumed run needs no saved state.
        seed = (recipe.seed * 1_000_003 + self.epoch) * self.world.size + self.world.rank
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        steps = max(1, len(order) // recipe.batch_size)  # the last, smaller batch is left out
        self.model.train()
        total, seen, right, labelled = 0.0, 0, 0, 0
        started = time.perf_counter()
        caption = f"epoch {self.epoch + 1}/{recipe.epochs}"
        bar = Progress(steps, "batches", caption=caption, keep=False, shown=self.world.first)
        for step in bar.track(range(steps)):
            rows = np.sort(order[step * recipe.batch_size : (step + 1) * recipe.batch_size][self.slice])
            targets = torch.from_numpy(self.data.targets[rows]).to(self.device, non_blocking=True)
            answers = torch.from_numpy(self.data.answers[rows]).to(self.device, non_blocking=True)
            images = torch.from_numpy(self.data.pixels[rows]).to(self.device, non_blocking=True)
            hints = torch.from_numpy(self.hints[rows]).to(self.device, non_blocking=True).float()
            images = augment(images, generator, recipe.augment, recipe.harsh)
            images, answers, hints = mix((images, answers, hints), generator, recipe.mixup)
            for group in self.optimizer.param_groups:
                group["lr"] = compute_learning_rate(recipe, self.epoch * steps + step, steps)
            with self._autocast():
                logits, guesses = self.parallel(images.contiguous(memory_format=torch.channels_last))
                loss = self.loss(logits.float(), answers)
                if guesses is not None:
                    loss = loss + recipe.hint_weight * compute_hint_loss(guesses, hints)
            if not math.isfinite(value := loss.item()):
                raise self.make_diverged_error(f"the loss became {value}")
            self._step(loss)
            total, seen = total + value * len(rows), seen + len(rows)
            right += int((logits.argmax(1) == targets).sum())
            labelled += int((targets >= 0).sum())
            rate = seen / (time.perf_counter() - started)
            bar.annotate(
                loss=f"{total / seen:.4f}", accuracy=f"{right / max(1, labelled):.4f}", pictures_s=f"{rate:.0f}"
            )
        total, count, right_of_all, labelled_of_all = self.world.sum(total, seen, right, labelled)
        return total / count, right_of_all / max(1, labelled_of_all)

    def make_diverged_error(self, what: str) -> DivergedError:
        """Make the error for what is no longer a number in this epoch."""
        return DivergedError(
            f"{what} in epoch {self.epoch + 1}; the last good checkpoint is that of epoch {self.epoch}. "
            "Lower --learning-rate, or set precision to fp32"
        )

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.guided.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update_parameters(self.model)

    def _shuffle(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the training pictures' rows in the order of this epoch."""
        generator = np.random.default_rng([self.recipe.seed, self.epoch])
        return generator.permutation(self.data.train)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else None, enabled=enabled)

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Return the validation pictures' logits, by the averaged weights in FP32, and their targets."""
        self.ema.eval()
        with torch.inference_mode():
            parts = [
                self.ema(torch.from_numpy(self.data.pixels[rows]).to(self.device)).cpu()
                for rows in np.array_split(self.data.val, math.ceil(len(self.data.val) / EVAL_BATCH))
            ]
        return torch.cat(parts), torch.from_numpy(self.data.targets[self.data.val])

    def save(self) -> None:
        """Write the checkpoint that `restore` reads."""
        tensors = {
            f"{part}.{name}": tensor
            for part, module in self._parts().items()
            for name, tensor in module.state_dict().items()
        } | checkpoint.flatten_optimizer(self.optimizer)
        document = {
            "version": fmengine.__version__,
            "recipe": self.recipe.to_dict(),
            "labels": list(self.data.labels),
            "data_fingerprint": self.data.fingerprint,
            "scaler": self.scaler.state_dict(),
            "history": self.history,
        }
        checkpoint.write_tensors(self.folder / checkpoint.CHECKPOINT, tensors, document)

    def restore(self) -> None:
        """Continue from the run folder's checkpoint, if it has one.

        Raises:
            DataError: if the checkpoint was made with another recipe or other data.
        """
        path = self.folder / checkpoint.CHECKPOINT
        self.world.check_agreement("whether they find a checkpoint", path.exists())
        if not path.exists():
            return
        tensors, document = checkpoint.read_tensors(path)
        checkpoint.check_recipe(path, document, self.recipe)
        if document["data_fingerprint"] != self.data.fingerprint or document["labels"] != list(self.data.labels):
            raise DataError(f"the training data changed since {path} was written; use a new --run folder")
        for part, module in self._parts().items():
            start = f"{part}."
            module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        checkpoint.restore_optimizer(self.optimizer, tensors)
        self.scaler.load_state_dict(document["scaler"])
        self.history = document["history"]

    def _parts(self) -> dict[str, nn.Module]:
        """Return all modules that have weights, by their names in the checkpoint."""
        parts: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
        return parts if self.guided.guess is None else parts | {"guess": self.guided.guess}

    def write_model(self, logits: Tensor, targets: Tensor) -> None:
        """Write the weights that ship, with the document that the model file is described from."""
        summary = summarise(self.data, self.recipe, logits, targets) | {"epochs_finished": self.epoch}
        module = self.ema.module
        assert isinstance(module, Network)
        checkpoint.save_model(self.folder / checkpoint.MODEL, module, summary)
        write_file(self.folder / "training.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        write_file(self.folder / "metrics.csv", format_csv(self.history))
