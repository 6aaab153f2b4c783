"""The figures of an evaluation, on cases that can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmengine_bench.metrics import (
    COVERAGES,
    compute_balanced_interval,
    compute_calibration_error,
    compute_wilson_interval,
    report,
)

LABELS = ("happy", "sad", "odd")


def probabilities(*confidences: float, answers: list[int] | None = None, classes: int = 3) -> np.ndarray:
    """Rows that answer with the given confidence; the rest is shared evenly."""
    rows = np.repeat(((1 - np.array(confidences)) / (classes - 1))[:, None], classes, axis=1)
    rows[np.arange(len(rows)), answers or [0] * len(rows)] = confidences
    return rows


# The second is that of Newcombe, "Two-sided confidence intervals for the single proportion", 1998.
@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (500, 1000, 0.4691, 0.5309),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_intervals_are_golden(right: int, count: int, low: float, high: float) -> None:
    assert compute_wilson_interval(right, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_hold_the_share(pair: tuple[int, int]) -> None:
    right, count = pair
    low, high = compute_wilson_interval(right, count)
    assert 0 <= low <= right / count + 1e-12
    assert right / count - 1e-12 <= high <= 1
    mirrored = compute_wilson_interval(count - right, count)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(1, 500), st.integers(1, 500))
def test_more_pictures_narrow_the_interval(right: int, wrong: int) -> None:
    few, many = (
        compute_wilson_interval(right, right + wrong),
        compute_wilson_interval(4 * right, 4 * (right + wrong)),
    )
    assert many[1] - many[0] < few[1] - few[0]


def test_the_interval_of_one_class_is_wilsons() -> None:
    assert compute_balanced_interval([(81, 263)]) == pytest.approx(compute_wilson_interval(81, 263))


def test_balanced_intervals_hold_the_mean_as_often_as_they_should() -> None:
    """Of 95 in 100 draws from two known recalls."""
    rng, recalls, counts = np.random.default_rng(4), (0.97, 0.9), (400, 120)
    draws = [[(int(rng.binomial(n, p)), n) for p, n in zip(recalls, counts, strict=True)] for _ in range(2000)]
    held = [low <= 0.935 <= high for low, high in map(compute_balanced_interval, draws)]
    assert 0.93 <= np.mean(held) <= 0.97


def test_every_share_lies_in_its_interval() -> None:
    rng = np.random.default_rng(5)
    targets, confidence = rng.integers(0, 2, 300), rng.uniform(0.5, 1, 300)
    answers = np.where(rng.uniform(size=300) < confidence, targets, 1 - targets)
    figures = report(probabilities(*confidence, answers=list(answers), classes=2), targets, ("happy", "sad"))
    for label, recall in figures.recall.items():
        assert figures.recall_interval[label][0] <= recall <= figures.recall_interval[label][1]
    for share, accuracy in figures.coverage.items():
        assert figures.coverage_interval[share][0] <= accuracy <= figures.coverage_interval[share][1]
    assert figures.ece_interval[0] < figures.ece_interval[1]
    assert figures.ece < figures.ece_interval[1] < 0.15


def test_calibration_error_of_perfect_confidence_is_zero() -> None:
    assert compute_calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_calibration_error_of_certain_mistakes_is_one() -> None:
    assert compute_calibration_error(np.ones(4), np.zeros(4, bool)) == 1


def test_calibration_error_is_weighted_by_bin() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # Four at 0.95 of which 0.75 are right, two at 0.55 of which 0.5 are.
    assert compute_calibration_error(confidence, right) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)


def test_errors_of_both_signs_cancel_within_a_bin_only() -> None:
    right = np.array([True, False])
    assert compute_calibration_error(np.array([0.5, 0.5]), right) == 0
    assert compute_calibration_error(np.array([0.2, 0.8]), right) == pytest.approx(0.8)


def test_confusion_recall_and_precision() -> None:
    answers, targets = [0, 0, 1, 1, 0], np.array([0, 0, 0, 1, 1])
    figures = report(probabilities(0.9, 0.9, 0.9, 0.9, 0.9, answers=answers), targets, LABELS)
    assert figures.confusion == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert (figures.count, figures.accuracy) == (5, 0.6)
    assert figures.accuracy_interval == compute_wilson_interval(3, 5)
    assert figures.recall == {"happy": pytest.approx(2 / 3), "sad": 0.5, "odd": None}
    assert figures.precision == {"happy": pytest.approx(2 / 3), "sad": 0.5, "odd": None}
    assert figures.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figures.labels == list(LABELS)


def test_recall_and_precision_are_not_the_same() -> None:
    figures = report(probabilities(0.9, 0.9, 0.9, answers=[0, 0, 0]), np.array([0, 1, 1]), LABELS)
    assert figures.recall == {"happy": 1.0, "sad": 0.0, "odd": None}
    assert figures.precision == {"happy": pytest.approx(1 / 3), "sad": None, "odd": None}


def test_coverage_counts_the_surest_pictures() -> None:
    confidence = np.linspace(0.99, 0.5, 10)
    targets = np.array([0] * 7 + [1] * 3)  # the three least sure are wrong
    figures = report(probabilities(*confidence), targets, LABELS)
    assert figures.coverage == {
        1.0: 0.7,
        0.99: 0.7,
        0.95: 0.7,
        0.9: pytest.approx(7 / 9),
        0.8: pytest.approx(7 / 8),
        0.7: 1.0,
        0.5: 1.0,
    }


def test_one_picture_is_enough() -> None:
    figures = report(probabilities(0.8), np.array([0]), LABELS)
    assert figures.accuracy == figures.balanced_accuracy == 1
    assert figures.ece == pytest.approx(0.2)
    assert set(figures.coverage.values()) == {1.0}


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0.34, 1)), min_size=1, max_size=60),
)
def test_figures_stay_within_their_bounds(rows: list[tuple[int, int, float]]) -> None:
    targets = np.array([target for target, _, _ in rows])
    answers = [answer for _, answer, _ in rows]
    figures = report(probabilities(*(c for _, _, c in rows), answers=answers), targets, LABELS)
    assert np.sum(figures.confusion) == figures.count == len(rows)
    assert figures.accuracy == pytest.approx(np.trace(figures.confusion) / len(rows))
    assert list(figures.coverage) == list(COVERAGES)
    assert figures.coverage[1.0] == figures.accuracy
    shares = [*figures.coverage.values(), *figures.recall.values(), *figures.precision.values()]
    assert all(0 <= share <= 1 for share in shares if share is not None)
    assert 0 <= figures.ece <= 1
    assert 0 <= figures.balanced_accuracy <= 1
