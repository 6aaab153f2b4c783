"""Whether gaps between groups are called more than chance as often as they should be, on drawn answers."""

import numpy as np
import pytest

from fmengine_bench.permutation import MIN_PICTURES, PairGaps, compare_groups, compute_power


def smallest_p(columns: list[list[PairGaps]]) -> float:
    return min(pair.p.min() for pairs in columns for pair in pairs)


def draw(rng, count, recalls, groups, columns=1):
    """Labels, whether each answer is right, and groups that do not matter, of other sizes and mixes of labels."""
    labels = rng.integers(0, 2, count)
    right = rng.random(count) < np.take(recalls, labels)
    drawn = [rng.integers(-1, groups, count) for _ in range(columns)]
    # Half of the pictures of one label are moved into the last group.
    return right, labels, [np.where((labels == 1) & (rng.random(count) < 0.5), groups - 1, g) for g in drawn]


@pytest.mark.parametrize(("columns", "draws"), [(1, 200), pytest.param(20, 40, marks=pytest.mark.slow)])
def test_false_alarms_are_as_rare_as_they_should_be(columns, draws):
    """At most 5 in 100, plus three standard errors of that, however many columns and groups there are."""
    rng, alarms = np.random.default_rng(columns), 0
    for seed in range(draws):
        # Recalls differ by label, so that accuracies differ by group.
        drawn = draw(rng, 240, (0.6, 0.95), 3, columns)
        alarms += smallest_p(compare_groups(*drawn, permutations=199, seed=seed)) <= 0.05
    assert alarms / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


@pytest.mark.parametrize("recalls", [(0.95, 0.5), (0.7, 0.98)])
def test_whose_group_is_known_makes_no_gap(recalls):
    """Pictures with a group are answered better, or worse, than those without, and alike in all groups."""
    rng, alarms, draws = np.random.default_rng(9), 0, 100
    for seed in range(draws):
        known = rng.random(300) < 0.4
        right = rng.random(300) < np.where(known, *recalls)
        column = np.where(known, rng.integers(0, 3, 300), -1)
        found = compare_groups(right, rng.integers(0, 2, 300), [column], permutations=99, seed=seed)
        alarms += smallest_p(found) <= 0.05
    assert alarms / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_gaps_are_found_as_often_as_the_power_says():
    """A little more often, because the gaps of single labels may be found too."""
    rng, draws, gap = np.random.default_rng(3), 300, 0.15
    labels, group = np.arange(300) % 2, np.arange(300) // 2 % 2
    found, powers = 0, []
    for seed in range(draws):
        right = rng.random(300) < np.where(group == 0, 0.8 + gap / 2, 0.8 - gap / 2)
        columns = compare_groups(right, labels, [group], gap, permutations=199, seed=seed)
        found += smallest_p(columns) <= 0.05
        powers.append(columns[0][0].power)
    assert -0.02 <= found / draws - np.mean(powers) <= 0.08


def test_the_detectable_gap_has_a_power_of_80_percent():
    rng = np.random.default_rng(4)
    right, labels, columns = draw(rng, 500, (0.7, 0.9), 2)
    (pair,) = compare_groups(right, labels, columns, permutations=499)[0]
    (again,) = compare_groups(right, labels, columns, pair.detectable, permutations=499)[0]
    assert again.power == pytest.approx(0.8, abs=0.02)


def test_a_planted_gap_is_found_among_20_columns():
    rng = np.random.default_rng(5)
    labels, columns = rng.integers(0, 2, 600), [rng.integers(0, 3, 600) for _ in range(20)]
    right = rng.random(600) < np.where((columns[7] == 1) & (labels == 1), 0.6, 0.9)
    found = compare_groups(right, labels, columns)
    assert min(pair.p.min() for pair in found[7]) < 0.01
    assert all(pair.p.min() > 0.05 for index, pairs in enumerate(found) if index != 7 for pair in pairs)
    worst = max(found[7], key=lambda pair: np.abs(pair.scores).max())
    assert np.abs(worst.scores).argmax() == 1, "the label that it was planted in"


def test_more_columns_make_p_larger():
    rng = np.random.default_rng(6)
    right, labels, columns = draw(rng, 400, (0.8, 0.8), 2, 20)
    alone = compare_groups(right, labels, columns[:1])[0][0]
    among = compare_groups(right, labels, columns)[0][0]
    assert np.array_equal(alone.gaps, among.gaps, equal_nan=True)
    assert (among.p >= alone.p).all()
    assert among.p.min() > alone.p.min()
    assert among.detectable > alone.detectable


def test_another_mix_of_labels_is_no_gap():
    """One group has the hard label nine times as often; in each label both are answered alike."""
    labels = np.array(([0] * 10 + [1] * 90) + ([0] * 90 + [1] * 10))
    group = np.repeat([0, 1], 100)
    right = (np.arange(200) % 10 > 0) | (labels == 0)  # nine in ten of label 1, and all of label 0
    (pair,) = compare_groups(right, labels, [group])[0]
    assert pair.gaps == pytest.approx([0, 0, 0], abs=1e-6)
    assert right[group == 0].mean() < right[group == 1].mean()


def test_pictures_without_a_group_and_small_groups_are_left_out():
    labels, group = np.zeros(60, np.int64), np.repeat([0, 1, 2, -1], [25, 25, MIN_PICTURES - 1, 1])
    right = np.arange(60) < 50
    (pair,) = compare_groups(right, labels, [group])[0]
    assert (pair.first, pair.second) == (0, 1)
    assert pair.gaps.tolist() == [0, 0]


def test_nothing_is_compared_in_a_label_with_few_pictures():
    labels = np.repeat([0, 1], [50, 9])
    right, group = np.arange(59) % 3 > 0, np.arange(59) % 2
    (pair,) = compare_groups(right, labels, [group])[0]
    assert np.isnan(pair.gaps[1])
    assert pair.p[1] == 1
    assert np.isfinite(pair.gaps[[0, 2]]).all()


@pytest.mark.parametrize("right", [True, False])
def test_answers_that_are_all_alike_show_no_gap(right):
    (pair,) = compare_groups(np.full(40, right), np.arange(40) % 2, [np.arange(40) // 20], 0.5)[0]
    assert (pair.p == 1).all()
    assert 0 < pair.detectable < 0.7
    assert 0 <= pair.power <= 1


def test_no_pictures_are_no_pairs():
    nothing = np.zeros(0, np.int64)
    assert compare_groups(nothing.astype(bool), nothing, [nothing, nothing]) == [[], []]


def test_the_same_seed_gives_the_same_p():
    drawn = draw(np.random.default_rng(8), 100, (0.7, 0.9), 2)
    first, second, other = (compare_groups(*drawn, seed=seed)[0][0].p for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_power_is_golden():
    """Of 0.6 against 0.7, tested at 5 % on both sides, for which textbooks ask for 356 in each group."""
    power = compute_power(0.1, np.array([0.65]), np.array([356]), np.array([356]), 1.959964)
    assert power == pytest.approx(0.8, abs=0.005)
