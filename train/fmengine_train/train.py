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
from .summary import format_duration
from .trainer import Trainer


def train(trainer: Trainer, notify: Callable[[str], None]) -> Scores:
    """Run the epochs that are left, with a checkpoint after each.

    Args:
        trainer: fresh or restored.
        notify: called with the figures of each epoch, as text.

    Returns:
        The validation scores of the last epoch.
    """
    recipe, started, first = trainer.recipe, time.perf_counter(), trainer.epoch
    while trainer.epoch < recipe.epochs:
        began = time.perf_counter()
        loss, accuracy = trainer.train_epoch()
        logits, targets = trainer.evaluate()
        scores = score(logits, targets)
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
                "seconds": time.perf_counter() - began,
            }
        )
        if trainer.world.first:
            trainer.save()
            trainer.write_model(logits, targets)
        left = (time.perf_counter() - started) / (trainer.epoch - first) * (recipe.epochs - trainer.epoch)
        notify(
            f"epoch {trainer.epoch}/{recipe.epochs}  loss {loss:.4f}  accuracy {accuracy:.4f}  "
            f"val loss {scores.loss:.4f}  val accuracy {scores.accuracy:.4f}  "
            f"{len(trainer.data.train) / trainer.history[-1]['seconds']:.0f} pictures/s  "
            f"{format_duration(left)} left"
        )
    logits, targets = trainer.evaluate()
    scores = score(logits, targets)
    if not trainer.world.first:
        return scores
    trainer.write_model(logits, targets)
    write_file(trainer.folder / "curves.png", plots.plot_curves(trainer.history))
    write_file(trainer.folder / "confusion.png", plots.plot_confusion(scores, trainer.data.labels))
    return scores
