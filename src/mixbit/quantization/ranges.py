"""Ranges of activations from streaming histograms, one method a function: tensors and numbers only."""

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from mixbit.core import Format, Methods, method
from mixbit.quantization.affine import range_to_affine
from mixbit.quantization.histogram import BINS_PER_OCTAVE, FloatArray, Histogram

RangeMethod = Callable[[Histogram, Format], tuple[float, int]]
"""From what was seen of a tensor to the scale and zero point of its quantizer."""
RANGES: Methods[RangeMethod] = Methods("ranges", __name__)

#: Steps in which the last octave of a search over ranges is gone through.
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
    """The extremes of all the data: nothing is clipped.

    Args:
        histogram: Of the tensor.
        fmt: How it is to be stored.

    Returns:
        Scale and zero point, as of every method here: those of a range widened to hold 0.
    """
    return _affine(histogram, histogram.low, histogram.high, fmt)


@method(rank=3)
def moving_average(
    histogram: Histogram, fmt: Format, *, weight: Annotated[float, Ge(0), Lt(1)] = 0.9
) -> tuple[float, int]:
    """The moving average of each batch's extremes: r_t = weight r_(t-1) + (1 - weight) x_t, r_0 = x_0.

    Over the last `histogram.RECENT` batches, which is all the same to weights up to 0.99. (Jacob et al. 2018, section
    3.1, arXiv 1712.05877.)

    Args:
        histogram: Of the tensor.
        fmt: How it is to be stored.
        weight: Of what was before, in [0, 1).

    Returns:
        Scale and zero point.

    Raises:
        InvalidInput: the weight is not in [0, 1).
    """
    if not histogram.recent:
        return range_to_affine(0.0, 0.0, fmt)
    low, high = histogram.recent[0]
    for least, greatest in histogram.recent:
        low, high = weight * low + (1 - weight) * least, weight * high + (1 - weight) * greatest
    return _affine(histogram, low, high, fmt)


@method(rank=4)
def percentile(
    histogram: Histogram, fmt: Format, *, share: Annotated[float, Gt(0.5), Le(1)] = 0.9999
) -> tuple[float, int]:
    """The range that leaves a share 1 - `share` of the values out at either end.

    Bins are taken as evenly filled, so an end is exact to 1/256 of itself. Where no more than zeros would be left, the
    extremes are taken. (Wu et al. 2020, section 4.1, arXiv 2004.09602, clips magnitudes so.)

    Args:
        histogram: Of the tensor.
        fmt: How it is to be stored.
        share: Of the values, in (0.5, 1].

    Returns:
        Scale and zero point.

    Raises:
        InvalidInput: the share is not in (0.5, 1].
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
    the square that it loses is less than what coarser steps cost all the others: one a million times the rest is kept,
    and the rest rounded to zero; where such values mean nothing, take `percentile`.

    Args:
        histogram: Of the tensor.
        fmt: How it is to be stored.

    Returns:
        Scale and zero point.
    """
    unit = histogram.largest
    if unit == 0.0:
        return range_to_affine(0.0, 0.0, fmt)
    start, end, count = histogram.bins()
    first, last = fmt.integer_range

    def error(scale: float, zero_point: int) -> float:
        ends = (first - zero_point) * scale / unit, (last - zero_point) * scale / unit
        return float(count @ _square_errors(start / unit, end / unit, scale / unit, *ends))

    return _least(histogram, fmt, error)


@method(rank=5)
def entropy(histogram: Histogram, fmt: Format) -> tuple[float, int]:
    """The range whose rounded values have the distribution nearest to the data's, by Kullback-Leibler divergence.

    P: the data's distribution over bins, what lies beyond the range added to the bins at its ends. Q: what lies within
    the range, each level's share spread evenly over all values that are rounded to it. KL(P | Q) is least over the
    ranges that `mse` tries. (Migacz 2017, "8-bit inference with TensorRT", GTC, for 128 levels and 2048 bins of equal
    width.) It differs in that Q is spread over empty bins too: else a range so wide that all values fall into one level
    would look perfect. Zeros, which every range holds exactly, do not count, and a constant is kept. Ranges that clip
    more than MOST_CLIPPED of the values, or a quarter of an even level's share, are left out: narrow levels around a
    value that is repeated often, as a background is, would outweigh any clipping.

    Args:
        histogram: Of the tensor.
        fmt: How it is to be stored.

    Returns:
        Scale and zero point.
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
    """Of the range cut at the extremes; where it holds only 0, though there are other values, of the extremes."""
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


def _square_errors(start: FloatArray, end: FloatArray, scale: float, low: float, high: float) -> FloatArray:
    """E[(x - Q(x))^2] for x even between start and end of each bin; levels are multiples of scale from low to high.

    The integral of (u - round(u))^2 from 0 is round(u) / 12 + (u - round(u))^3 / 3, so bins may be wider than steps.
    """

    def integral(x: FloatArray) -> FloatArray:
        u = np.clip(x, low, high) / scale
        nearest = np.round(u)
        return scale**3 * (nearest / 12 + _cube(u - nearest) / 3) + _cube(x - u * scale) / 3

    width = end - start
    at_point = start - np.clip(np.round(start / scale) * scale, low, high)
    over_width = (integral(end) - integral(start)) / np.where(width > 0, width, 1)
    return np.where(width > 0, over_width, at_point * at_point)


def _cube(x: FloatArray) -> FloatArray:
    return x * x * x  # many times faster than x ** 3


def _nearly_all(histogram: Histogram) -> int:
    """Place among the edges of the least magnitude that NEARLY_ALL values but zeros keep below."""
    below = np.cumsum(histogram.counts.sum(0).numpy())
    return 1 + int(np.searchsorted(below, NEARLY_ALL * below[-1]))


def _shape(histogram: Histogram) -> tuple[FloatArray, FloatArray]:
    """Edges [n + 1] and counts [n] of bins side by side, rising, those of small magnitudes taken together.

    The small ones lie OCTAVES_OF_SHAPE octaves or more below what nearly all keep below: a peak at zero, as of softmax,
    would else count for more than all the rest.
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
