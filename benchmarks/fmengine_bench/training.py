"""Measures what training costs and what holds it back, on random pictures, on a CPU or a GPU.

    python -m fmengine_bench.training
    python -m fmengine_bench.training --model alexnet --batch-size 32 --json
    python -m fmengine_bench.training train/recipes/alexnet-short.toml --device cuda

Without RECIPE the checkout's recipe of that model is taken, or the default one where there is none. There are no
teachers, and no epoch that only fits the last layer. In every round an epoch is trained as `fmengine train` does,
evaluated and copied for a checkpoint; then each part of a step has its turn alone.

In FP32 on a GPU, convolutions may compute in TF32, which is faster than the peak that is measured here.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from fmengine.backend.diagnose import describe_environment
from fmengine.cli import main
from fmengine.cli.console import print_data, print_json, warn
from fmengine.errors import DataError
from fmengine.types import InputBatch
from fmengine.wording import pluralise
from fmengine_train.data import PARTS, Dataset
from fmengine_train.device import pick_device
from fmengine_train.feed import Rows
from fmengine_train.networks import make_network_config
from fmengine_train.optimize import set_learning_rate
from fmengine_train.recipe import Recipe
from fmengine_train.steps import WARM_UP
from fmengine_train.trainer import Trainer

from .machine import warn_of_load
from .step_parts import Arithmetic, Count, Part, count_parts, make_parts, make_wait, measure_arithmetic, time_call
from .timing import Call, Figure, estimate_median, random_pixels

RECIPES = Path(__file__).parents[2] / "train/recipes"
ROUNDS, TURN = 3, 0.25  # at least; seconds of a part's turn
BATCHES = {"cuda": 200, "cpu": 12}  # of an epoch, unless told otherwise
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
KINDS = ("cpu", "gpu")
NETWORK, WHOLE = "forward and backward", "whole step"
MUCH = 0.05  # of an epoch: evaluation should take less


@dataclass(frozen=True)
class Report:
    """What one recipe's training costs.

    Attributes:
        facts: what was trained, and on what.
        steps: of an epoch.
        seconds: of an epoch's `steps`, its `evaluation`, the `snapshot` for a checkpoint, and the `whole`.
        pictures: trained on a second of an epoch's `steps`, and of the `whole`.
        step: milliseconds of a whole step; its parts, each alone; and the rest, the step less its parts. Of all
            rounds the least: other work only ever slows a part, and would pass for another's time.
        counts: what each part asks for, as on a `cpu` and as on a `gpu`.
        arithmetic: against the device's peak.
    """

    facts: dict[str, str]
    steps: int
    seconds: dict[str, Figure]
    pictures: dict[str, Figure]
    step: dict[str, float]
    counts: dict[str, dict[str, Count]]
    arithmetic: Arithmetic


def draw_data(recipe: Recipe, pictures: int) -> Dataset:
    """Draw random pictures and labels, of which the recipe's share is held out.

    Raises:
        DataError: if the rest is no batch.
    """
    config = make_network_config(recipe, 2)
    held_out = max(2, round(pictures * recipe.validation))
    if pictures - held_out < recipe.batch_size:
        raise DataError(
            f"{pictures} pictures, {held_out} of them held out, are less than a batch of {recipe.batch_size}; "
            "raise --pictures, or lower --batch-size"
        )
    targets = np.arange(pictures) % 2
    return Dataset(
        labels=("happy", "sad"),
        pixels=InputBatch(random_pixels(pictures, config.channels, config.height, config.width)),
        targets=targets,
        answers=np.eye(2, dtype=np.float32)[targets],
        hints=np.empty((pictures, 0), np.float16),
        train=np.arange(held_out, pictures),
        val=np.arange(held_out),
        sources=np.full(pictures, "random"),
        parts=np.full(pictures, PARTS[0]),
    )


def measure(recipe: Recipe, device: torch.device, pictures: int | None, seconds: float) -> Report:
    """Measure a recipe's training for so many seconds, or for `ROUNDS` rounds where they take longer.

    Raises:
        DataError: for a recipe that no network can be trained by, or too few pictures.
    """
    if pictures is None:
        pictures = round(BATCHES[device.type] * recipe.batch_size / (1 - recipe.validation)) + 2
    data = draw_data(recipe, pictures)
    try:
        trainer = Trainer(recipe, data, Path(), device)
    except ValueError as error:  # an input too small for the network
        raise DataError(str(error)) from error
    batches = _batch(data, recipe.batch_size)
    trainer.model.train()
    for batch in trainer.feed.take([batches[0]] * (WARM_UP + 2)):  # until a graph is captured
        trainer.steps.step(batch)
    parts = make_parts(trainer, trainer.steps, trainer.feed, batches)
    few = batches if device.type == "cuda" else batches[:2]  # a GPU's host runs ahead over many steps
    calls = parts | {WHOLE: Part(lambda: _take_steps(trainer, few), len(few))}
    wait = make_wait(device)
    rounds: list[dict[str, float]] = []
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(rounds) < ROUNDS or time.perf_counter() < end:
        rounds.append(_time_epoch(trainer, wait))
        set_learning_rate(trainer.optimizer, 0)
        for name, part in calls.items():
            taken[name].append(time_call(part.call, device, TURN) / part.steps)
    of_epoch = {name: estimate_median([each[name] for each in rounds]) for name in rounds[0]}
    seen = len(batches) * recipe.batch_size
    step = {name: min(values) for name, values in taken.items()}
    whole = step.pop(WHOLE)
    step |= {"rest": whole - sum(step.values()), WHOLE: whole}
    return Report(
        facts=_describe(trainer, pictures),
        steps=len(batches),
        seconds=of_epoch,
        pictures={name: estimate_median([seen / each[name] for each in rounds]) for name in ("steps", "whole")},
        step=step,
        counts={kind: count_parts(trainer, batches, kind) for kind in KINDS},
        arithmetic=measure_arithmetic(parts[NETWORK].call, {n: step[n] for n in (NETWORK, WHOLE)}, trainer),
    )


def _take_steps(trainer: Trainer, batches: Sequence[Rows]) -> None:
    for batch in trainer.feed.take(batches):
        trainer.steps.step(batch)


def _time_epoch(trainer: Trainer, wait: Call) -> dict[str, float]:
    """Time what an epoch does, in seconds."""
    wait()
    times = [time.perf_counter()]
    for call in (trainer.train_epoch, lambda: trainer.evaluate(fast=True), trainer.take_snapshot):
        call()
        wait()
        times.append(time.perf_counter())
    steps, evaluation, snapshot = np.diff(times).tolist()
    return {"steps": steps, "evaluation": evaluation, "snapshot": snapshot, "whole": times[-1] - times[0]}


def _batch(data: Dataset, size: int) -> list[Rows]:
    """Shuffle the training pictures into the batches of an epoch."""
    rows = np.random.default_rng(0).permutation(data.train)
    return list(np.sort(rows[: len(rows) // size * size].reshape(-1, size)))


def _describe(trainer: Trainer, pictures: int) -> dict[str, str]:
    on_gpu = trainer.device.type == "cuda"
    name = torch.cuda.get_device_name(trainer.device) if on_gpu else describe_environment()["cpu"]
    return {
        "model": f"{trainer.recipe.model}, {'×'.join(map(str, trainer.data.pixels.shape[1:]))}",
        "batch": str(trainer.recipe.batch_size),
        "precision": NAMES[trainer.dtype],
        "torch.compile": "yes" if trainer.steps.compiled else "no",
        "device": f"{trainer.device.type}, {name}",
        "threads": str(torch.get_num_threads()),
        "PyTorch": torch.__version__,
        "pictures": f"{pictures}, random, {len(trainer.data.val)} of them held out",
    }


def as_text(report: Report) -> str:
    """Format a report for a terminal."""
    arithmetic, seconds = report.arithmetic, report.seconds
    lines = [f"{name:<24}{value}" for name, value in report.facts.items()] + [""]
    for name, rate in report.pictures.items():
        lines.append(
            f"{f'epochs, {name}':<24}{rate.median:10,.1f} pictures/s  [{rate.low:,.1f}, {rate.high:,.1f}]"
        )
    for name in ("evaluation", "snapshot"):
        share, milliseconds = seconds[name].median / seconds["whole"].median, 1e3 * seconds[name].median
        verdict = f": more than the {MUCH:.0%} it should be" if name == "evaluation" and share > MUCH else ""
        epoch = f"an epoch of {pluralise(report.steps, 'step')}"
        lines.append(f"{name:<24}{milliseconds:10,.1f} ms, {share:.2%} of {epoch}{verdict}")
    shares = [f"{share:.1%} in {name}" for name, share in arithmetic.share.items()]
    lines += [
        f"{'arithmetic':<24}{arithmetic.step / 1e9:10,.2f} GFLOP a step, forward and backward",
        f"{'peak':<24}{arithmetic.peak / 1e9:10,.0f} GFLOP/s, of which {', '.join(shares)}",
    ]
    return "\n".join([*lines, "", *_format_step(report), "", *_explain(report)])


def _format_step(report: Report) -> list[str]:
    """Format the table of a step's parts: their time, and what they ask for on a CPU and on a GPU."""
    counts = [report.counts[kind] for kind in KINDS]
    heads = "".join(f"{f'operations, {kind}':>18}{'waits':>8}" for kind in KINDS)
    lines = [f"{'':<24}{'ms':>10}{'%':>8}{heads}"]
    for name, milliseconds in report.step.items():
        cells = [(part.operations, part.waits) for part in (of[name] for of in counts if name in of)]
        shown = "".join(f"{operations:18,.0f}{waits:8,.0f}" for operations, waits in cells)
        share = milliseconds / report.step[WHOLE]
        lines.append(f"{name:<24}{milliseconds:10.3f}{100 * share:8.1f}{shown}")
    sums = [(sum(p.operations for p in of.values()), sum(p.waits for p in of.values())) for of in counts]
    return [*lines, f"{'parts together':<42}" + "".join(f"{all_of:18,.0f}{waits:8,.0f}" for all_of, waits in sums)]


