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
from .metrics import score
from .networks import Network, build, make_network_config
from .optimize import compute_class_weights, compute_learning_rate, make_moving_average, make_optimizer
from .pretrained import Pretrained, transfer_weights
from .probe import fit_last_layer
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
        pretrained: the network whose weights to begin with.
        world: the processes that train one model.
        arguments: of the command, kept in the checkpoint so that the run can be resumed without them.

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
        pretrained: Pretrained | None = None,
        world: World = World(),  # noqa: B008 - immutable
        arguments: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # a seed repeats a run; costs a few per cent
            torch.backends.cudnn.benchmark = False
        self.recipe, self.data, self.folder, self.device, self.world = recipe, data, folder, device, world
        self.arguments = arguments or {}
        self.slice = world.slice_batch(
            min(recipe.batch_size, len(data.train)) if world.size > 1 else recipe.batch_size
        )
        world.check_agreement("their training data", data.fingerprint)
        config = make_network_config(recipe, len(data.labels))
        fresh = build(config)
        if pretrained is not None:
            transfer_weights(fresh, data.labels, pretrained)
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

    @property
    def best_epoch(self) -> int:
        """The epoch that ships, from 1: that of the least loss where it is chosen, finer than counted answers."""
        if self.recipe.keep == "last" or not self.history:
            return self.epoch
        return int(min(self.history, key=lambda row: row["select_loss"])["epoch"])

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or none was better for as long as the recipe waits."""
        waited = self.epoch - self.best_epoch
        return self.epoch >= self.recipe.epochs or 0 < self.recipe.patience <= waited

    def train_epoch(self) -> tuple[float, float]:
        """Pass once over the training pictures; return mean loss and accuracy on the augmented pictures.

        With a recipe's `probe`, the first epoch fits the last layer alone, on the pictures as they are.
        """
        if self.recipe.probe and self.epoch == 0:
            return self._fit_last_layer()
        recipe, order = self.recipe, self._shuffle()
        # Everything random in an epoch derives from (seed, epoch): a resumed run needs no saved state.
        seed = (recipe.seed * 1_000_003 + self.epoch) * self.world.size + self.world.rank
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        steps = max(1, len(order) // recipe.batch_size)  # the last, smaller batch is left out
        probed = int(recipe.probe > 0)  # epochs without steps
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
                rate = compute_learning_rate(recipe, (self.epoch - probed) * steps + step, steps)
                group["lr"] = rate * group["scale"]
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

    def _fit_last_layer(self) -> tuple[float, float]:
        fit_last_layer(self.model, self.data, self.recipe.probe, self.loss.weight)
        self.ema.module.load_state_dict(self.model.state_dict())
        rows = self.data.train[self.data.targets[self.data.train] >= 0]
        scores = score(self._answer(rows), torch.from_numpy(self.data.targets[rows]))
        return scores.loss, scores.accuracy

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
        return self._answer(self.data.val), torch.from_numpy(self.data.targets[self.data.val])

    def _answer(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        self.ema.eval()
        with torch.inference_mode():
            parts = [
                self.ema(torch.from_numpy(self.data.pixels[part]).to(self.device)).cpu()
                for part in np.array_split(rows, math.ceil(len(rows) / EVAL_BATCH))
            ]
        return torch.cat(parts)

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
            "arguments": self.arguments,
        }
        checkpoint.write_tensors(self.folder / checkpoint.CHECKPOINT, tensors, document)
        write_file(self.folder / "metrics.csv", format_csv(self.history))

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
        try:
            for part, module in self._parts().items():
                start = f"{part}."
                module.load_state_dict(
                    {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
                )
            checkpoint.restore_optimizer(self.optimizer, tensors)
            self.scaler.load_state_dict(document["scaler"])
            self.history = document["history"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.make_version_error(path, document, error) from error

    def _parts(self) -> dict[str, nn.Module]:
        """Return all modules that have weights, by their names in the checkpoint."""
        parts: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
        return parts if self.guided.guess is None else parts | {"guess": self.guided.guess}

    def write_model(self, logits: Tensor, targets: Tensor) -> None:
        """Write the weights that ship, with the document that the model file is described from."""
        epochs = {"epochs_finished": self.epoch, "epoch_that_ships": self.best_epoch}
        summary = summarise(self.data, self.recipe, logits, targets) | epochs
        module = self.ema.module
        assert isinstance(module, Network)
        checkpoint.save_model(self.folder / checkpoint.MODEL, module, summary)
        write_file(self.folder / "training.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def has_written_best(self) -> bool:
        """Whether the run folder's model is that of the epoch that ships so far."""
        model = self.folder / checkpoint.MODEL
        return model.exists() and checkpoint.read_document(model).get("epoch_that_ships") == self.best_epoch

    def load_best(self) -> None:
        """Take the weights of the epoch that ships for the averaged ones, where a later epoch was worse."""
        if self.best_epoch != self.epoch:
            tensors, _ = checkpoint.read_tensors(self.folder / checkpoint.MODEL)
            self.ema.module.load_state_dict(tensors)
