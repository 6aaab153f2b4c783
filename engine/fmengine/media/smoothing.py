"""Average what a network says of one face over the last moments."""

import math

import numpy as np
import numpy.typing as npt

SECONDS = 0.5  # in which an answer loses its weight by e


class ExponentialMean:
    """The mean of probabilities, each weighted by exp(-age / `seconds`).

    Ages are differences of time stamps, so that dropped frames and other rates change no answer's weight. The mean
    is divided by the sum of the weights: from the first answer on it is one of probabilities, which add up to 1.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds, self._time = seconds, 0.0
        self._sum: npt.NDArray[np.float64] | None = None

    def add(self, probabilities: npt.ArrayLike, time: float) -> npt.NDArray[np.float64]:
        """Add the probabilities of a frame at a time in seconds, `[K]`, and return the mean."""
        newest = np.asarray(probabilities, np.float64)
        if self._sum is not None:
            newest = newest + self._sum * math.exp(-max(0.0, time - self._time) / self._seconds)
        self._sum, self._time = newest, time
        mean: npt.NDArray[np.float64] = newest / newest.sum()
        return mean
