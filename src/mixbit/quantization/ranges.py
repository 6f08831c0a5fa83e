"""Streaming histograms of activations, and the methods that choose ranges from them: tensors and numbers only."""

import math
from collections import deque
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import FloatArray, Format, Methods, method
from mixbit.quantization.affine import range_to_affine

#: Bins between a magnitude and its double: each is at most 1/256 as wide as its values are large.
BIN_BITS = 8
BINS_PER_OCTAVE = 2**BIN_BITS
#: Of a float64: bits of the mantissa; what `math.frexp` calls 0 in its exponent's bits; all bits of a bin's number.
MANTISSA_BITS = 52
SMALLEST_EXPONENT = 1023
LARGEST_CODE = 2 ** (11 + BIN_BITS) - 1
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
    counted as zero. So one huge value does not throw all others into one bin.

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
        self.low, self.high = math.inf, -math.inf
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
        step = spacing(flat.numel(), SAMPLES_PER_UPDATE)
        values = flat[::step].double().cpu()
        if low == high == 0.0:
            self.zeros += step * len(values)
            return
        top = math.frexp(max(abs(low), abs(high)))[1]
        before = top if self._top is None else self._top
        fallen = min(max(0, top - before), OCTAVES) * BINS_PER_OCTAVE  # bins, where the octaves move up
        self.zeros += float(self.counts[:, :fallen].sum())
        self.counts = torch.nn.functional.pad(self.counts[:, fallen:], (0, fallen))
        self._top = top = max(before, top)
        # The top bits of a float64's magnitude, read as a whole number: octaves, and equal bins within each.
        index = (values.view(torch.int64) >> MANTISSA_BITS - BIN_BITS) & LARGEST_CODE
        index -= (SMALLEST_EXPONENT + top - OCTAVES) * BINS_PER_OCTAVE - 1
        size = self.counts.shape[1]
        counts = torch.bincount(index.clamp_(min=0) + size * ((index > 0) & (values > 0)), minlength=2 * size + 1)
        self.zeros += step * float(counts[0])
        self.counts += step * counts[1:].reshape(2, size)

    @property
    def largest(self) -> float:
        """The largest magnitude, 0 where nothing was seen."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    @property
    def edges(self) -> FloatArray:
        """[OCTAVES * BINS_PER_OCTAVE + 1] magnitudes between the bins, rising; zeros until a value other than 0."""
        if self._top is None:
            return np.zeros(self.counts.shape[1] + 1)
        places = np.arange(self.counts.shape[1] + 1)
        octave, inner = np.divmod(places, BINS_PER_OCTAVE)
        return np.ldexp(1 + inner / BINS_PER_OCTAVE, octave + (self._top - OCTAVES))

    def bins(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """[B] start, end and count of every bin that holds values, rising, cut at the extremes; zeros are one bin.

        Bins do not overlap.
        """
        negative, positive = self.counts.numpy()
        edges = self.edges
        below, above = (np.clip(side, self.low, self.high) for side in (-edges[::-1], edges))
        start = np.concatenate([below[:-1], [0.0], above[:-1]])
        end = np.concatenate([below[1:], [0.0], above[1:]])
        count = np.concatenate([negative[::-1], [self.zeros], positive])
        seen = count > 0
        return start[seen], end[seen], count[seen]


def spacing(count: int, most: int) -> int:
    """Distance between about so many of the values: coprime to every dimension, so that all of their indices vary."""
    step = max(1, count // most)
    while math.gcd(step, count) > 1:
        step += 1
    return step


RangeMethod = Callable[[Histogram, Format], tuple[float, int]]
"""From the histogram of a tensor, and its format, to scale and zero point: those of a range widened to hold 0."""
RANGES: Methods[RangeMethod] = Methods("ranges", __name__)

#: Steps of a search over ranges in its last octave.
NUM_CLIPS = 40
#: The share of the values that counts as nearly all of them.
NEARLY_ALL = 0.9999
#: How far a search over ranges goes: to 2^-4 of the magnitude that nearly all values keep below, as TensorRT does,
#: which tries 128 to 2048 of 2048 bins.
OCTAVES_OF_RANGES = 4
#: How far below that magnitude `entropy` tells magnitudes apart: 2^11 = 2048.
OCTAVES_OF_SHAPE = 11
#: Share of the values that `entropy` may clip.
MOST_CLIPPED = 1e-3


@method(rank=2)
def min_max(histogram: Histogram, fmt: Format) -> tuple[float, int]:
    """The extremes of all the data: nothing is clipped."""
    return _affine(histogram, histogram.low, histogram.high, fmt)


@method(rank=3)
def moving_average(
    histogram: Histogram, fmt: Format, *, weight: Annotated[float, Ge(0), Lt(1)] = 0.9
) -> tuple[float, int]:
    """The moving average of each batch's extremes: r_t = weight r_(t-1) + (1 - weight) x_t, r_0 = x_0.

    Over the last RECENT batches; earlier ones make no difference to weights up to 0.99.
    (Jacob et al. 2018, section 3.1, arXiv 1712.05877.)
    """
    low, high = histogram.recent[0] if histogram.recent else (0.0, 0.0)
    for least, greatest in histogram.recent:
        low, high = weight * low + (1 - weight) * least, weight * high + (1 - weight) * greatest
    return _affine(histogram, low, high, fmt)


@method(rank=4)
def percentile(
    histogram: Histogram, fmt: Format, *, share: Annotated[float, Gt(0.5), Le(1)] = 0.9999
) -> tuple[float, int]:
    """The range that leaves a share 1 - `share` of the values out at either end.

    Bins are taken as evenly filled, so an end is exact to 1/256 of itself. Where only zeros would be left, the extremes
    are taken. (Wu et al. 2020, section 4.1, arXiv 2004.09602, clips magnitudes so.)
    """
    start, end, count = histogram.bins()
    if not len(count):
        return range_to_affine(0.0, 0.0, fmt)
    values, up_to_end = np.stack([start, end], 1).ravel(), np.cumsum(count)
    below = np.stack([up_to_end - count, up_to_end], 1).ravel()  # how many values lie below each start and end
    low, high = np.interp([(1 - share) * below[-1], share * below[-1]], below, values)
    return _affine(histogram, float(low), float(high), fmt)


@method(rank=1)
def mse(histogram: Histogram, fmt: Format) -> tuple[float, int]:
    """The range with the least mean square error, sum over bins of count E[(x - Q(x))^2], x even within its bin.

    The ranges tried are the extremes, shrunk together, and the extremes cut at a magnitude. An outlier is clipped where
    the square that it loses is less than what coarser steps cost all the others. One that is a million times the rest
    stays, and the rest is rounded to zero; where such values mean nothing, take `percentile`.
    """
    unit = histogram.largest
    if unit == 0.0:
        return range_to_affine(0.0, 0.0, fmt)
    start, end, count = histogram.bins()
    edges, places = np.unique(np.concatenate([start, end]) / unit, return_inverse=True)
    first, last = fmt.integer_range

    def error(scale: float, zero_point: int) -> float:
        ends = (first - zero_point) * scale / unit, (last - zero_point) * scale / unit
        return float(count @ _square_errors(edges, places.reshape(2, -1), scale / unit, *ends))

    return _least(histogram, fmt, error)


@method(rank=5)
def entropy(histogram: Histogram, fmt: Format) -> tuple[float, int]:
    """The range whose rounded values have the distribution nearest to the data's, by Kullback-Leibler divergence.

    P: the data's distribution over bins, what lies beyond the range added to the bins at its ends. Q: what lies within
    the range, each level's share spread evenly over all values that are rounded to it. KL(P | Q) is least over the
    ranges that `mse` tries. (Migacz 2017, "8-bit inference with TensorRT", GTC, for 128 levels and 2048 bins of equal
    width.) Unlike there, Q is spread over empty bins too: else a range so wide that all values fall into one level
    would look perfect. Zeros, which every range holds exactly, do not count, and a constant is kept. Ranges that clip
    more than MOST_CLIPPED of the values, or a quarter of an even level's share, are left out: narrow levels around a
    frequent value, such as a background, would outweigh any clipping.
    """
    edges, count = _shape(histogram)
    if not count.any() or histogram.low == histogram.high:
        return _affine(histogram, histogram.low, histogram.high, fmt)
    below = np.concatenate([[0.0], np.cumsum(count)])
    first, last = fmt.integer_range

    def divergence(scale: float, zero_point: int) -> float:
        cells = (np.arange(first, last + 2, dtype=np.float64) - zero_point - 0.5) * scale
        within = np.diff(np.interp(cells[[0, -1]], edges, below))[0]
        if within < (1 - max(MOST_CLIPPED, 0.25 / (last - first + 1))) * below[-1]:
            return math.inf
        return _divergence(edges, below, cells)

    return _least(histogram, fmt, divergence)


def _affine(histogram: Histogram, low: float, high: float, fmt: Format) -> tuple[float, int]:
    """Scale and zero point of the range cut at the extremes; of the extremes where only 0 would be left."""
    if histogram.largest == 0.0:
        return range_to_affine(0.0, 0.0, fmt)
    low, high = max(low, histogram.low), min(high, histogram.high)
    if min(low, 0.0) == max(high, 0.0):
        low, high = histogram.low, histogram.high
    return range_to_affine(low, high, fmt)


def _least(histogram: Histogram, fmt: Format, cost: Callable[[float, int], float]) -> tuple[float, int]:
    """Scale and zero point of the cheapest range: the extremes shrunk together, or cut at a magnitude.

    First by halves, then in steps around the best of them. Of equal costs the widest range is taken.
    """
    low, high, largest = histogram.low, histogram.high, histogram.largest
    nearly = histogram.edges[_nearly_all(histogram)]
    num_halvings = OCTAVES_OF_RANGES + round(math.log2(max(1.0, largest / nearly)))

    def tried(shares: list[float]) -> list[tuple[float, float, tuple[float, int]]]:
        ranges = {}
        for share in shares:
            cut = max(low, -share * largest), min(high, share * largest)
            for ends in ((share * low, share * high), cut):
                ranges.setdefault(range_to_affine(*ends, fmt), share)
        return [(cost(*factors), -share, factors) for factors, share in ranges.items()]

    halves = tried([0.5**number for number in range(num_halvings + 1)])
    best = -min(halves)[1]
    return min(halves + tried(np.linspace(min(1.0, 2 * best), best / 2, NUM_CLIPS).tolist()))[2]


def _square_errors(edges: FloatArray, bins: NDArray[np.intp], scale: float, low: float, high: float) -> FloatArray:
    """E[(x - Q(x))^2] for x even between start and end of each bin; levels are multiples of scale from low to high.

    The integral of (u - round(u))^2 from 0 is round(u) / 12 + (u - round(u))^3 / 3, so bins may be wider than steps.
    Bins [2, B] are numbers of edges, which neighbours share.
    """
    u = np.minimum(np.maximum(edges, low), high) / scale
    nearest = np.round(u)
    integral = scale**3 * (nearest / 12 + _cube(u - nearest) / 3) + _cube(edges - u * scale) / 3
    start, end = edges[bins]
    width = end - start
    at_point = start - np.clip(np.round(start / scale) * scale, low, high)
    first, last = integral[bins]
    return np.where(width > 0, (last - first) / np.where(width > 0, width, 1), at_point * at_point)


def _cube(x: FloatArray) -> FloatArray:
    return x * x * x  # many times faster than x ** 3


def _nearly_all(histogram: Histogram) -> int:
    """Place among the edges of the least magnitude that NEARLY_ALL values but zeros keep below."""
    below = np.cumsum(histogram.counts.sum(0).numpy())
    return 1 + int(np.searchsorted(below, NEARLY_ALL * below[-1]))


def _shape(histogram: Histogram) -> tuple[FloatArray, FloatArray]:
    """Edges [n + 1] and counts [n] of bins side by side, rising, those of small magnitudes taken together.

    Those lie OCTAVES_OF_SHAPE octaves below nearly all others: a peak at zero, as of softmax, would outweigh the rest.
    """
    edges, counts = histogram.edges, histogram.counts.numpy()
    small = max(1, _nearly_all(histogram) - OCTAVES_OF_SHAPE * BINS_PER_OCTAVE)
    edges = np.concatenate([[0.0], edges[small:]])
    negative, positive = (np.concatenate([[row[:small].sum()], row[small:]]) for row in counts)
    return np.concatenate([-edges[:0:-1], edges]), np.concatenate([negative[::-1], positive])


def _divergence(edges: FloatArray, below: FloatArray, cells: FloatArray) -> float:
    """KL(P | Q) of `entropy` in nats, from counts below the bins' edges and the edges of the levels' cells."""
    inner = np.concatenate([[cells[0]], edges[(edges > cells[0]) & (edges < cells[-1])], [cells[-1]]])
    within = np.interp(inner, edges, below)
    p, q = np.diff(within), np.diff(np.interp(inner, cells, np.interp(cells, edges, below)))
    seen = np.flatnonzero((p > 0) & (q > 0))  # to rounding, one of them may be 0 alone
    if not len(seen):
        return float("inf")
    p, q = p[seen] / below[-1], q[seen] / q.sum()
    p[0] += within[0] / below[-1]
    p[-1] += 1 - within[-1] / below[-1]
    return float(p @ np.log(p / q))
