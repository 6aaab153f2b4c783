"""Scores answers by group: accuracy and recall, with intervals, and whether gaps are more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fmengine.jobs.rows import Row, decode_path, escape_text
from fmengine.wording import pluralise

from .groups import GroupColumn
from .metrics import Interval, compute_wilson_interval
from .permutation import LEVEL, PERMUTATIONS, PairGaps, compare_groups

WIDEST = 24  # letters of a group's name in a table


@dataclass(frozen=True)
class GroupFigures:
    """Figures of one group.

    Attributes:
        name: of the group.
        count: pictures that were answered.
        unanswered: pictures that were not.
        accuracy: share answered right; None without pictures.
        accuracy_interval: its Wilson 95 % interval.
        counts: pictures of each label.
        recall: of each label, share of its pictures answered right; None without pictures.
        recall_interval: of each label, the Wilson 95 % interval.
    """

    name: str
    count: int
    unanswered: int
    accuracy: float | None
    accuracy_interval: Interval
    counts: dict[str, int]
    recall: dict[str, float | None]
    recall_interval: dict[str, Interval]


@dataclass(frozen=True)
class Gap:
    """A gap between two groups.

    Attributes:
        better: the group with the higher recall.
        worse: the other.
        label: whose recall it is; None for all labels, each group's taken in the same mix.
        size: difference of the recalls.
        p: how probable one as large is by chance, among all gaps of all columns.
    """

    better: str
    worse: str
    label: str | None
    size: float
    p: float


@dataclass(frozen=True)
class ColumnFigures:
    """Figures of a column of groups.

    Attributes:
        name: of the column.
        groups: its groups.
        without: pictures whose group is not known.
        clearest: the gap that is furthest beyond chance; None where no two groups are large enough.
        detectable: the gap that would be found in four of five such samples, between the two groups where it is
            smallest, and where it is largest; None there where none would be found.
        power: to find the stated gap, where it is lowest, and highest; None without a stated gap.
    """

    name: str
    groups: list[GroupFigures]
    without: int
    clearest: Gap | None
    detectable: tuple[float | None, float | None] | None
    power: tuple[float, float] | None


@dataclass(frozen=True)
class GroupReport:
    """Figures by group.

    Attributes:
        columns: of groups.
        stated_gap: whose power is given.
        permutations: that p was counted over.
    """

    columns: list[ColumnFigures]
    stated_gap: float | None
    permutations: int = PERMUTATIONS


def score_groups(
    columns: Sequence[GroupColumn], labels: Sequence[str], rows: Sequence[Row], stated_gap: float | None = None
) -> GroupReport:
    """Score the groups, and test their gaps.

    Args:
        columns: of groups.
        labels: of the model.
        rows: of all pictures, from `answer_rows.make_labelled_row`.
        stated_gap: between groups, 0 to 1, whose power is wanted.
    """
    index = {label: number for number, label in enumerate(labels)}
    paths = [decode_path(row) for row in rows]
    targets = np.array([index[row["expected"]] for row in rows], np.int64)
    answered = np.array([row["right"] is not None for row in rows], bool)
    right = np.array([row["right"] is True for row in rows], bool)
    codes = [_find_groups(column, paths) for column in columns]
    gaps = compare_groups(right[answered], targets[answered], [each[answered] for each in codes], stated_gap)
    figures = []
    for column, of_picture, pairs in zip(columns, codes, gaps, strict=True):
        groups = [
            _score(group, of_picture == number, answered, right, targets, labels)
            for number, group in enumerate(column.groups)
        ]
        without = int((of_picture < 0).sum())
        figures.append(_describe_column(column, groups, without, pairs, labels))
    return GroupReport(figures, stated_gap)


def _find_groups(column: GroupColumn, paths: Sequence[str]) -> npt.NDArray[np.int64]:
    """Find the group of each picture, int64 `[N]`; -1 for none."""
    numbers = {group: number for number, group in enumerate(column.groups)}
    return np.array([numbers.get(column.values.get(path, ""), -1) for path in paths], np.int64)


def _score(
    name: str,
    inside: npt.NDArray[np.bool_],
    answered: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    targets: npt.NDArray[np.int64],
    labels: Sequence[str],
) -> GroupFigures:
    rows = inside & answered
    counts = {label: int((rows & (targets == index)).sum()) for index, label in enumerate(labels)}
    found = {label: int((rows & right & (targets == index)).sum()) for index, label in enumerate(labels)}
    count, correct = int(rows.sum()), int((rows & right).sum())
    return GroupFigures(
        name=name,
        count=count,
        unanswered=int((inside & ~answered).sum()),
        accuracy=correct / count if count else None,
        accuracy_interval=compute_wilson_interval(correct, count),
        counts=counts,
        recall={label: found[label] / wanted if wanted else None for label, wanted in counts.items()},
        recall_interval={label: compute_wilson_interval(found[label], counts[label]) for label in counts},
    )


def as_text(report: GroupReport) -> str:
    """Format the figures as tables for a terminal."""
    return "\n".join(line for column in report.columns for line in _list_lines(column, report))


def _describe_column(
    column: GroupColumn, groups: list[GroupFigures], without: int, pairs: list[PairGaps], labels: Sequence[str]
) -> ColumnFigures:
    if not pairs:
        return ColumnFigures(column.name, groups, without, None, None, None)
    clearest = max(pairs, key=lambda pair: np.abs(pair.scores).max())
    scores = np.abs(clearest.scores)
    at = int(np.flatnonzero(scores >= scores.max() * (1 - 1e-6))[0])  # a label, where it alone makes the gap
    size = float(clearest.gaps[at])
    names = [column.groups[clearest.first], column.groups[clearest.second]]
    better, worse = names if size >= 0 else reversed(names)
    label = labels[at] if at < len(clearest.gaps) - 1 else None
    gap = Gap(better, worse, label, abs(size), float(clearest.p[at])) if np.isfinite(size) else None
    found = [pair.detectable for pair in pairs if pair.detectable is not None]
    detectable = (min(found, default=None), max(found, default=None) if len(found) == len(pairs) else None)
    powers = [pair.power for pair in pairs if pair.power is not None]
    return ColumnFigures(
        column.name, groups, without, gap, detectable, (min(powers), max(powers)) if powers else None
    )


def _list_lines(column: ColumnFigures, report: GroupReport) -> list[str]:
    count = sum(group.count for group in column.groups)
    without = f"; {pluralise(column.without, 'picture')} without one" if column.without else ""
    lines = [f"  by {_fit(column.name)}: {pluralise(count, 'picture')}{without}"]
    width = max(len(_fit(group.name)) for group in column.groups)
    for group in column.groups:
        recalls = "".join(
            f"  {escape_text(label)} {_format_share(recall, group.recall_interval[label])}"
            for label, recall in group.recall.items()
            if recall is not None
        )
        failed = f"  {group.unanswered:,} unanswered" if group.unanswered else ""
        accuracy = _format_share(group.accuracy, group.accuracy_interval)
        lines.append(f"    {_fit(group.name):<{width}} {group.count:8,}  accuracy {accuracy} {recalls}{failed}")
    return lines + [f"    {finding}" for finding in list_findings(column, report)]


def list_findings(column: ColumnFigures, report: GroupReport) -> list[str]:
    """Say whether a gap is more than chance, and which would have been found."""
    gap = column.clearest
    if gap is None or column.detectable is None:
        return ["no two groups are large enough to be compared"]
    columns = pluralise(len(report.columns), "column")
    verdict = "more than chance" if gap.p < LEVEL else "may be chance"
    where = "over all labels" if gap.label is None else f"recall of {escape_text(gap.label)}"
    lines = [
        f"clearest gap: {_fit(gap.better)} {100 * gap.size:.1f} points above {_fit(gap.worse)}, {where}; "
        f"p {gap.p:.4f} among all gaps of {columns}: {verdict}"
    ]
    sizes = [f"{100 * size:.1f}" for size in dict.fromkeys(column.detectable) if size is not None]
    if sizes:
        some = "" if column.detectable[1] is not None else " between some of the groups"
        lines.append(
            f"a gap of {' to '.join(sizes)} points over all labels{some} would be found in 4 of 5 such samples"
        )
    else:
        lines.append("no gap would be found in 4 of 5 such samples: there are too few pictures")
    if column.power is not None and report.stated_gap is not None:
        least, most = (f"{100 * power:.0f}" for power in column.power)
        powers = least if least == most else f"{least} to {most}"
        lines.append(f"one of {100 * report.stated_gap:g} points would be found in {powers} % of such samples")
    return lines


def _fit(name: str) -> str:
    shown = escape_text(name)
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 1]}…"


def _format_share(share: float | None, interval: Interval) -> str:
    return "n/a" if share is None else f"{share:7.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"
