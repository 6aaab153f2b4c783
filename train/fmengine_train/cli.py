"""`fmengine train`."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fmengine.cli.console import inform, print_json, print_path, warn
from fmengine.errors import DataError
from fmengine.types import Fit
from fmengine.wording import pluralise

from . import data
from .checkpoint import CHECKPOINT, MODEL, check_recipe, open_run, read_document
from .checks import list_label_notes, read_names
from .device import pick_device, pick_precision
from .distill import teach
from .distributed import join
from .metrics import Scores
from .networks import CONFIGS, Config, make_network_config
from .recipe import Recipe
from .train import train as run
from .trainer import Trainer
from .votes import blend_votes, read_votes


@click.command()
@click.argument("data_paths", metavar="DATA...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("runs/train"),
    show_default=True,
    help="Folder for checkpoints, metrics and plots.",
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML file of hyperparameters; options given here win over it.",
)
@click.option("--model", type=click.Choice(list(CONFIGS)), help="Architecture.")
@click.option(
    "--initial",
    type=click.Path(path_type=Path),
    help="Checkpoint of the same architecture to begin with; it may know other labels.",
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Checkpoint whose answers are learned beside the labels; may be repeated, their mean counts.",
)
@click.option(
    "--transfer",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of pictures without labels, for which the teachers' answers are learned; may be repeated.",
)
@click.option(
    "--votes",
    "votes_file",
    type=click.Path(path_type=Path),
    help="FER+'s fer2013new.csv, or a file like it: what people voted is learned beside the labels.",
)
@click.option("--classes", help="Classes to use, with commas, in the order of the outputs.")
@click.option("--validation", type=float, help="Share held out where the data have no `val` folder.")
@click.option("--epochs", type=int, help="Passes over the training pictures.  [default: 100]")
@click.option("--batch-size", type=int, help="Pictures a step.")
@click.option("--learning-rate", type=float, help="At the end of the warm-up.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]))
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]))
@click.option("--size", type=int, help="Rows and columns of the network's input, in pixels.")
@click.option("--color", type=click.Choice(["gray", "rgb"]))
@click.option("--seed", type=int)
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the run folder's checkpoint; start if there is none.")
@click.option("--json", "as_json", is_flag=True, help="The model's file and its validation scores as JSON.")
def train(
    data_paths: tuple[Path, ...],
    folder: Path,
    recipe_file: Path | None,
    device: str,
    resume: bool,
    as_json: bool,
    initial: Path | None,
    teachers: tuple[Path, ...],
    transfer: tuple[Path, ...],
    votes_file: Path | None,
    classes: str | None,
    **options: Any,
) -> None:
    """Train a model on DATA: folders with one folder a class (below `train` and `val`, or not), or fer2013.csv.

    Example: fmengine train faces/ --epochs 20 --run runs/mine
    """
    overrides = {name: value for name, value in options.items() if value is not None}
    if classes is not None:
        overrides["classes"] = list(read_names(classes))
    recipe = Recipe.load(recipe_file, overrides)
    if transfer and not teachers:
        raise click.UsageError("--transfer pictures have no labels: give a --teacher who knows them")
    votes = None if votes_file is None else read_votes(votes_file)
    with join(pick_device(device)) as (world, target):
        report, caution = (inform, warn) if world.first else (_mute, _mute)  # the first process writes for all
        items = data.find(data_paths, recipe.classes, recipe.validation)
        labels = recipe.classes or data.list_labels(items)
        for note in list_label_notes(labels):
            caution(f"note: {note}")
        items += data.list_unlabelled(transfer)
        config = make_network_config(recipe, len(labels))
        _open(folder, recipe, resume)
        dataset = _load(items, labels, config, recipe.fit, folder, caution)
        if votes is not None:
            voted = blend_votes(dataset, items, votes, data_paths, recipe.label_votes)
            report(f"people voted on {pluralise(voted, 'picture')}")
        if teachers:
            dtype = pick_precision(recipe.precision, target)
            teach(dataset, items, teachers, recipe.teacher_weight, folder, target, dtype, world)
        validating = pluralise(len(dataset.val), "validation picture")
        report(f"{len(dataset.train)} training and {validating}: {dataset.describe()}")
        try:
            trainer = Trainer(recipe, dataset, folder, target, initial, world)
        except ValueError as error:
            raise DataError(str(error)) from error
        if resume:
            trainer.restore()
            report(f"epochs finished: {trainer.epoch} of {recipe.epochs}")
        scores = _run(trainer, report)
        recalls = ", ".join(
            f"{label} {recall:.2%}" for label, recall in zip(dataset.labels, scores.recall, strict=True)
        )
        count = pluralise(scores.count, "picture")
        report(f"validation accuracy {scores.accuracy:.2%} of {count}; recall {recalls}")
        if not world.first:
            return
        if as_json:
            print_json({"model": str(folder / MODEL), "labels": dataset.labels, "validation": asdict(scores)})
        else:
            print_path(folder / MODEL)


def _open(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Check the run folder and its checkpoint before a picture is read."""
    open_run(folder, resume=resume)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        check_recipe(checkpoint, read_document(checkpoint), recipe)


def _load(
    items: list[data.Item],
    labels: tuple[str, ...],
    config: Config,
    fit: Fit,
    folder: Path,
    caution: Callable[[str], None],
) -> data.Dataset:
    """Read all pictures, preprocessed as the network takes them, and warn of those that are left out."""
    dataset = data.load(items, labels, (config.channels, config.height, config.width), fit, folder)
    for note in dataset.notes:
        caution(f"note: {note}")
    return dataset


def _run(trainer: Trainer, report: Callable[[str], None]) -> Scores:
    try:
        return run(trainer, report)
    except KeyboardInterrupt:
        report(f"fmengine: {trainer.folder} holds every finished epoch; go on with --resume")
        raise


def _mute(message: str, **fields: Any) -> None:
    """Stand in for the console in a process that is not the first."""
