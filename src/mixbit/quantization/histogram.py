"""Histograms of tensors that stream by, in memory independent of the amount of data and of its scale."""

import math
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]

#: Bins between a magnitude and its double: each is at most 1/256 as wide as its values are large.
BINS_PER_OCTAVE = 256
#: Octaves that have bins: down to 2^-32 of the largest, so that an outlier leaves the other values their bins.
OCTAVES = 32
#: Values looked at per update; the extremes are exact, the shape between them is sampled.
SAMPLES_PER_UPDATE = 65_536
#: Updates whose extremes are stored one by one.
RECENT = 1024


class Histogram:
    """Counts of a tensor's values over updates.

    Bins are as wide as their values are large: each octave [2^k, 2^(k+1)) of magnitudes has BINS_PER_OCTAVE equal
    bins, for either sign. When a value lies beyond the last octave, the octaves move up; what leaves the first one is
    counted as zero. So one huge value does not throw all others into one bin, as bins of equal width would.

    Attributes:
        counts: [2, OCTAVES * BINS_PER_OCTAVE] of negative and of positive values, by rising magnitude.
        zeros: Count of zeros, and of values less than 2^-OCTAVES of the largest.
        low: The least finite value, exact; inf where there was none.
        high: The greatest finite value, exact; -inf where there was none.
        recent: (least, greatest) value of each of the last RECENT updates.
        finite: Whether all values were.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2, OCTAVES * BINS_PER_OCTAVE, dtype=torch.float64)
        self.zeros = 0.0
        self.low = float("inf")
        self.high = float("-inf")
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self.finite = True
        self._top: int | None = None  # the last octave ends at 2^top

    def update(self, x: Tensor) -> None:
        """Count the finite values of x, an evenly spaced sample of them where there are many."""
        flat = x.detach().flatten()
        if flat.numel() == 0:
            return
        low, high = (float(value) for value in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            self.update(flat[flat.isfinite()])
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.recent.append((low, high))
        self._count(flat, max(abs(low), abs(high)))

    def _count(self, flat: Tensor, reach: float) -> None:
        step = _step(flat.numel())
        values = flat[::step].double().cpu()
        if reach == 0.0:
            self.zeros += step * len(values)
            return
        top = self._raised(math.frexp(reach)[1])
        mantissa, exponent = torch.frexp(values.abs())
        octave = exponent.long() - top + OCTAVES - 1
        index = octave * BINS_PER_OCTAVE + ((2 * mantissa - 1) * BINS_PER_OCTAVE).long()
        counted = (values != 0) & (octave >= 0)
        size = self.counts.shape[1]
        counts = torch.bincount((index + size * (values > 0))[counted], minlength=2 * size)
        self.counts += step * counts.reshape(2, size)
        self.zeros += step * int((~counted).sum())

    def _raised(self, top: int) -> int:
        """End the last octave at 2^top if it ended below; returns where it ends now."""
        if self._top is None:
            self._top = top
        fallen = min(max(0, top - self._top), OCTAVES) * BINS_PER_OCTAVE
        self.zeros += float(self.counts[:, :fallen].sum())
        self.counts = torch.nn.functional.pad(self.counts[:, fallen:], (0, fallen))
        self._top = max(self._top, top)
        return self._top

    @property
    def largest(self) -> float:
        """The largest magnitude, 0 where nothing was seen."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    @property
    def edges(self) -> FloatArray:
        """[OCTAVES * BINS_PER_OCTAVE + 1] magnitudes between the bins, rising; zeros before the first value but 0."""
        if self._top is None:
            return np.zeros(self.counts.shape[1] + 1)
        places = np.arange(self.counts.shape[1] + 1)
        octave, inner = np.divmod(places, BINS_PER_OCTAVE)
        return np.ldexp(1 + inner / BINS_PER_OCTAVE, octave + (self._top - OCTAVES))

    def bins(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Start, end and count of every bin that holds values, rising, cut at the extremes; zeros are one from 0 to 0.

        Bins do not overlap, and each is [count]-long; nothing seen gives arrays of no length.
        """
        negative, positive = self.counts.numpy()
        edges = self.edges
        below, above = (np.clip(side, self.low, self.high) for side in (-edges[::-1], edges))
        start = np.concatenate([below[:-1], [0.0], above[:-1]])
        end = np.concatenate([below[1:], [0.0], above[1:]])
        count = np.concatenate([negative[::-1], [self.zeros], positive])
        seen = count > 0
        return start[seen], end[seen], count[seen]


def _step(count: int) -> int:
    """Distance between the values looked at: without a common factor with any dimension, so that all of them vary."""
    step = max(1, count // SAMPLES_PER_UPDATE)
    while math.gcd(step, count) > 1:
        step += 1
    return step
