"""The comparator and its table: what holds, what does not, and the numbers that documents promise."""

import math

import numpy as np
import pytest

from fmengine.check.compare import (
    CPU_LIBRARIES,
    EXPORTED_LOGITS,
    HALF_PRECISION,
    PARITY,
    PARITY_FEATURES,
    Tolerance,
    compare,
    compare_features,
    compare_logits,
)

EXPECTED = np.array([[0.9, 0.1], [0.2, 0.8], [0.505, 0.495], [0.6, 0.4]])


def moved(*changes: float) -> np.ndarray:
    """The expected probabilities of the first label moved by so much, picture by picture."""
    return EXPECTED + np.array(changes)[:, None] * [1, -1]


def test_the_table_is_what_documents_promise() -> None:
    assert Tolerance(probability=1e-4, margin=0.02) == CPU_LIBRARIES
    assert Tolerance(probability=0.01, margin=0.02) == HALF_PRECISION
    assert {
        "fp32": Tolerance(probability=1e-4, mean_probability=1e-5),
        "fp16": Tolerance(probability=0.02, mean_probability=2e-3, flips=0.001),
        "int8": Tolerance(mean_probability=0.02, flips=0.015),
    } == PARITY
    assert PARITY_FEATURES == {"fp32": 0.99999, "fp16": 0.999, "int8": 0.98}
    assert EXPORTED_LOGITS == {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}


def test_equal_answers_hold_with_any_tolerance() -> None:
    comparison = compare(EXPECTED, EXPECTED, Tolerance(probability=0, mean_probability=0))
    assert comparison.holds
    assert (comparison.largest, comparison.mean, comparison.flips) == (0, 0, 0)


def test_the_figures_are_those_of_each_picture() -> None:
    comparison = compare(moved(0.02, 0, 0, -0.06), EXPECTED, Tolerance(probability=0.05))
    assert comparison.changes == pytest.approx([0.02, 0, 0, 0.06])
    assert comparison.margins == pytest.approx([0.8, 0.6, 0.01, 0.2])
    assert (comparison.largest, comparison.mean) == (pytest.approx(0.06), pytest.approx(0.02))
    assert comparison.excessive.tolist() == [False, False, False, True]
    assert not comparison.holds
    assert str(comparison) == (
        "its probabilities differ by 6.0e-02 at most (allowed is 0.05) and 0 labels turn, on 4 pictures"
    )


def test_a_flip_counts_beyond_the_margin() -> None:
    found = moved(0, 0, -0.01, -0.2)  # the third is nearly even
    assert compare(found, EXPECTED, Tolerance()).flips == 2
    comparison = compare(found, EXPECTED, Tolerance(margin=0.02))
    assert (comparison.flips, comparison.holds) == (1, False)
    assert comparison.flipped.tolist() == [False, False, True, True]
    assert compare(moved(0, 0, -0.01, 0), EXPECTED, Tolerance(margin=0.02)).holds


def test_a_share_of_the_labels_may_flip() -> None:
    expected = np.tile([[0.51, 0.49]], (300, 1))
    found = expected.copy()
    found[:3] = 0.49, 0.51
    assert compare(found, expected, Tolerance(flips=0.01)).holds
    found[3] = 0.49, 0.51
    assert compare(found, expected, Tolerance(flips=0.01)).breaches == [
        "labels turned: 4 of 300; allowed are 1.0%"
    ]
    assert compare(found[3:10], expected[3:10], Tolerance(flips=0.01)).holds, "one may in a small set"
    assert not compare(found[3:10], expected[3:10], Tolerance()).holds


def test_the_mean_is_limited_where_single_pictures_are_not() -> None:
    tolerance = Tolerance(mean_probability=0.02)
    assert compare(moved(0.06, 0, 0, 0), EXPECTED, tolerance).holds
    (breach,) = compare(moved(0.06, -0.06, 0, 0), EXPECTED, tolerance).breaches
    assert breach == "confidences move by 0.03 on average, over 0.02"


@pytest.mark.parametrize("both", [False, True])
def test_what_is_no_number_never_holds(both: bool) -> None:
    broken = moved(0, math.nan, 0, 0)
    comparison = compare(broken, broken if both else EXPECTED, Tolerance())
    assert not comparison.holds
    assert math.isnan(comparison.largest)
    assert comparison.excessive.tolist() == [False, True, False, False]


def test_nothing_compared_does_not_hold() -> None:
    comparison = compare(EXPECTED[:0], EXPECTED[:0], Tolerance())
    assert not comparison.holds
    assert math.isnan(comparison.largest)
    assert math.isnan(comparison.mean)


def test_logits_are_golden() -> None:
    found, expected = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    difference = compare_logits(found, expected)
    assert difference.max == 1
    assert difference.mean == pytest.approx(1.5 / 4)
    assert difference.p99 == pytest.approx(1 - 0.03 * 0.5)
    assert difference.cosine == pytest.approx(3 / (np.sqrt(2.25) * np.sqrt(5)))
    none = compare_logits(found[:0], expected[:0])
    assert all(math.isnan(figure) for figure in (none.max, none.mean, none.p99, none.cosine))


def test_features_are_compared_picture_by_picture() -> None:
    found, expected = (
        np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]),
        np.array([[6.0, 8.0], [0.0, 0.0], [0.0, 1.0]]),
    )
    difference = compare_features(found, expected)
    assert (difference.max, difference.min_cosine) == (4, 0)
    assert difference.cosine == pytest.approx(2 / 3), "one direction, nothing on both sides, and none alike"
    assert compare_features(found[1:2], expected[:1]).cosine == 0, "nothing where there should be something"
    none = compare_features(found[:0], expected[:0])
    assert all(math.isnan(figure) for figure in (none.max, none.cosine, none.min_cosine))
