"""Runs the training loop, with checkpoints that are written in the background.

A run folder holds `checkpoint.safetensors` (all that `--resume` needs), `model.safetensors` (what
`fmengine export` takes), `training.json`, `metrics.csv`, `curves.png` and `confusion.png`.
"""

import contextlib
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fmengine.errors import DeviceError
from fmengine.system.files import write_file

from . import plots
from .device import is_lost
from .metrics import Scores, score
from .saver import Saver
from .summary import format_duration, split_validation
from .trainer import Trainer

LONG = 1800  # seconds still to go, from which on a run says how it could be shorter


def train(trainer: Trainer, notify: Callable[[str], None]) -> Scores:
    """Run the epochs that are left.

    However it ends, the last epoch that was finished is written; a process that is killed loses what
    `saver.SECONDS` says.

    Args:
        trainer: fresh or restored.
        notify: called with the figures of each epoch, as text.

    Returns:
        The scores of the epoch that ships, on the validation pictures that did not choose it.

    Raises:
        DivergedError: if loss or logits are no longer numbers.
        DeviceError: if the GPU is lost.
        UnavailableError: if its memory is too small.
    """
    saver = Saver(trainer.write if trainer.world.first else lambda snapshot: None)
    try:
        _run_epochs(trainer, saver, notify)
        saver.flush()
    except BaseException as error:
        with contextlib.suppress(RuntimeError):  # of a GPU that is lost
            saver.flush()
        if isinstance(error, torch.OutOfMemoryError):
            raise trainer.make_memory_error(error) from error
        if isinstance(error, RuntimeError) and is_lost(error):
            raise DeviceError(
                f"the GPU failed in epoch {trainer.epoch + 1} ({str(error).splitlines()[0]}); go on from the last "
                "checkpoint with --resume, on another GPU or with --device cpu"
            ) from error
        raise
    trainer.load_best()
    logits, targets = trainer.evaluate()
    _, report = split_validation(trainer.data)
    scores = score(logits[report], targets[report])
    if trainer.world.first:
        trainer.write_model(logits)
        write_file(trainer.folder / "curves.png", plots.plot_curves(trainer.history))
        write_file(trainer.folder / "confusion.png", plots.plot_confusion(scores, trainer.data.labels))
    return scores


def _run_epochs(trainer: Trainer, saver: Saver, notify: Callable[[str], None]) -> None:
    recipe = trainer.recipe
    first = trainer.epoch + (1 if recipe.probe and not trainer.epoch else 0)  # of those that train all layers
    saver.keep(trainer.take_snapshot())
    while not trainer.finished:
        began = time.perf_counter()
        try:
            row, logits = _run_epoch(trainer)
        except torch.OutOfMemoryError as error:
            notify(trainer.make_room(error, saver.latest))
            continue
        trainer.history.append(row | {"seconds": time.perf_counter() - began})
        if trainer.best_epoch == trainer.epoch:
            trainer.take_best(logits)
        saver.offer(trainer.take_snapshot())
        notify(_describe_epoch(trainer))
        left = _estimate_left(trainer)
        if trainer.epoch == first + 1 and left > LONG:
            notify(
                f"note: the whole run will take about {format_duration(left)}; fewer --epochs, --from "
                "alexnet-slim or --kind linear take less. Ctrl-C keeps the epochs that are finished"
            )
    if trainer.epoch < recipe.epochs:
        notify(f"stopped after epoch {trainer.epoch}: none of the last {recipe.patience} epochs was better")


def _run_epoch(trainer: Trainer) -> tuple[dict[str, float], Tensor]:
    """Train for an epoch and validate; return the row of its figures, and the validation pictures' logits."""
    loss, accuracy = trainer.train_epoch()
    logits, targets = trainer.evaluate(fast=True)
    select, _ = split_validation(trainer.data)
    scores, select_loss = score(logits, targets), score(logits[select], targets[select]).loss
    # The last step can break the weights after the last loss was fine.
    if not (logits.isfinite().all() and math.isfinite(scores.loss)):
        raise trainer.make_diverged_error("the validation logits are no longer numbers")
    row = {
        "epoch": trainer.epoch + 1,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "val_loss": scores.loss,
        "val_accuracy": scores.accuracy,
        "val_balanced_accuracy": scores.balanced_accuracy,
        "select_loss": select_loss,
    }
    return row, logits


def _describe_epoch(trainer: Trainer) -> str:
    row, epochs = trainer.history[-1], trainer.recipe.epochs
    rate = len(trainer.data.train) / row["seconds"]
    return (
        f"epoch {trainer.epoch}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}  "
        f"val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:.4f}  "
        f"{rate:.0f} pictures/s  {format_duration(_estimate_left(trainer))} left"
    )


def _estimate_left(trainer: Trainer) -> float:
    """Estimate the seconds that all epochs still take."""
    return trainer.history[-1]["seconds"] * (trainer.recipe.epochs - trainer.epoch)
