"""Ranges of activations from streaming histograms: tensors and numbers only."""

import math

import torch
from torch import Tensor

from mixbit.affine import dequantize, quantize, range_to_affine
from mixbit.scheme import Format

#: Enough for several bins a step of 8 bits where reach is twice the extreme and half of the bins are empty.
NUM_BINS = 8192
#: Values looked at per update; the extremes are exact, the shape between them is sampled.
SAMPLES_PER_UPDATE = 65_536
NUM_CLIPS = 40


class Histogram:
    """Counts of a tensor's values over updates, in memory independent of the data.

    The bins cover [-reach, reach]; when a value lies beyond, reach doubles and bins merge in pairs, so no count
    is lost. `low` and `high` are the exact extremes of the finite values; `finite` tells whether there were others.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(NUM_BINS, dtype=torch.float64)
        self.reach = 0.0
        self.low = float("inf")
        self.high = float("-inf")
        self.finite = True

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
        self._reach_for(max(abs(low), abs(high)))
        if self.reach > 0:
            step = _step(flat.numel())
            self.counts += step * torch.histc(flat[::step].double().cpu(), NUM_BINS, -self.reach, self.reach)

    def _reach_for(self, bound: float) -> None:
        if self.reach == 0.0:
            self.reach = bound
        while self.reach < bound:
            inner = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[NUM_BINS // 4 : 3 * NUM_BINS // 4] = inner
            self.reach *= 2

    @property
    def centres(self) -> Tensor:
        """[NUM_BINS] middle of each bin."""
        width = 2 * self.reach / NUM_BINS
        return -self.reach + width * (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5)


def _step(count: int) -> int:
    """Distance between the values looked at: without a common factor with any dimension, so that all of them vary."""
    step = max(1, count // SAMPLES_PER_UPDATE)
    while math.gcd(step, count) > 1:
        step += 1
    return step


def mean_square_range(histogram: Histogram, fmt: Format) -> tuple[float, int]:
    """Scale and zero point of the range with the least mean square error, sum over bins of count (x - Q(x))^2.

    The ranges tried are the extremes, shrunk together in NUM_CLIPS steps down to a quarter.
    """
    if histogram.reach == 0.0:
        return range_to_affine(0.0, 0.0, fmt)
    shares = [1 - 0.75 * step / NUM_CLIPS for step in range(NUM_CLIPS)]
    ranges = [range_to_affine(share * histogram.low, share * histogram.high, fmt) for share in shares]
    scale, zero_point = torch.tensor(ranges, dtype=torch.float64).unbind(1)
    seen = histogram.counts > 0
    x = histogram.centres[seen].expand(NUM_CLIPS, -1)
    rounded = dequantize(quantize(x, scale, zero_point, 0, *fmt.integer_range), scale, zero_point, 0)
    errors = (x - rounded).square() @ histogram.counts[seen]
    return ranges[int(errors.argmin())]
