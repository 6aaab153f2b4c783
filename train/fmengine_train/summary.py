"""Summarises a run: what its model is described with, and figures as text."""

import csv
import dataclasses
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fmengine

from .data import PARTS, Dataset
from .metrics import fit_temperature, score
from .recipe import Recipe


def summarise(data: Dataset, recipe: Recipe, logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """Summarise a run for the model file and `training.json`: data, recipe, calibration, scores by source.

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
        # The confidence below which 5 % of the pictures lie.
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
