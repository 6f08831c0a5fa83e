import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixbit.affine import dequantize, quantize, range_to_affine
from mixbit.ranges import NUM_CLIPS, SAMPLES_PER_UPDATE, Histogram, _step, mean_square_range
from mixbit.scheme import Format

FORMATS = [Format(bits, "tensor", symmetric) for bits in (2, 4, 8) for symmetric in (False, True)]
IDS = [f"{fmt.bits} bits, {'symmetric' if fmt.symmetric else 'asymmetric'}" for fmt in FORMATS]


def histogram_of(*tensors):
    histogram = Histogram()
    for x in tensors:
        histogram.update(x)
    return histogram


def mean_square_error(x, scale, zero_point, fmt):
    factors = torch.tensor(scale, dtype=torch.float64), torch.tensor(float(zero_point), dtype=torch.float64)
    rounded = dequantize(quantize(x.double(), *factors, None, *fmt.integer_range), *factors, None)
    return float((x.double() - rounded).square().mean())


def least_error(x, fmt):
    """The least mean square error on the data itself, over ranges from the extremes down to a quarter of them."""
    low, high = float(x.min()), float(x.max())
    shares = [1 - 0.75 * step / NUM_CLIPS for step in range(NUM_CLIPS)]
    return min(mean_square_error(x, *range_to_affine(share * low, share * high, fmt), fmt) for share in shares)


def assert_near_the_least_error(x, fmt, factor):
    error = mean_square_error(x, *mean_square_range(histogram_of(x), fmt), fmt)
    assert error <= factor * least_error(x, fmt) + 1e-12


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), min_size=1, max_size=5))
def test_no_count_is_lost_and_the_extremes_are_exact(updates):
    histogram = histogram_of(*(torch.tensor(values, dtype=torch.float64) for values in updates))
    values = [value for update in updates for value in update]
    assert (histogram.low, histogram.high) == (min(values), max(values))
    before_the_first_reach = next((i for i, update in enumerate(updates) if any(update)), len(updates))
    counted = sum(len(update) for update in updates[before_the_first_reach:])
    assert histogram.counts.sum() == counted
    assert histogram.reach >= max(map(abs, values)) or not any(values)


def test_bins_merge_in_pairs_when_the_reach_grows():
    torch.manual_seed(0)
    x = torch.rand(1000, dtype=torch.float64) * 2 - 1
    histogram = histogram_of(x, torch.tensor([5.0], dtype=torch.float64))
    once = torch.histc(x, len(histogram.counts), -histogram.reach, histogram.reach)
    once += torch.histc(torch.tensor([5.0], dtype=torch.float64), len(once), -histogram.reach, histogram.reach)
    assert histogram.reach == pytest.approx(8 * float(x.abs().max()))
    torch.testing.assert_close(histogram.counts, once, rtol=0, atol=1)  # a value on an edge may fall to either side
    assert (histogram.centres[1:] - histogram.centres[:-1]).allclose(
        torch.tensor(2 * histogram.reach / len(once), dtype=torch.float64)
    )


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (10, 7, 112, 112), (3, 1_000_003), (64, 65536)])
def test_a_sample_of_a_large_tensor_sees_every_index_of_every_dimension(shape):
    step = _step(math.prod(shape))
    assert math.prod(shape) / step > SAMPLES_PER_UPDATE / 4
    positions = np.unravel_index(np.arange(0, math.prod(shape), step), shape)
    for size, seen in zip(shape, positions, strict=True):
        counts = np.bincount(seen, minlength=size)
        assert counts.max() <= 1.05 * counts.mean() + 2


@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(5000),
        lambda: torch.rand(5000),
        lambda: torch.randn(5000).relu(),
        lambda: -torch.randn(5000).abs() - 1,
        lambda: torch.randn(5000) ** 3,
        lambda: torch.cat([torch.randn(5000), torch.tensor([20.0])]),
    ],
    ids=["normal", "uniform", "relu", "negative", "heavy tails", "outlier"],
)
def test_the_range_is_nearly_the_best_on_the_data_itself(draw, fmt):
    torch.manual_seed(1)
    assert_near_the_least_error(draw(), fmt, 1.02)


def test_clipping_pays_at_few_bits():
    """With a search that only kept the extremes, the test above would say little."""
    torch.manual_seed(2)
    x, fmt = torch.randn(5000) ** 3, Format(4, "tensor", symmetric=False)
    extremes = mean_square_error(x, *range_to_affine(float(x.min()), float(x.max()), fmt), fmt)
    assert mean_square_error(x, *mean_square_range(histogram_of(x), fmt), fmt) < 0.85 * extremes


@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-30, -1e30])
def test_a_constant_is_kept(value, fmt):
    x = torch.full((100,), value)
    error = mean_square_error(x, *mean_square_range(histogram_of(x), fmt), fmt)
    assert math.sqrt(error) <= 1e-6 * abs(value)


@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
def test_one_value_a_million_times_the_rest(fmt):
    x = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1e6])])
    scale, zero_point = mean_square_range(histogram_of(x), fmt)
    assert math.isfinite(scale)
    assert_near_the_least_error(x, fmt, 1.02)
    assert mean_square_range(histogram_of(x[:999], x[999:]), fmt) == (scale, zero_point)


def test_nothing_seen_gives_a_range_of_zero():
    fmt = Format(8, "tensor", symmetric=False)
    empty = histogram_of(torch.empty(0, 3))
    assert mean_square_range(empty, fmt) == range_to_affine(0.0, 0.0, fmt)
    torch.testing.assert_close(histogram_of(torch.empty(0), torch.ones(3)).counts, histogram_of(torch.ones(3)).counts)


def test_values_that_are_not_finite_are_left_out_and_noted():
    clean, odd = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, float("-inf"), -2.0, float("nan"), 3.0])
    wanted, got = histogram_of(clean), histogram_of(odd)
    assert (got.low, got.high, got.reach) == (wanted.low, wanted.high, wanted.reach)
    assert torch.equal(got.counts, wanted.counts)
    assert (wanted.finite, got.finite) == (True, False)


def test_the_least_float_is_a_range_too():
    least = torch.finfo(torch.float32).min
    histogram = histogram_of(torch.tensor([0.0, -1e4]), torch.tensor([0.0, least]))
    scale, zero_point = mean_square_range(histogram, Format(8, "tensor", symmetric=False))
    assert math.isfinite(scale)
    assert -zero_point * scale == pytest.approx(least, rel=0.01)
