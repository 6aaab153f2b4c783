"""Follow faces from frame to frame by where they are.

Two-stage association as in ByteTrack: first the detections of high score, then those of low score for the tracks
that are left. Y. Zhang et al., ByteTrack: Multi-Object Tracking by Associating Every Detection Box, ECCV 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detect.boxes import Boxes, compute_ious

MIN_IOU, MIN_IOU_OF_LOW = 0.3, 0.5  # of a detection and where its track is expected
HITS = 3  # frames in which a face is found before it has an id: what a detector makes up it finds once
WEIGHT = 0.4  # of the newest velocity in a track's


@dataclass(eq=False, slots=True, weakref_slot=True)
class Track:
    """A face that is followed.

    Attributes:
        box: where it was found last, float64 `[4]`.
        time: seconds at which.
        velocity: of its centre, in pixels a second, float64 `[2]`.
        hits: frames in which it was found.
        id: None until it has been found in `HITS` frames.
    """

    box: npt.NDArray[np.float64]
    time: float
    velocity: npt.NDArray[np.float64]
    hits: int = 1
    id: int | None = None

    def predict(self, time: float) -> npt.NDArray[np.float64]:
        """Return where it is expected, by its velocity."""
        return self.box + np.tile(self.velocity * (time - self.time), 2)

    def move(self, box: npt.NDArray[np.float64], time: float) -> None:
        """Note where it was found."""
        elapsed = time - self.time
        if elapsed > 0:
            shift = box - self.box
            newest = (shift[:2] + shift[2:]) / 2 / elapsed
            weight = 1.0 if self.hits == 1 else WEIGHT
            self.velocity = self.velocity + weight * (newest - self.velocity)
        self.box, self.time, self.hits = box, time, self.hits + 1


class Tracker:
    """Gives detections their tracks. One that has an id is kept as long as its face is hidden for a moment.

    Args:
        high: score of a detection that begins a track; a lower one can only continue one.
        patience: seconds that a face may be hidden.
    """

    def __init__(self, *, high: float, patience: float) -> None:
        self._high, self._patience = high, patience
        self._tracks: list[Track] = []
        self.count = 0  # ids that were given

    def update(self, boxes: Boxes, scores: npt.NDArray[np.floating[Any]], time: float) -> list[Track | None]:
        """Find the track of each detection in a frame.

        Args:
            boxes: of the detections.
            scores: of them, `[n]`.
            time: of the frame in seconds.

        Returns:
            The track of each; None for a low score that continues none.
        """
        boxes = boxes.astype(np.float64)
        self._tracks = [track for track in self._tracks if time - track.time <= self._patience]
        found: list[Track | None] = [None] * len(boxes)
        high, low = np.flatnonzero(scores >= self._high), np.flatnonzero(scores < self._high)
        self._associate(self._tracks, boxes, high, time, MIN_IOU, found)
        taken = set(filter(None, found))
        left = [track for track in self._tracks if track.id is not None and track not in taken]
        self._associate(left, boxes, low, time, MIN_IOU_OF_LOW, found)
        for row in high.tolist():
            if found[row] is None:
                found[row] = Track(boxes[row], time, np.zeros(2))
        taken = set(filter(None, found))
        self._tracks = [track for track in self._tracks if track.id is not None or track in taken]
        self._tracks += [track for track in found if track is not None and track.hits == 1]
        for track in self._tracks:
            if track.id is None and track.hits >= HITS:
                self.count += 1
                track.id = self.count
        return found

    def rescale(self, across: float, down: float) -> None:
        """Take over a change of the frames' size: by how much they are wider, and higher."""
        for track in self._tracks:
            track.box = track.box * np.array([across, down, across, down])
            track.velocity = track.velocity * np.array([across, down])

    def _associate(
        self,
        tracks: Sequence[Track],
        boxes: Boxes,
        rows: npt.NDArray[np.intp],
        time: float,
        min_iou: float,
        found: list[Track | None],
    ) -> None:
        """Give detections to tracks, those that overlap most first."""
        if not tracks or not len(rows):
            return
        ious = compute_ious(np.stack([track.predict(time) for track in tracks]), boxes[rows])
        while ious.max() >= min_iou:
            index, column = divmod(int(ious.argmax()), len(rows))
            row = int(rows[column])
            tracks[index].move(boxes[row], time)
            found[row] = tracks[index]
            ious[index], ious[:, column] = -1.0, -1.0
