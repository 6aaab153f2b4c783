"""`fmengine train`."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fmengine.cli.console import inform, print_json, print_path, warn
from fmengine.errors import DataError
from fmengine.jobs.rows import escape_path
from fmengine.types import Fit
from fmengine.wording import pluralise

from . import data
from .arguments import Arguments
from .checkpoint import (
    CHECKPOINT,
    MODEL,
    check_recipe,
    format_resume_command,
    open_run,
    read_document,
    read_recipe,
)
from .checks import MIN_PICTURES, list_label_notes, read_names
from .device import has_fast_bf16, pick_device, pick_precision
from .distill import teach
from .distributed import join
from .finetune import choose_recipe
from .metrics import Scores
from .networks import CONFIGS, Config, make_network_config
from .pretrained import Pretrained, compare_input, describe_network, list_new_labels, load_pretrained
from .recipe import Recipe
from .summary import list_validation_notes
from .train import train as run
from .trainer import Trainer
from .votes import blend_votes, read_votes


@click.command()
@click.argument("data_paths", metavar="DATA...", nargs=-1, type=click.Path(path_type=Path))
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
    "--from",
    "source",
    metavar="MODEL",
    help="Trained network to begin with, whatever labels it knows: alexnet-slim, a run folder, or a model file "
    "in FP32 or FP16. Without a recipe, the number of pictures chooses how it is trained further.",
)
@click.option(
    "--kind",
    type=click.Choice(["full", "linear"]),
    default="full",
    help="Train all layers, or the last one alone, in seconds, with --from.  [default: full]",
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
@click.option(
    "--compile",
    is_flag=True,
    default=None,
    help="Compile each step by torch.compile: a minute at the start, which a long run on a GPU may gain.",
)
@click.option("--size", type=int, help="Rows and columns of the network's input, in pixels.")
@click.option("--color", type=click.Choice(["gray", "rgb"]))
@click.option("--seed", type=int)
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run of --run, which remembers DATA and all options; --epochs can be raised. With DATA, "
    "start it if there is none. A run that was killed has lost the epochs of its last 20 seconds at most.",
)
@click.option("--json", "as_json", is_flag=True, help="The model's file and its validation scores as JSON.")
def train(
    data_paths: tuple[Path, ...],
    folder: Path,
    recipe_file: Path | None,
    device: str,
    resume: bool,
    as_json: bool,
    source: str | None,
    kind: str,
    teachers: tuple[Path, ...],
    transfer: tuple[Path, ...],
    votes_file: Path | None,
    classes: str | None,
    **options: Any,
) -> None:
    """Train a model on DATA: folders with one folder a class (below `train` and `val`, or not), or fer2013.csv.

    Examples:

    fmengine train faces/ --from alexnet-slim --run runs/mine

    fmengine train --resume --run runs/mine --epochs 40
    """
    overrides = {name: value for name, value in options.items() if value is not None}
    if classes is not None:
        overrides["classes"] = list(read_names(classes))
    given = Arguments(data_paths, source, teachers, transfer, votes_file)
    going_on = resume and os.path.exists(folder / CHECKPOINT)  # which also takes a name that is too long
    if going_on:
        recipe, given = _read_run(folder / CHECKPOINT, recipe_file, overrides, given)
    else:
        recipe = Recipe.load(recipe_file, overrides)
    _check_options(given, folder, overrides, linear=kind == "linear", resume=resume, going_on=going_on)
    votes = None if given.votes is None else read_votes(given.votes)
    with join(pick_device(device), folder) as (world, target):
        report, caution = (inform, warn) if world.first else (_mute, _mute)  # the first process writes for all
        items = data.find(given.data, recipe.classes, recipe.validation)
        labels = recipe.classes or data.list_labels(items)
        pretrained = None if given.source is None or going_on else load_pretrained(given.source, labels)
        for note in list_label_notes(labels):
            caution(f"note: {note}")
        if pretrained is not None:
            report(f"beginning with {pretrained.name}, trained to tell {', '.join(pretrained.labels)}")
            recipe = _adopt(pretrained, items, labels, kind == "linear", recipe_file, overrides)
            for note in list_new_labels(pretrained, labels):
                caution(f"note: {note}")
        items += data.list_unlabelled(given.transfer)
        config = make_network_config(recipe, len(labels))
        if pretrained is not None:
            for note in compare_input(pretrained, config):
                caution(f"note: {note}")
        open_run(folder, resume=resume)
        world.check_agreement("their recipe", recipe.to_dict())
        if recipe.precision == "bf16" and not has_fast_bf16(target):
            caution(
                "note: this device has no bf16 instructions, and emulates it slowly; --precision auto does not"
            )
        if recipe.compile and world.size > 1:
            caution("note: several processes train without torch.compile")
        elif recipe.compile:
            report("the first step is compiled, which takes up to a minute")
        dataset = _load(items, labels, config, recipe.fit, folder, caution)
        _caution_of_counts(dataset, given.source, caution)
        if votes is not None:
            voted = blend_votes(dataset, items, votes, given.data, recipe.label_votes)
            report(f"people voted on {pluralise(voted, 'picture')}")
        if given.teachers:
            dtype = pick_precision(recipe.precision, target)
            teach(dataset, items, given.teachers, recipe.teacher_weight, folder, target, dtype, world)
        validating = pluralise(len(dataset.val), "validation picture")
        report(f"{len(dataset.train)} training and {validating}: {dataset.describe()}")
        try:
            trainer = Trainer(recipe, dataset, folder, target, pretrained, world, given.to_dict())
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
        report(
            f"validation accuracy {scores.accuracy:.2%} of {count}, by the weights of epoch {trainer.best_epoch}; "
            f"recall {recalls}"
        )
        if not world.first:
            return
        if as_json:
            print_json({"model": str(folder / MODEL), "labels": dataset.labels, "validation": asdict(scores)})
        else:
            print_path(folder / MODEL)


def _read_run(
    checkpoint: Path, recipe_file: Path | None, overrides: dict[str, Any], given: Arguments
) -> tuple[Recipe, Arguments]:
    """Read how a run was started, and check that what is given now agrees."""
    document = read_document(checkpoint)
    recipe = Recipe.load(recipe_file, overrides, read_recipe(checkpoint, document).to_dict())
    check_recipe(checkpoint, document, recipe)
    return recipe, given.complete(checkpoint, document)


def _check_options(
    given: Arguments, folder: Path, overrides: dict[str, Any], *, linear: bool, resume: bool, going_on: bool
) -> None:
    """Raise UsageError for options that do not go together, or are missing."""
    if not given.data:
        raise click.UsageError(
            f"{escape_path(str(folder))} holds no {CHECKPOINT} to go on from: give DATA to start a run"
            if resume
            else "DATA is missing: give a folder with one folder a class, or --resume with the --run to go on with"
        )
    if linear and given.source is None and not going_on:
        raise click.UsageError(
            "--kind linear trains the last layer of a network: say which with --from alexnet-slim"
        )
    if linear and "epochs" in overrides:
        raise click.UsageError("--kind linear has one epoch, which fits the last layer: leave --epochs out")
    if given.transfer and not given.teachers:
        raise click.UsageError("--transfer pictures have no labels: give a --teacher who knows them")


def _adopt(
    pretrained: Pretrained,
    items: list[data.Item],
    labels: tuple[str, ...],
    linear: bool,
    recipe_file: Path | None,
    overrides: dict[str, Any],
) -> Recipe:
    """Make the recipe that trains a network further: its architecture, and what a recipe file and options say.

    Without a file, the pictures choose the rest.
    """
    pictures = sum(item.split == "train" for item in items)
    chosen = choose_recipe(pictures, not set(labels) <= set(pretrained.labels), linear)
    base = describe_network(pretrained) | (chosen if recipe_file is None else {})
    return Recipe.load(recipe_file, (chosen if linear else {}) | overrides, base)


def _caution_of_counts(dataset: data.Dataset, source: str | None, caution: Callable[[str], None]) -> None:
    """Warn of too few pictures to learn from or to calibrate on, with the way out."""
    counts = Counter(dataset.targets[dataset.train].tolist())
    if source is None and min(counts[label] for label in range(len(dataset.labels))) < MIN_PICTURES:
        caution("note: so few pictures do better with --from alexnet-slim, which begins with the shipped network")
    for note in list_validation_notes(dataset):
        caution(f"note: {note}")


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
        folder = escape_path(str(trainer.folder))
        if trainer.epoch:
            done = pluralise(trainer.epoch, "finished epoch")
            report(f"fmengine: {folder} holds {done}; go on with {format_resume_command(trainer.folder)}")
        else:
            report(f"fmengine: no epoch was finished; {folder} holds nothing to go on from")
        raise


def _mute(message: str, **fields: Any) -> None:
    """Stand in for the console in a process that is not the first."""
