import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mixbit.quantization.ranges import BINS_PER_OCTAVE, OCTAVES, RECENT, SAMPLES_PER_UPDATE, Histogram, spacing


def histogram_of(*tensors):
    histogram = Histogram()
    for x in tensors:
        histogram.update(x)
    return histogram


def counted(histogram, values):
    """How many of the values fall into each of the histogram's bins, counted one by one."""
    start, end, _ = histogram.bins()
    return [sum(low <= value <= high for value in values) for low, high in zip(start, end, strict=True)]


numbers = st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(st.lists(st.lists(numbers, min_size=1, max_size=20), min_size=1, max_size=5))
def test_no_count_is_lost_and_the_extremes_are_exact(updates):
    histogram = histogram_of(*(torch.tensor(values, dtype=torch.float64) for values in updates))
    values = [value for update in updates for value in update]
    assert (histogram.low, histogram.high) == (min(values), max(values))
    assert histogram.largest == max(map(abs, values))
    assert histogram.counts.sum() + histogram.zeros == len(values)
    start, end, count = histogram.bins()
    assert count.sum() == len(values)
    assert (start <= end).all()
    assert (end[:-1] <= start[1:]).all()
    assert min(0, *values, 0) <= start[0] <= end[-1] <= max(0, *values, 0)
    least = histogram.largest * 2.0 ** (1 - OCTAVES)
    told = sorted(value for value in values if abs(value) >= least)
    for place, number in zip(start, count, strict=True):  # every value stands in a bin that is as narrow as it is small
        if place != 0:
            width = abs(place) * 2 / BINS_PER_OCTAVE
            assert sum(place - width <= value <= place + width for value in told) >= (number if least else 0)


def test_bins_are_as_wide_as_their_values_are_large():
    torch.manual_seed(0)
    x = torch.randn(3000, dtype=torch.float64).exp() * torch.randn(3000, dtype=torch.float64).sign()
    histogram = histogram_of(*x.split(700))
    start, end, count = histogram.bins()
    assert ((end - start) <= np.abs(start) / BINS_PER_OCTAVE + 1e-12).mean() > 0.49
    assert ((end - start) <= np.maximum(np.abs(start), np.abs(end)) / BINS_PER_OCTAVE).all()
    assert counted(histogram, x.tolist()) == count.tolist()


def test_one_huge_value_leaves_the_others_their_bins():
    torch.manual_seed(0)
    x = torch.randn(2000, dtype=torch.float64)
    before, after = histogram_of(x), histogram_of(x, torch.tensor([1e6], dtype=torch.float64))
    told, kept = before.bins()[2], after.bins()[2]
    assert kept[-1] == 1
    assert len(kept) == pytest.approx(len(told) + 1, abs=3)
    assert kept[:-1].max() == told.max()
    at_once = histogram_of(torch.cat([x, torch.tensor([1e6], dtype=torch.float64)]))
    assert torch.equal(at_once.counts, after.counts)
    assert at_once.zeros == after.zeros


def test_what_is_too_small_beside_the_largest_counts_as_zero():
    small, large = torch.full((5,), 1e-20), torch.full((3,), 1e20)
    for updates in ((small, large), (large, small), (torch.cat([small, large]),)):
        histogram = histogram_of(*updates)
        assert (histogram.zeros, float(histogram.counts.sum())) == (5, 3)


def test_memory_does_not_grow():
    histogram = Histogram()
    for number in range(RECENT + 10):
        histogram.update(torch.tensor([1.5**number if number < 200 else 1.0]))
    assert histogram.counts.shape == (2, OCTAVES * BINS_PER_OCTAVE)
    assert len(histogram.recent) == RECENT


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (10, 7, 112, 112), (3, 1_000_003), (64, 65536)])
def test_a_sample_of_a_large_tensor_sees_every_index_of_every_dimension(shape):
    step = spacing(math.prod(shape), SAMPLES_PER_UPDATE)
    assert math.prod(shape) / step > SAMPLES_PER_UPDATE / 4
    positions = np.unravel_index(np.arange(0, math.prod(shape), step), shape)
    for size, seen in zip(shape, positions, strict=True):
        counts = np.bincount(seen, minlength=size)
        assert counts.max() <= 1.05 * counts.mean() + 2


def test_values_that_are_not_finite_are_left_out_and_noted():
    clean, odd = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, float("-inf"), -2.0, float("nan"), 3.0])
    wanted, got = histogram_of(clean), histogram_of(odd)
    assert (got.low, got.high, got.recent) == (wanted.low, wanted.high, wanted.recent)
    assert torch.equal(got.counts, wanted.counts)
    assert (wanted.finite, got.finite) == (True, False)


@pytest.mark.parametrize("updates", [[], [torch.empty(0, 3)], [torch.zeros(4)]], ids=["nothing", "empty", "zeros"])
def test_nothing_but_zeros(updates):
    histogram = histogram_of(*updates)
    assert histogram.largest == 0
    assert histogram.counts.sum() == 0
    assert histogram.bins()[2].sum() == sum(x.numel() for x in updates)
    assert torch.equal(histogram_of(*updates, torch.ones(3)).counts, histogram_of(torch.ones(3)).counts)
