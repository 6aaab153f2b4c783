"""Summarises a run: what its model is described with, and figures as text."""

import csv
import dataclasses
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fmengine
from fmengine.wording import pluralise

from .data import PARTS, Dataset
from .metrics import fit_temperature, score
from .recipe import Recipe

MIN_CALIBRATION = 30  # validation pictures, under which a temperature would be fitted to noise


def split_validation(data: Dataset) -> tuple[Tensor, Tensor]:
    """Split the validation pictures into those to choose on and those to state figures on, as bool masks `[V]`.

    All serve for both where a half has too few pictures, or lacks a class.
    """
    targets = data.targets[data.val]
    halves = [data.parts[data.val] == part for part in PARTS]
    if any(h.sum() < MIN_CALIBRATION or len(np.unique(targets[h])) < len(data.labels) for h in halves):
        halves = [np.ones(len(targets), dtype=bool)] * 2
    select, report = map(torch.from_numpy, halves)
    return select, report


def list_validation_notes(data: Dataset) -> list[str]:
    """List what too few validation pictures cost, and the way out."""
    if len(data.val) >= MIN_CALIBRATION:
        return []
    return [
        f"only {pluralise(len(data.val), 'validation picture')}, too few to calibrate on (expected "
        f"{MIN_CALIBRATION}): the model gets temperature 1 and no threshold for unsure, and its scores say "
        "little; hold out more with --validation 0.3, or add pictures to `val`"
    ]


def summarise(data: Dataset, recipe: Recipe, logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """Summarise a run for the model file and `training.json`: data, recipe, calibration, scores by source.

    Temperature and threshold are chosen on one half of the validation pictures, and the scores are those of the
    other (see `split_validation`). With few pictures the temperature is 1, and there is no threshold.
    """
    select, report = split_validation(data)
    temperature, unsure_below = 1.0, 0.0
    if int(select.sum()) >= MIN_CALIBRATION:
        temperature = fit_temperature(logits[select], targets[select])
        confidence = (logits[select] / temperature).softmax(1).amax(1)
        unsure_below = float(confidence.double().quantile(0.05))  # 5 % of the pictures lie below
    sources = data.sources[data.val]
    return {
        "version": fmengine.__version__,
        "labels": list(data.labels),
        "fit": recipe.fit,
        "temperature": temperature,
        "unsure_below": unsure_below,
        "training_data": data.describe(),
        "recipe": recipe.to_dict(),
        "validation": {
            source: dataclasses.asdict(score(logits[chosen], targets[chosen]))
            for source in sorted(set(sources))
            for chosen in [report & torch.from_numpy(sources == source)]
            if chosen.any()
        },
    }


def format_csv(rows: list[dict[str, float]]) -> str:
    """Format rows of figures as CSV, each figure to six decimals."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) for k, v in row.items()} for row in rows)
    return text.getvalue()


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
