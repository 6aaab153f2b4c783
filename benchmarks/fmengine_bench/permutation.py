"""Tests gaps between groups of pictures by permutation, and computes which gap would be found.

A gap between two groups is the difference of their recalls, in one label or over all: there the labels' gaps are
averaged with Cochran's weights n₁n₂ / (n₁ + n₂) ("Some methods for strengthening the common χ² tests", 1954), so
that groups with another mix of labels have no gap by that. Each is divided by its standard deviation under
permutation.

Under the hypothesis that a picture's groups do not matter, the pictures of one label could have changed places.
They do so many times, in all columns at once, and the largest of all gaps is noted each time: a gap's p is the
share of the times at which any gap was as large. That holds for all gaps together, however many groups, labels and
columns there are (Westfall and Young, "Resampling-based multiple testing", 1993, the single-step maxT), and p is
never 0 (Phipson and Smyth, "Permutation p-values should never be zero", 2010).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt

PERMUTATIONS = 2000
MIN_PICTURES = 10  # of a group, or of a group in a label, that is compared: fewer have a gap by chance alone
CHUNK = 2**22  # numbers in memory at a time
LEVEL = 0.05
Z95 = 1.959964
POWER = 0.8  # with which a gap is called one that would be found

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class PairGaps:
    """The gaps between two groups.

    Attributes:
        first: index of one group.
        second: index of the other.
        gaps: recall of the first less that of the second, by label, and last over all labels; NaN where either has
            too few pictures.
        scores: the same in standard deviations; 0 for NaN.
        p: of each, corrected; 1 for NaN.
        detectable: the gap over all labels that would be found with a power of 80 %; None where none would be.
        power: to find the stated gap; None without one.
    """

    first: int
    second: int
    gaps: Floats
    scores: Floats
    p: Floats
    detectable: float | None
    power: float | None


def compare_groups(
    right: npt.NDArray[np.bool_],
    labels: Integers,
    columns: Sequence[Integers],
    stated_gap: float | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[list[PairGaps]]:
    """Test all gaps between the groups of each column.

    Args:
        right: `[N]`, whether each picture is answered right.
        labels: `[N]`, the index of its label.
        columns: `[N]` each, the index of its group; -1 for none.
        stated_gap: whose power is wanted.
        permutations: how many.
        seed: of the permutations.

    Returns:
        Of each column, each pair of groups with `MIN_PICTURES`; no pair where there is one group alone.
    """
    if not len(right):
        return [[] for _ in columns]
    tables = [_Table(labels, column) for column in columns]
    observed = [table.score(table.count(right)[np.newaxis]) for table in tables]
    largest = np.zeros(permutations)
    done = 0
    for counts in _permute(right, labels, tables, permutations, np.random.default_rng(seed)):
        rows = slice(done, done := done + len(counts[0]))
        for table, of_table in zip(tables, counts, strict=True):
            if len(table.pairs):
                scores = np.abs(table.score(of_table)[1]).max(axis=(1, 2))
                largest[rows] = np.maximum(largest[rows], scores)
    largest.sort()
    # Where there are hardly any mistakes all permutations are alike, and say nothing about others.
    critical = max(Z95, float(np.quantile(largest, 1 - LEVEL, method="higher")))
    return [
        _list_pairs(table, right, gaps[0], scores[0], largest, critical, stated_gap)
        for table, (gaps, scores) in zip(tables, observed, strict=True)
    ]


def compute_power(gap: float, recalls: Floats, first: Integers, second: Integers, critical: float) -> float:
    """Compute how probable it is that a gap is found, by the normal approximation.

    It is that for two shares (Fleiss, Levin and Paik, "Statistical methods for rates and proportions", 2003, 4.2),
    over labels.

    Args:
        gap: the same in every label, 0 to 1.
        recalls: `[L]`, of both groups together.
        first: `[L]`, pictures of one group.
        second: `[L]`, pictures of the other.
        critical: standard deviations beyond which a gap is found.
    """
    both = (first > 0) & (second > 0)
    recalls, first, second = recalls[both], first[both], second[both]
    better = np.minimum(1, recalls + gap * second / (first + second))
    worse = np.maximum(0, better - gap)
    pooled = (first * better + second * worse) / (first + second)
    weights = first * second / (first + second)
    if not weights.sum():
        return 0.0
    shift = (weights * (better - worse)).sum()
    by_chance = np.sqrt((weights * pooled * (1 - pooled)).sum())
    spread = np.sqrt((weights**2 * (better * (1 - better) / first + worse * (1 - worse) / second)).sum())
    if not spread:
        return float(shift > critical * by_chance)
    return (1 + erf((shift - critical * by_chance) / spread / 2**0.5)) / 2


class _Table:
    """The groups of a column that are compared, by label.

    Attributes:
        members: `[N, G]` of each picture and group, whether it is in it.
        sizes: `[G, L]`, numbers of pictures.
        pairs: `[P, 2]`, indices of groups with enough pictures.
    """

    def __init__(self, labels: Integers, column: Integers) -> None:
        groups, classes = int(column.max(initial=-1)) + 1, int(labels.max(initial=-1)) + 1
        self.members = (column[:, np.newaxis] == np.arange(groups)).astype(np.float32)
        self._by_label = (labels[:, np.newaxis] == np.arange(classes)).astype(np.float32)
        self.sizes = (self.members.T @ self._by_label).astype(np.float64)
        large = np.flatnonzero(self.sizes.sum(axis=1) >= MIN_PICTURES)
        self.pairs = np.array(list(combinations(large.tolist(), 2)), np.int64).reshape(-1, 2)
        first, second = (self.sizes[self.pairs[:, side]] for side in (0, 1))
        self.weights = first * second / np.maximum(first + second, 1)
        self._compared = np.minimum(first, second) >= MIN_PICTURES
        self._total = self.sizes.sum(axis=0)

    def count(self, right: npt.NDArray[np.bool_]) -> Floats:
        """Count the pictures that are answered right, `[G, L]`."""
        counts: Floats = self.members.T @ (self._by_label * right[:, np.newaxis])
        return counts

    def pool(self, counts: Floats) -> Floats:
        """Compute the recall in each label of all groups together, `[…, L]`, from `[…, G, L]`."""
        pooled: Floats = counts.sum(axis=-2, dtype=np.float64) / np.maximum(self._total, 1)
        return pooled

    def score(self, counts: Floats) -> tuple[Floats, Floats]:
        """Compute gaps, and how many standard deviations they are, both `[B, P, L + 1]`, from `[B, G, L]`."""
        recalls = counts / np.maximum(self.sizes, 1)
        gaps = recalls[:, self.pairs[:, 0]] - recalls[:, self.pairs[:, 1]]
        pooled = self.pool(counts)
        # The variance of what is drawn without putting it back.
        variance = (pooled * (1 - pooled) * self._total / np.maximum(self._total - 1, 1))[:, np.newaxis]
        sums, scales = (self.weights * gaps).sum(axis=2), np.sqrt((self.weights * variance).sum(axis=2))
        by_label = _divide(gaps * np.sqrt(self.weights), np.sqrt(variance))
        scores = np.concatenate([np.where(self._compared, by_label, 0), _divide(sums, scales)[..., None]], axis=2)
        overall = np.where(self.weights.sum(axis=1) > 0, sums / np.maximum(self.weights.sum(axis=1), 1e-9), np.nan)
        return np.concatenate([np.where(self._compared, gaps, np.nan), overall[..., None]], axis=2), scores


def _permute(
    right: npt.NDArray[np.bool_],
    labels: Integers,
    tables: Sequence[_Table],
    permutations: int,
    rng: np.random.Generator,
) -> Iterator[list[Floats]]:
    """Yield of each table what `_Table.count` counts, `[B, G, L]`, while pictures change places in their label."""
    classes = int(labels.max(initial=-1)) + 1
    members = np.concatenate([table.members for table in tables], axis=1)
    starts = np.cumsum([table.members.shape[1] for table in tables])[:-1]
    of_label = [np.flatnonzero(labels == label) for label in range(classes)]
    widest = max(len(right), *((len(table.pairs) + 1) * (classes + 1) for table in tables))
    step = max(1, CHUNK // widest)
    for begin in range(0, permutations, step):
        size = min(step, permutations - begin)
        counts = [
            rng.permuted(np.broadcast_to(right[rows].astype(np.float32), (size, len(rows))), axis=1)
            @ members[rows]
            for rows in of_label
        ]
        yield np.split(np.stack(counts, axis=2), starts, axis=1)


def _list_pairs(
    table: _Table,
    right: npt.NDArray[np.bool_],
    gaps: Floats,
    scores: Floats,
    largest: Floats,
    critical: float,
    stated_gap: float | None,
) -> list[PairGaps]:
    # A little less than the score, for sums in another order are the same gap.
    reached = len(largest) - np.searchsorted(largest, np.abs(scores) * (1 - 1e-6))
    p = np.where(np.isnan(gaps), 1.0, (1 + reached) / (1 + len(largest)))
    pooled = table.pool(table.count(right))
    found = []
    for index, (first, second) in enumerate(table.pairs.tolist()):
        sizes = table.sizes[first], table.sizes[second]
        power = None if stated_gap is None else compute_power(stated_gap, pooled, *sizes, critical)
        detectable = _find_detectable_gap(pooled, *sizes, critical)
        found.append(PairGaps(first, second, gaps[index], scores[index], p[index], detectable, power))
    return found


def _find_detectable_gap(recalls: Floats, first: Integers, second: Integers, critical: float) -> float | None:
    """Find the smallest gap with the power of `POWER`, to a thousandth; None if there is none."""
    low, high = 0, 1000  # thousandths; the power grows with the gap
    while high - low > 1:
        middle = (low + high) // 2
        if compute_power(middle / 1000, recalls, first, second, critical) < POWER:
            low = middle
        else:
            high = middle
    return high / 1000 if compute_power(high / 1000, recalls, first, second, critical) >= POWER else None


def _divide(values: Floats, by: Floats) -> Floats:
    """Divide; 0 where the divisor is."""
    return np.divide(values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape)), where=by > 0)
