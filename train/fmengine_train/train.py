"""Runs the training loop, with a checkpoint after every epoch.

A run folder holds `checkpoint.safetensors` (all that `--resume` needs), `model.safetensors` (what
`fmengine export` takes), `training.json`, `metrics.csv`, `curves.png` and `confusion.png`.
"""

import math
import time
from collections.abc import Callable

from fmengine.system.files import write_file

from . import plots
from .metrics import Scores, score
from .summary import format_duration, split_validation
from .trainer import Trainer

LONG = 1800  # seconds still to go, from which on a run says how it could be shorter


def train(trainer: Trainer, notify: Callable[[str], None]) -> Scores:
    """Run the epochs that are left, with a checkpoint after each.

    Args:
        trainer: fresh or restored.
        notify: called with the figures of each epoch, as text.

    Returns:
        The scores of the epoch that ships, on the validation pictures that did not choose it.
    """
    recipe = trainer.recipe
    first = trainer.epoch + (1 if recipe.probe and not trainer.epoch else 0)  # of those that train all layers
    select, report = split_validation(trainer.data)
    if trainer.epoch and trainer.world.first and not trainer.has_written_best():
        trainer.write_model(*trainer.evaluate())  # the run stopped between the checkpoint and the model
    while not trainer.finished:
        began = time.perf_counter()
        loss, accuracy = trainer.train_epoch()
        logits, targets = trainer.evaluate()
        scores, select_loss = score(logits, targets), score(logits[select], targets[select]).loss
        # The last step can break the weights after the last loss was fine.
        if not (logits.isfinite().all() and math.isfinite(scores.loss)):
            raise trainer.make_diverged_error("the validation logits are no longer numbers")
        trainer.history.append(
            {
                "epoch": trainer.epoch + 1,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "val_loss": scores.loss,
                "val_accuracy": scores.accuracy,
                "val_balanced_accuracy": scores.balanced_accuracy,
                "select_loss": select_loss,
                "seconds": time.perf_counter() - began,
            }
        )
        if trainer.world.first:
            trainer.save()
            if trainer.best_epoch == trainer.epoch:
                trainer.write_model(logits, targets)
        left = trainer.history[-1]["seconds"] * (recipe.epochs - trainer.epoch)
        notify(
            f"epoch {trainer.epoch}/{recipe.epochs}  loss {loss:.4f}  accuracy {accuracy:.4f}  "
            f"val loss {scores.loss:.4f}  val accuracy {scores.accuracy:.4f}  "
            f"{len(trainer.data.train) / trainer.history[-1]['seconds']:.0f} pictures/s  "
            f"{format_duration(left)} left"
        )
        if trainer.epoch == first + 1 and left > LONG:
            notify(
                f"note: the whole run will take about {format_duration(left)}; fewer --epochs, --from "
                "alexnet-slim or --kind linear take less. Ctrl-C keeps the epochs that are finished"
            )
    if trainer.epoch < recipe.epochs:
        notify(f"stopped after epoch {trainer.epoch}: none of the last {recipe.patience} epochs was better")
    if trainer.world.first:
        trainer.load_best()
    logits, targets = trainer.evaluate()
    scores = score(logits[report], targets[report])
    if not trainer.world.first:
        return scores
    trainer.write_model(logits, targets)
    write_file(trainer.folder / "curves.png", plots.plot_curves(trainer.history))
    write_file(trainer.folder / "confusion.png", plots.plot_confusion(scores, trainer.data.labels))
    return scores
