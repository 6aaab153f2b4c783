"""Evaluates a model file on labelled pictures, through the runtime as users run it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmengine.cli.console import track
from fmengine.engine import Engine
from fmengine.errors import DataError
from fmengine.jobs.rows import Row, escape_path
from fmengine.types import Failure
from fmengine.wording import pluralise

from .answer_rows import make_labelled_row
from .by_group import GroupReport, score_groups
from .by_group import as_text as groups_as_text
from .groups import GroupColumn
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
        rows: of all pictures, in order, as `answer_rows.make_labelled_row` makes them.
        robustness: accuracy under corruptions, if measured.
        groups: figures by group, if asked for.
    """

    data: str
    report: Report
    failures: list[tuple[str, Failure]]
    rows: list[Row]
    robustness: Robustness | None = None
    groups: GroupReport | None = None


def evaluate(
    engine: Engine,
    root: Path,
    held_out_share: float = 1.0,
    part: str = "all",
    corruptions: bool = False,
    groups: Sequence[GroupColumn] = (),
    gap: float | None = None,
) -> Evaluation:
    """Score an engine on `root/<label>/…`.

    Args:
        engine: that answers.
        root: see `list_labelled_files` for it, for the next two, and for errors.
        held_out_share: of the pictures.
        part: half of them, or all.
        corruptions: whether it is scored under corruptions too.
        groups: columns of groups that it is scored by, if any.
        gap: between groups, whose power is wanted.
    """
    files = list_labelled_files(root, engine.spec.labels, held_out_share, part)
    results = engine.predict_many(path for path, _ in files)
    labels = engine.spec.labels
    rows: list[Row] = []
    probabilities, targets, failures = [], [], []
    name = escape_path(str(root))
    scored = track(zip(files, results, strict=True), len(files), "pictures", caption=name)
    for (path, target), result in scored:
        rows.append(make_labelled_row(path, result, labels[target], str(root)))
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
    robustness = measure_robustness(engine, files) if corruptions else None
    by_group = score_groups(groups, labels, rows, gap) if groups else None
    return Evaluation(name, figures, failures, rows, robustness, by_group)


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
    lines += [groups_as_text(evaluation.groups)] if evaluation.groups else []
    return "\n".join(lines + ([robustness_as_text(evaluation.robustness)] if evaluation.robustness else []))


def _format_interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2%}, {interval[1]:.2%}]"


def _format_percent(share: float | None) -> str:
    return "    n/a" if share is None else f"{share:7.2%}"
