"""The training loop: one function a stage, one file a run folder.

A run folder holds `checkpoint.safetensors` (all that `--resume` needs), `model.safetensors` (what
`fmengine export` takes), `training.json`, `metrics.csv`, `curves.png` and `confusion.png`.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fmengine
from fmengine.cli.console import Progress
from fmengine.errors import DataError, FmengineError, ModelError
from fmengine.system.files import write_file

from . import checkpoint, plots
from .augment import augment, mix
from .data import PARTS, Dataset
from .device import pick_precision
from .distributed import World, synchronize
from .hints import Guided, hint_loss
from .metrics import Scores, fit_temperature, score
from .networks import Network, build, network_config
from .optimize import class_weights, learning_rate, make_optimizer, moving_average
from .recipe import Recipe

EVAL_BATCH = 256  # pictures; bounds memory, changes no figure


class DivergedError(FmengineError):
    """The loss is no longer a number; the last good checkpoint stays."""

    exit_code = 1


class Trainer:
    """What changes from step to step, and how it is saved and restored."""

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
        self.share = world.share(min(recipe.batch_size, len(data.train)) if world.size > 1 else recipe.batch_size)
        world.agree("their training data", data.fingerprint)
        config = network_config(recipe, len(data.labels))
        fresh = build(config)
        if initial is not None:
            checkpoint.begin_from(fresh, data.labels, initial)
        synchronize(fresh, world, device)
        self.model = fresh.to(device).to(memory_format=torch.channels_last)
        self.hints = data.hints if recipe.hint_weight else data.hints[:, :0]
        self.guided = Guided(self.model, self.hints.shape[1]).to(device)
        self.parallel = world.wrap(self.guided, device)
        self.ema = AveragedModel(self.model, avg_fn=moving_average(recipe.ema), use_buffers=True)
        self.optimizer = make_optimizer(recipe, self.guided)
        self.dtype = pick_precision(recipe.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.loss = nn.CrossEntropyLoss(
            class_weights(recipe, data, device), label_smoothing=recipe.label_smoothing
        )
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    def train_epoch(self) -> tuple[float, float]:
        """One pass over the training pictures; returns mean loss and accuracy on the augmented pictures."""
        recipe, order = self.recipe, self._order()
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
            rows = np.sort(order[step * recipe.batch_size : (step + 1) * recipe.batch_size][self.share])
            targets = torch.from_numpy(self.data.targets[rows]).to(self.device, non_blocking=True)
            answers = torch.from_numpy(self.data.answers[rows]).to(self.device, non_blocking=True)
            images = torch.from_numpy(self.data.pixels[rows]).to(self.device, non_blocking=True)
            hints = torch.from_numpy(self.hints[rows]).to(self.device, non_blocking=True).float()
            images = augment(images, generator, recipe.augment, recipe.harsh)
            images, answers, hints = mix((images, answers, hints), generator, recipe.mixup)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, self.epoch * steps + step, steps)
            with self._autocast():
                logits, guesses = self.parallel(images.contiguous(memory_format=torch.channels_last))
                loss = self.loss(logits.float(), answers)
                if guesses is not None:
                    loss = loss + recipe.hint_weight * hint_loss(guesses, hints)
            if not math.isfinite(value := loss.item()):
                raise self.diverged(f"the loss became {value}")
            self._step(loss)
            total, seen = total + value * len(rows), seen + len(rows)
            right += int((logits.argmax(1) == targets).sum())
            labelled += int((targets >= 0).sum())
            rate = seen / (time.perf_counter() - started)
            bar.annotate(
                loss=f"{total / seen:.4f}", accuracy=f"{right / max(1, labelled):.4f}", pictures_s=f"{rate:.0f}"
            )
        total, count, right_of_all, labelled_of_all = self.world.total(total, seen, right, labelled)
        return total / count, right_of_all / max(1, labelled_of_all)

    def diverged(self, what: str) -> DivergedError:
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

    def _order(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        generator = np.random.default_rng([self.recipe.seed, self.epoch])
        return generator.permutation(self.data.train)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else None, enabled=enabled)

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Logits and targets of the validation pictures, by the averaged weights, in FP32."""
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
        self.world.agree("whether they find a checkpoint", path.exists())
        if not path.exists():
            return
        tensors, document = checkpoint.read_tensors(path)
        check_recipe(path, document, self.recipe)
        if document["data_fingerprint"] != self.data.fingerprint or document["labels"] != list(self.data.labels):
            raise DataError(f"the training data changed since {path} was written; use a new --run folder")
        for part, module in self._parts().items():
            start = f"{part}."
            module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        checkpoint.restore_optimizer(self.optimizer, tensors)
        self.scaler.load_state_dict(document["scaler"])
        self.history = document["history"]

    def _parts(self) -> dict[str, nn.Module]:
        """All that has weights, by its name in the checkpoint."""
        parts: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
        return parts if self.guided.guess is None else parts | {"guess": self.guided.guess}

    def write_model(self, logits: Tensor, targets: Tensor) -> None:
        """Write the weights that ship, with what the model file will say of them."""
        summary = summarise(self.data, self.recipe, logits, targets) | {"epochs_finished": self.epoch}
        module = self.ema.module
        assert isinstance(module, Network)
        checkpoint.save_model(self.folder / checkpoint.MODEL, module, summary)
        write_file(self.folder / "training.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        write_file(self.folder / "metrics.csv", _csv(self.history))


def train(trainer: Trainer, say: Callable[[str], None]) -> Scores:
    """Run the epochs that are left, with a checkpoint after each.

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
            raise trainer.diverged("the validation logits are no longer numbers")
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
        say(
            f"epoch {trainer.epoch}/{recipe.epochs}  loss {loss:.4f}  accuracy {accuracy:.4f}  "
            f"val loss {scores.loss:.4f}  val accuracy {scores.accuracy:.4f}  "
            f"{len(trainer.data.train) / trainer.history[-1]['seconds']:.0f} pictures/s  {clock(left)} left"
        )
    logits, targets = trainer.evaluate()
    scores = score(logits, targets)
    if not trainer.world.first:
        return scores
    trainer.write_model(logits, targets)
    write_file(trainer.folder / "curves.png", plots.curves(trainer.history))
    write_file(trainer.folder / "confusion.png", plots.confusion(scores, trainer.data.labels))
    return scores


def check_recipe(path: Path, document: dict[str, Any], recipe: Recipe) -> None:
    """See that a checkpoint, of this document, can be gone on from with this recipe.

    Raises:
        DataError: if it was made with another one.
        ModelError: if it is no checkpoint to go on from.
    """
    if "data_fingerprint" not in document:
        raise ModelError(f"{path} is no checkpoint to go on from; use a new --run folder")
    # An older version's recipe lacks what it did not know: there it had the default.
    if changed := _differences(Recipe.from_dict(document["recipe"]).to_dict(), recipe.to_dict()):
        raise DataError(
            f"{path} was made with another recipe: {changed}; repeat those options, or use a new --run"
        )


def summarise(data: Dataset, recipe: Recipe, logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """What the model file and `training.json` say: data, recipe, calibration, scores by source.

    Temperature and threshold are chosen on one half of the validation pictures, and the scores are those of the
    other; where a class is missing in a half, all pictures serve for both.
    """
    halves = [torch.from_numpy(data.parts[data.val] == part) for part in PARTS]
    if any(len(np.unique(targets[half].numpy())) < len(data.labels) for half in halves):
        halves = [torch.ones(len(targets), dtype=torch.bool)] * 2
    select, report = halves
    temperature = fit_temperature(logits[select], targets[select])
    confidence = (logits[select] / temperature).softmax(1).amax(1)
    sources = data.sources[data.val]
    return {
        "version": fmengine.__version__,
        "labels": list(data.labels),
        "fit": recipe.fit,
        "temperature": temperature,
        # The confidence that the least sure 5 % of the pictures stay under.
        "unsure_below": float(confidence.double().quantile(0.05)),
        "training_data": data.describe(),
        "recipe": recipe.to_dict(),
        "validation": {
            source: dataclasses.asdict(score(logits[chosen], targets[chosen]))
            for source in sorted(set(sources))
            for chosen in [report & torch.from_numpy(sources == source)]
            if chosen.any()
        },
    }


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key])


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) for k, v in row.items()} for row in rows)
    return text.getvalue()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