def _explain(report: Report) -> list[str]:
    """Explain in words what the table of a step means."""
    if report.step["rest"] >= 0:
        rest = "the step less its parts: the losses, and what parts cost each other in caches and memory"
    elif report.facts["device"].startswith("cuda"):
        rest = "negative: a part that runs alone waits for launches that the graph of a step hides"
    else:
        rest = "negative: other work slowed the parts in all of their turns"
    return [
        "operations: calls that compute or copy. A GPU launches a kernel for each, for some a few; those from",
        "    augmentation to optimiser are replayed there as one graph, in one launch.",
        "waits: those of them that read a value, or whose shape depends on one: on a GPU, the host would wait.",
        f"rest: {rest}.",
    ]


@click.command(help=__doc__)
@click.argument("recipes", metavar="[RECIPE]…", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", help="A network's name; by default the recipe's, or alexnet-slim.")
@click.option("--size", type=int, help="Rows and columns of the input, in pixels.")
@click.option("--batch-size", type=int)
@click.option("--compile", is_flag=True, default=None, help="Compile each step by torch.compile.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option("--pictures", type=click.IntRange(1), help="By default 200 batches on a GPU, 12 on a CPU.")
@click.option(
    "--seconds", type=click.FloatRange(0), default=20.0, show_default=True, help="Of each recipe, at least."
)
@click.option("--json", "as_json", is_flag=True)
def training(
    recipes: tuple[Path, ...], device: str, pictures: int | None, seconds: float, as_json: bool, **given: Any
) -> None:
    chosen = pick_device(device)
    overrides = {name: value for name, value in given.items() if value is not None} | {"probe": 0.0}
    own = RECIPES / f"{given['model'] or Recipe.model}.toml"
    paths: Sequence[Path | None] = recipes or [own if own.exists() else None]
    for warning in warn_of_load(os.getloadavg()[0]):
        warn(f"warning: {warning}")
    reports = {}
    for path in paths:
        name = "the default recipe" if path is None else str(path)
        reports[name] = measure(Recipe.load(path, overrides), chosen, pictures, seconds)
        if not as_json:
            print_data(f"{name}\n{as_text(reports[name])}")
    if as_json:
        print_json({name: asdict(report) for name, report in reports.items()})


if __name__ == "__main__":
    main(training, "python -m fmengine_bench.training")
