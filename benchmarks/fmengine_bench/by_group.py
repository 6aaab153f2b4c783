"""Scores answers by group: accuracy and recall, with intervals, and whether gaps are more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fmengine.jobs.rows import escape_text
from fmengine.types import Prediction, Result
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


class GroupTally:
    """Takes the results of pictures whose groups are known, one by one."""

    def __init__(self, columns: Sequence[GroupColumn], labels: Sequence[str]) -> None:
        self._columns, self._labels = columns, list(labels)
        self._groups = [{group: index for index, group in enumerate(column.groups)} for column in columns]
        self._codes: list[list[int]] = []  # of each picture, a group in each column; -1 for none
        self._targets: list[int] = []
        self._right: list[bool | None] = []  # None without an answer

    def add(self, path: str, label: str, result: Result) -> None:
        """Take the result of a picture, and its label."""
        codes = [
            groups.get(column.values.get(path, ""), -1)
            for groups, column in zip(self._groups, self._columns, strict=True)
        ]
        self._codes.append(codes)
        self._targets.append(self._labels.index(label))
        self._right.append(result.label == label if isinstance(result, Prediction) else None)

    def report(self, stated_gap: float | None = None) -> GroupReport:
        """Score the groups, and test their gaps; `stated_gap` is one whose power is wanted, 0 to 1."""
        codes = np.array(self._codes, np.int64).reshape(len(self._codes), len(self._columns))
        targets = np.array(self._targets, np.int64)
        answered = np.array([right is not None for right in self._right], bool)
        right = np.array([right is True for right in self._right], bool)
        gaps = compare_groups(right[answered], targets[answered], list(codes[answered].T), stated_gap)
        columns = []
        for column, of_picture, pairs in zip(self._columns, codes.T, gaps, strict=True):
            groups = [
                self._score(group, of_picture == index, answered, right, targets)
                for index, group in enumerate(column.groups)
            ]
            without = int((of_picture < 0).sum())
            columns.append(_describe_column(column, groups, without, pairs, self._labels))
        return GroupReport(columns, stated_gap)

    def _score(
        self,
        name: str,
        inside: npt.NDArray[np.bool_],
        answered: npt.NDArray[np.bool_],
        right: npt.NDArray[np.bool_],
        targets: npt.NDArray[Any],
    ) -> GroupFigures:
        rows = inside & answered
        counts = {label: int((rows & (targets == index)).sum()) for index, label in enumerate(self._labels)}
        found = {label: int((rows & right & (targets == index)).sum()) for index, label in enumerate(self._labels)}
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
    return lines + _list_findings(column, report)


def _list_findings(column: ColumnFigures, report: GroupReport) -> list[str]:
    """Say whether a gap is more than chance, and which would have been found."""
    gap = column.clearest
    if gap is None or column.detectable is None:
        return ["    no two groups are large enough to be compared"]
    columns = pluralise(len(report.columns), "column")
    verdict = "more than chance" if gap.p < LEVEL else "may be chance"
    where = "over all labels" if gap.label is None else f"recall of {escape_text(gap.label)}"
    lines = [
        f"    clearest gap: {_fit(gap.better)} {100 * gap.size:.1f} points above {_fit(gap.worse)}, {where}; "
        f"p {gap.p:.4f} among all gaps of {columns}: {verdict}"
    ]
    sizes = [f"{100 * size:.1f}" for size in dict.fromkeys(column.detectable) if size is not None]
    if sizes:
        some = "" if column.detectable[1] is not None else " between some of the groups"
        lines.append(
            f"    a gap of {' to '.join(sizes)} points over all labels{some} would be found in 4 of 5 such samples"
        )
    else:
        lines.append("    no gap would be found in 4 of 5 such samples: there are too few pictures")
    if column.power is not None and report.stated_gap is not None:
        least, most = (f"{100 * power:.0f}" for power in column.power)
        powers = least if least == most else f"{least} to {most}"
        lines.append(f"    one of {100 * report.stated_gap:g} points would be found in {powers} % of such samples")
    return lines


def _fit(name: str) -> str:
    shown = escape_text(name)
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 1]}…"


def _format_share(share: float | None, interval: Interval) -> str:
    return "n/a" if share is None else f"{share:7.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"
