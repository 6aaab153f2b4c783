"""Faces that are followed by where they are, and what is said of one over several frames."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fmengine.detect.boxes import compute_ious
from fmengine.media.smoothing import ExponentialMean
from fmengine.media.tracker import Tracker

RATE = 30


def box(x: float, y: float, side: float = 40) -> tuple[float, float, float, float]:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def update(
    tracker: Tracker, boxes: Sequence[tuple[float, ...]], time: float, scores: Sequence[float] | None = None
) -> list[int | None]:
    """Return the id of each box, None too for one that continues no track."""
    found = np.array(boxes, np.float32).reshape(-1, 4)
    tracks = tracker.update(found, np.array(scores if scores is not None else [0.9] * len(boxes)), time)
    return [track and track.id for track in tracks]


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(high=0.6, patience=1.0)


def test_an_id_is_given_in_the_third_frame_and_kept(tracker: Tracker) -> None:
    ids = [update(tracker, [box(50 + 8 * i, 60)], i / RATE) for i in range(20)]
    assert ids == [[None], [None], *[[1]] * 18]
    assert tracker.count == 1


def test_what_is_found_once_gets_no_id(tracker: Tracker) -> None:
    for i in range(30):
        stray = [box(20 + 97 * i % 300, 200, 30)] if i % 4 == 0 else []
        update(tracker, [box(50, 60), *stray], i / RATE)
    assert tracker.count == 1


def test_two_faces_cross_and_keep_their_ids(tracker: Tracker) -> None:
    """One hides the other for ten frames, as a detector sees it."""
    seen: dict[str, set[int | None]] = {"a": set(), "b": set()}
    for i in range(60):
        a, b = box(20 + 6 * i, 100), box(374 - 6 * i, 104)
        hidden = abs((20 + 6 * i) - (374 - 6 * i)) < 60
        ids = update(tracker, [a] if hidden else [a, b], i / RATE)
        if i > 2:
            seen["a"].add(ids[0])
            if not hidden:
                seen["b"].add(ids[1])
    assert seen == {"a": {1}, "b": {2}}


def test_an_id_is_never_given_again(tracker: Tracker) -> None:
    given = []
    for person in range(4):
        for i in range(5):
            given += update(tracker, [box(50, 60)], 10 * person + i / RATE)
    assert [number for number in dict.fromkeys(given) if number] == [1, 2, 3, 4]


@pytest.mark.parametrize(("gap", "expected"), [(0.9, 1), (1.2, None)])
def test_a_hidden_face_is_waited_for_in_seconds(tracker: Tracker, gap: float, expected: int | None) -> None:
    for i in range(5):
        update(tracker, [box(50, 60)], i / RATE)
    assert update(tracker, [box(50, 60)], 4 / RATE + gap) == [expected]


def test_a_low_score_continues_a_track_and_begins_none(tracker: Tracker) -> None:
    for i in range(4):
        update(tracker, [box(50, 60)], i / RATE)
    assert update(tracker, [box(51, 60), box(200, 60)], 4 / RATE, [0.4, 0.4]) == [1, None]
    for i in range(5, 12):
        assert update(tracker, [box(200, 60)], i / RATE, [0.4]) == [None]
    assert tracker.count == 1


def test_a_low_score_confirms_no_face(tracker: Tracker) -> None:
    ids = [update(tracker, [box(50, 60)], i / RATE, [score]) for i, score in enumerate([0.9, 0.4, 0.9])]
    assert ids == [[None]] * 3


def test_velocity_is_of_seconds_and_not_of_frames(tracker: Tracker) -> None:
    """Half of the frames are missing, irregularly: where a face is expected follows from the time stamps."""
    times = [0, 1, 2, 3, 4, 6, 9, 13, 15, 19, 20, 24]
    ids = [update(tracker, [box(50 + 9 * i, 60)], i / RATE) for i in times]
    assert ids[2:] == [[1]] * 10


def test_time_that_stands_still_does_no_harm(tracker: Tracker) -> None:
    assert [update(tracker, [box(50 + i, 60)], 0.0) for i in range(4)] == [[None], [None], [1], [1]]


def test_ids_outlive_a_change_of_the_frame_size(tracker: Tracker) -> None:
    for i in range(6):
        update(tracker, [box(50 + 10 * i, 60)], i / RATE)
    tracker.rescale(2.0, 3.0)
    left, top, right, bottom = box(110, 60)
    assert update(tracker, [(2 * left, 3 * top, 2 * right, 3 * bottom)], 6 / RATE) == [1]


def test_frames_without_faces_cost_no_memory(tracker: Tracker) -> None:
    for i in range(200):
        update(tracker, [box(50 + 100 * (i % 7), 60)] if i % 3 else [], i / 2)
    assert len(tracker._tracks) <= 3


def test_ious_are_those_of_the_pixels() -> None:
    random = np.random.default_rng(1)
    corners = random.integers(0, 12, (2, 6, 2))
    boxes = np.concatenate([corners, corners + random.integers(1, 9, (2, 6, 2))], axis=2).astype(float)
    masks = np.zeros((2, 6, 24, 24), bool)
    for side in range(2):
        for number, (left, top, right, bottom) in enumerate(boxes[side].astype(int)):
            masks[side, number, top:bottom, left:right] = True
    common = (masks[0][:, None] & masks[1][None]).sum((2, 3))
    either = (masks[0][:, None] | masks[1][None]).sum((2, 3))
    np.testing.assert_allclose(compute_ious(boxes[0], boxes[1]), common / either)


# What is said of a face


def test_a_mean_weighs_answers_by_their_age() -> None:
    mean = ExponentialMean(0.5)
    mean.add([1.0, 0.0], 10.0)
    weight = math.exp(-0.25 / 0.5)
    assert mean.add([0.2, 0.8], 10.25) == pytest.approx([(weight + 0.2) / (weight + 1), 0.8 / (weight + 1)])


def test_a_mean_is_of_probabilities() -> None:
    mean, random = ExponentialMean(), np.random.default_rng(3)
    for i in range(50):
        probabilities = random.dirichlet([1, 1, 1])
        found = mean.add(probabilities, i * random.uniform(0, 0.2))
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()


def test_the_first_answer_is_its_own_mean_and_an_old_one_is_forgotten() -> None:
    mean = ExponentialMean(0.5)
    assert mean.add([0.3, 0.7], 0.0) == pytest.approx([0.3, 0.7])
    assert mean.add([0.9, 0.1], 60.0) == pytest.approx([0.9, 0.1])


def test_one_frame_does_not_turn_a_label() -> None:
    mean = ExponentialMean(0.5)
    for i in range(15):
        mean.add([0.9, 0.1], i / RATE)
    assert mean.add([0.05, 0.95], 15 / RATE).argmax() == 0
    assert [mean.add([0.05, 0.95], i / RATE).argmax() for i in range(16, 40)][-1] == 1
