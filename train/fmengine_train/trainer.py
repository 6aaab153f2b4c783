"""Trains one epoch at a time, and saves and restores all that changes from step to step."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fmengine
from fmengine.cli.console import Progress
from fmengine.errors import DataError, FmengineError, UnavailableError
from fmengine.system.files import write_file

from . import checkpoint
from .data import Dataset
from .device import pick_precision
from .distributed import World, synchronize
from .feed import open_feed
from .hints import Guided
from .metrics import score
from .networks import build, make_network_config
from .optimize import (
    MovingAverage,
    compute_class_weights,
    compute_learning_rate,
    make_optimizer,
    set_learning_rate,
)
from .pretrained import Pretrained, transfer_weights
from .probe import fit_last_layer
from .recipe import Recipe
from .saver import Best, Snapshot
from .steps import Steps, autocast
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
        self.fingerprint = data.fingerprint  # a hash of all pictures, hints and answers takes time
        world.check_agreement("their training data", self.fingerprint)
        config = make_network_config(recipe, len(data.labels))
        fresh = build(config)
        if pretrained is not None:
            transfer_weights(fresh, data.labels, pretrained)
        synchronize(fresh, world, device)
        self.model = fresh.to(device).to(memory_format=torch.channels_last)
        self.hints = data.hints if recipe.hint_weight else data.hints[:, :0]
        self.guided = Guided(self.model, self.hints.shape[1]).to(device)
        self.parallel = world.wrap(self.guided, device)
        self.ema = MovingAverage(self.model, recipe.ema)
        self.optimizer = make_optimizer(recipe, self.guided, device)
        self.loss = nn.CrossEntropyLoss(
            compute_class_weights(recipe, data, device), label_smoothing=recipe.label_smoothing
        )
        self.dtype = pick_precision(recipe.precision, device)
        self.steps = self._make_steps()
        self.feed = open_feed((data.pixels, data.targets, data.answers, self.hints), device)
        self.history: list[dict[str, float]] = []
        self.best: Best | None = None

    def _make_steps(self) -> Steps:
        of_weights = (self.guided, self.parallel, self.ema, self.optimizer)
        return Steps(self.recipe, *of_weights, self.loss, self.dtype, self.device)

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
        recipe, batches = self.recipe, self._shuffle()
        # Everything random in an epoch derives from (seed, epoch): a resumed run needs no saved state.
        self.steps.begin_epoch((recipe.seed * 1_000_003 + self.epoch) * self.world.size + self.world.rank)
        probed = int(recipe.probe > 0)  # epochs without steps
        self.model.train()
        caption = f"epoch {self.epoch + 1}/{recipe.epochs}"
        bar = Progress(len(batches), "batches", caption=caption, keep=False, shown=self.world.first)
        started = time.perf_counter()
        for step, batch in zip(bar.track(range(len(batches))), self.feed.take(batches), strict=True):
            position = (self.epoch - probed) * len(batches) + step
            set_learning_rate(self.optimizer, compute_learning_rate(recipe, position, len(batches)))
            try:
                self.steps.step(batch)
            except FloatingPointError as error:
                raise self.make_diverged_error(str(error)) from error
            if self.device.type == "cpu":  # a GPU would be waited for
                self._annotate(bar, started)
        totals = self.steps.read_totals()
        loss, seen, right, labelled = self.world.sum(totals.loss, totals.seen, totals.right, totals.labelled)
        if not math.isfinite(loss):
            raise self.make_diverged_error(f"the loss became {loss}")
        return loss / seen, right / max(1, labelled)

    def _annotate(self, bar: Progress, started: float) -> None:
        totals = self.steps.read_totals()
        bar.annotate(
            loss=f"{totals.loss / totals.seen:.4f}",
            accuracy=f"{totals.right / max(1, totals.labelled):.4f}",
            pictures_s=f"{totals.seen / (time.perf_counter() - started):.0f}",
        )

    def _fit_last_layer(self) -> tuple[float, float]:
        fit_last_layer(self.model, self.feed, self.data.train, self.recipe.probe, self.loss.weight)
        fitted = {name: tensor.cpu() for name, tensor in self.model.last.state_dict().items()}
        self.model.last.load_state_dict(self.world.take_first(fitted))
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

    def _shuffle(self) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """Return the training pictures' rows in the order of this epoch, this process's share of each batch.

        The last, smaller batch is left out.
        """
        order = np.random.default_rng([self.recipe.seed, self.epoch]).permutation(self.data.train)
        size = self.recipe.batch_size
        starts = range(0, max(1, len(order) // size) * size, size)
        return [np.sort(order[start : start + size][self.slice]) for start in starts]

    def evaluate(self, fast: bool = False) -> tuple[Tensor, Tensor]:
        """Return the validation pictures' logits, by the averaged weights, and their targets.

        In FP32; or fast, in the precision of training, which is enough to compare epochs by.
        """
        dtype = self.dtype if fast else torch.float32
        return self._answer(self.data.val, dtype), torch.from_numpy(self.data.targets[self.data.val])

    def _answer(self, rows: np.ndarray[Any, np.dtype[np.int64]], dtype: torch.dtype = torch.float32) -> Tensor:
        self.ema.eval()
        batches = np.array_split(rows, math.ceil(len(rows) / EVAL_BATCH))
        with torch.inference_mode(), autocast(self.device, dtype):
            parts = [self.ema(images).float() for images, *_ in self.feed.take(batches)]
        return torch.cat(parts).cpu()

    def take_best(self, logits: Tensor) -> None:
        """Keep the averaged weights, with the validation pictures' logits, as those of the epoch that ships."""
        self.best = Best(self.epoch, _copy(self.ema.module.state_dict()), logits)

    def take_snapshot(self) -> Snapshot:
        """Copy all that changes from epoch to epoch, on the device."""
        tensors = {
            f"{part}.{name}": tensor
            for part, module in self._parts().items()
            for name, tensor in module.state_dict().items()
        } | checkpoint.flatten_optimizer(self.optimizer)
        document = {
            "version": fmengine.__version__,
            "recipe": self.recipe.to_dict(),
            "labels": list(self.data.labels),
            "data_fingerprint": self.fingerprint,
            "scaler": self.steps.scaler.state_dict(),
            "history": list(self.history),
            "arguments": self.arguments,
        }
        return Snapshot(self.epoch, _copy(tensors), document, self.best)

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot's checkpoint, and the model that ships if it is not written yet.

        The checkpoint comes first, and holds the model's weights too where they are those of another epoch:
        whatever is written when a run is killed, it can go on.
        """
        tensors, best = snapshot.tensors, snapshot.best
        if best is not None and best.epoch != snapshot.epoch:
            tensors = tensors | {f"best.{name}": tensor for name, tensor in best.tensors.items()}
        checkpoint.write_tensors(self.folder / checkpoint.CHECKPOINT, tensors, snapshot.document)
        write_file(self.folder / "metrics.csv", format_csv(snapshot.document["history"]))
        if best is not None and self._read_written_epoch() != best.epoch:
            self._write_model(best, snapshot.epoch)

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
        if document["data_fingerprint"] != self.fingerprint or document["labels"] != list(self.data.labels):
            raise DataError(f"the training data changed since {path} was written; use a new --run folder")
        try:
            self.load(tensors, document)
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.make_version_error(path, document, error) from error
        best = _select(tensors, "best")
        if not best and self.best_epoch != self.epoch:  # an older version's
            best, _ = checkpoint.read_tensors(self.folder / checkpoint.MODEL)
        if self.epoch:
            self._restore_best(best or _copy(self.ema.module.state_dict()))

    def load(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Take a snapshot's weights, history, and all else that changes from epoch to epoch."""
        for part, module in self._parts().items():
            module.load_state_dict(_select(tensors, part))
        checkpoint.restore_optimizer(self.optimizer, tensors)
        self.steps.scaler.load_state_dict(document["scaler"])
        self.history = list(document["history"])

    def _restore_best(self, weights: dict[str, Tensor]) -> None:
        """Answer the validation pictures again by the weights that ship."""
        latest = _copy(self.ema.module.state_dict())
        self.ema.module.load_state_dict(weights)
        self.best = Best(self.best_epoch, _copy(self.ema.module.state_dict()), self.evaluate()[0])
        self.ema.module.load_state_dict(latest)

    def make_room(self, error: RuntimeError, snapshot: Snapshot) -> str:
        """Go back to a snapshot, with less in the GPU's memory; return what was done about it, in words.

        Raises:
            UnavailableError: if nothing more can be given up.
        """
        smaller = self.feed.shrink() if self.world.size == 1 else None  # the others would wait
        if smaller is None:
            raise self.make_memory_error(error) from error
        self.feed = smaller
        self.steps = self._make_steps()  # without the graph that was captured
        torch.cuda.empty_cache()
        self.load(snapshot.tensors, snapshot.document)
        return (
            f"note: the GPU ran out of memory; epoch {self.epoch + 1} begins again, with pictures that are copied "
            "there in smaller blocks"
        )

    def _parts(self) -> dict[str, nn.Module]:
        """Return all modules that have weights, by their names in the checkpoint."""
        parts: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
        return parts if self.guided.guess is None else parts | {"guess": self.guided.guess}

    def make_memory_error(self, error: RuntimeError) -> UnavailableError:
        """Make the error for a GPU whose memory is too small."""
        return UnavailableError(
            f"the GPU ran out of memory in epoch {self.epoch + 1} ({str(error).splitlines()[0]}); lower "
            "--batch-size or --size, or free memory that other processes hold"
        )

    def write_model(self, logits: Tensor) -> None:
        """Write the averaged weights as those that ship, with the document that a model file is described from."""
        self._write_model(Best(self.best_epoch, self.ema.module.state_dict(), logits), self.epoch)

    def _write_model(self, best: Best, epoch: int) -> None:
        targets = torch.from_numpy(self.data.targets[self.data.val])
        epochs = {"epochs_finished": epoch, "epoch_that_ships": best.epoch}
        summary = summarise(self.data, self.recipe, best.logits, targets) | epochs
        checkpoint.save_model(self.folder / checkpoint.MODEL, self.model, summary, best.tensors)
        write_file(self.folder / "training.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def _read_written_epoch(self) -> int | None:
        """Read which epoch's weights the run folder's model holds; None if there is none."""
        model = self.folder / checkpoint.MODEL
        return checkpoint.read_document(model).get("epoch_that_ships") if model.exists() else None

    def load_best(self) -> None:
        """Take the weights of the epoch that ships for the averaged ones, where a later epoch was worse."""
        if self.best is not None and self.best.epoch != self.epoch:
            self.ema.module.load_state_dict(self.best.tensors)


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _select(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part, by their names inside it."""
    start = f"{part}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
