"""Evaluates a model file on labelled pictures, through the runtime as users run it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmengine.cli.console import track
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.jobs.rows import Row, escape_path, to_row
from fmengine.types import Failure
from fmengine.wording import pluralise

from .labelled import list_labelled_files
from .metrics import Report, report
from .robustness import Robustness, measure_robustness
from .robustness import as_text as robustness_as_text


@dataclass(frozen=True)
class Evaluation:
    """The figures of one folder.

    Attributes:
        data: the folder, as it is shown.
        report: on the pictures that have an answer.
        failures: those that have none.
        rows: of all pictures, in order, as `jobs.rows.to_row` makes them, with `expected`, the folder's label, and
            `right`, null without an answer.
        robustness: accuracy under corruptions, if measured.
    """

    data: str
    report: Report
    failures: list[tuple[str, Failure]]
    rows: list[Row]
    robustness: Robustness | None = None


def evaluate(
    engine: Engine, root: Path, held_out_share: float = 1.0, part: str = "all", corruptions: bool = False
) -> Evaluation:
    """Score an engine on `root/<label>/…`; see `list_labelled_files` for the arguments and errors."""
    files = list_labelled_files(root, engine.spec.labels, held_out_share, part)
    results = engine.predict_many(path for path, _ in files)
    labels = engine.spec.labels
    rows: list[Row] = []
    probabilities, targets, failures = [], [], []
    name = escape_path(str(root))
    scored = track(zip(files, results, strict=True), len(files), "pictures", caption=name)
    for (path, target), result in scored:
        right = None if isinstance(result, Failure) else result.label == labels[target]
        rows.append(to_row(path, result) | {"expected": labels[target], "right": right})
        if isinstance(result, Failure):
            failures.append((path, result))
        else:
            probabilities.append([result.probabilities[label] for label in labels])
            targets.append(target)
    if not targets:
        first = f"{escape_path(failures[0][0])}: {failures[0][1].message}"
        raise DataError(
            f"{name} holds {pluralise(len(files), 'file')}, and none has an answer; the first: {first}"
        )
    figures = report(np.array(probabilities), np.array(targets), labels)
    return Evaluation(name, figures, failures, rows, measure_robustness(engine, files) if corruptions else None)


def as_text(evaluation: Evaluation) -> str:
    """Format the figures as a table for a terminal."""
    figures = evaluation.report
    lines = [
        f"{evaluation.data}: {pluralise(figures.count, 'picture')}; 95 % intervals in brackets",
        f"  accuracy           {figures.accuracy:7.2%}   {_format_interval(figures.accuracy_interval)}",
        f"  balanced accuracy  {figures.balanced_accuracy:7.2%}   {_format_interval(figures.balanced_interval)}",
        f"  calibration error  {figures.ece:7.4f}   [{figures.ece_interval[0]:.4f}, {figures.ece_interval[1]:.4f}]"
        "  (ECE, 15 bins)",
    ]
    for label, counts in zip(figures.labels, figures.confusion, strict=True):
        answers = ", ".join(f"{count} {answer}" for answer, count in zip(figures.labels, counts, strict=True))
        recall, precision = (_format_percent(shares[label]) for shares in (figures.recall, figures.precision))
        interval = _format_interval(figures.recall_interval[label])
        lines.append(f"  {label:<10} recall {recall}  {interval}  precision {precision}  answered {answers}")
    for share, accuracy in figures.coverage.items():
        if share < 1:
            interval = _format_interval(figures.coverage_interval[share])
            lines.append(f"  surest {share:4.0%}        {accuracy:7.2%}   {interval}")
    return "\n".join(lines + ([robustness_as_text(evaluation.robustness)] if evaluation.robustness else []))


def _format_interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2%}, {interval[1]:.2%}]"


def _format_percent(share: float | None) -> str:
    return "    n/a" if share is None else f"{share:7.2%}"
