import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Format
from mixbit.quantization.affine import dequantize, quantize, range_to_affine
from mixbit.quantization.ranges import (
    NUM_CLIPS,
    RANGES,
    Histogram,
    _divergence,
    _square_errors,
    entropy,
    min_max,
    moving_average,
    mse,
    percentile,
)

FORMATS = [Format(bits, "tensor", symmetric) for bits in (2, 4, 8, 16) for symmetric in (False, True)]
IDS = [f"{fmt.bits} bits, {'symmetric' if fmt.symmetric else 'asymmetric'}" for fmt in FORMATS]
EIGHT = Format(8, "tensor", symmetric=False)

each_format = pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
each_method = pytest.mark.parametrize("method", RANGES.values(), ids=RANGES)


def histogram_of(*tensors):
    histogram = Histogram()
    for x in tensors:
        histogram.update(x)
    return histogram


def range_of(scale, zero_point, fmt):
    first, last = fmt.integer_range
    return (first - zero_point) * scale, (last - zero_point) * scale


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
    error = mean_square_error(x, *mse(histogram_of(x), fmt), fmt)
    assert error <= factor * least_error(x, fmt) + 1e-12


DRAWS = {
    "normal": lambda: torch.randn(5000),
    "uniform": lambda: torch.rand(5000),
    "relu": lambda: torch.randn(5000).relu(),
    "negative": lambda: -torch.randn(5000).abs() - 1,
    "heavy tails": lambda: torch.randn(5000) ** 3,
    "outlier": lambda: torch.cat([torch.randn(5000), torch.tensor([20.0])]),
    "one-sided outlier": lambda: torch.cat([torch.randn(5000), torch.tensor([1e4])]),
}


@each_format
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_mse_is_nearly_the_best_on_the_data_itself(draw, fmt):
    torch.manual_seed(1)
    assert_near_the_least_error(draw(), fmt, 1.02)


def test_clipping_pays_at_few_bits():
    """With a search that only kept the extremes, the test above would say little."""
    torch.manual_seed(2)
    x, fmt = torch.randn(5000) ** 3, Format(4, "tensor", symmetric=False)
    extremes = mean_square_error(x, *range_to_affine(float(x.min()), float(x.max()), fmt), fmt)
    assert mean_square_error(x, *mse(histogram_of(x), fmt), fmt) < 0.85 * extremes


@given(
    st.floats(-3, 3), st.floats(1e-3, 3), st.floats(0.01, 2), st.integers(-8, 0), st.integers(1, 8)
)  # a bin's start and width, the scale, and the levels
def test_the_expected_square_error_is_the_mean_over_the_bin(start, width, scale, first, last):
    x = start + width * (np.arange(20000) + 0.5) / 20000
    plain = np.mean((x - np.clip(np.round(x / scale), first, last) * scale) ** 2)
    got = _square_errors(np.array([start, start + width]), np.array([[0], [1]]), scale, first * scale, last * scale)
    assert got[0] == pytest.approx(plain, rel=1e-3, abs=1e-9)
    point = _square_errors(np.array([start]), np.array([[0], [0]]), scale, first * scale, last * scale)
    assert point[0] == pytest.approx((start - np.clip(np.round(start / scale), first, last) * scale) ** 2, abs=1e-12)


@pytest.mark.parametrize("draw", ["normal", "uniform", "relu"])
def test_sixteen_bits_keep_nearly_all(draw):
    """Levels are narrower than bins there."""
    torch.manual_seed(3)
    x, fmt = DRAWS[draw](), Format(16, "tensor", symmetric=False)
    wanted = range_of(*min_max(histogram_of(x), fmt), fmt)
    assert range_of(*mse(histogram_of(x), fmt), fmt) == pytest.approx(wanted, rel=0.02)


def test_min_max_is_the_extremes_over_all_updates():
    histogram = histogram_of(torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5]), torch.tensor([0.25]))
    assert min_max(histogram, EIGHT) == range_to_affine(-3.0, 2.0, EIGHT)


@pytest.mark.parametrize("weight", [None, 0.0, 0.5, 0.99])
def test_the_moving_average_is_that_of_each_batch(weight):
    torch.manual_seed(4)
    batches = [torch.randn(50, dtype=torch.float64) * scale for scale in (1, 2, 4, 1, 3)]
    low, high = float(batches[0].min()), float(batches[0].max())
    kept = 0.9 if weight is None else weight
    for x in batches[1:]:
        low, high = kept * low + (1 - kept) * float(x.min()), kept * high + (1 - kept) * float(x.max())
    method = moving_average if weight is None else partial(moving_average, weight=weight)
    assert method(histogram_of(*batches), EIGHT) == pytest.approx(range_to_affine(low, high, EIGHT))


@pytest.mark.parametrize("share", [None, 0.999, 0.9, 1.0])
def test_the_percentile_leaves_its_share_out_at_either_end(share):
    torch.manual_seed(5)
    x = torch.randn(60_000, dtype=torch.float64) * torch.rand(60_000, dtype=torch.float64) + 0.3
    kept = 0.9999 if share is None else share
    method, fmt = (
        percentile if share is None else partial(percentile, share=share),
        Format(16, "tensor", symmetric=False),
    )
    low, high = range_of(*method(histogram_of(*x.split(10_000)), fmt), fmt)
    for beyond in (int((x < low).sum()), int((x > high).sum())):
        assert beyond == pytest.approx((1 - kept) * 60_000, rel=0.01, abs=2)


def test_a_percentile_of_nothing_but_zeros_keeps_the_extremes():
    x = torch.zeros(50_000)
    x[7] = 5.0
    assert percentile(histogram_of(x), EIGHT) == range_to_affine(0.0, 5.0, EIGHT)


def plain_divergence(x, levels, edges):
    """The same from the values themselves, in loops: each counted in its bin, each level's spread over its cell."""
    cells = [(level - 0.5, level + 0.5) for level in levels]
    inside = [value for value in x if cells[0][0] < value < cells[-1][1]]
    per_cell = [sum(low < value < high for value in inside) for low, high in cells]
    p, q = [], []
    for low, high in pairwise(edges):
        p.append(sum(low < value < high for value in inside))
        overlap = [max(0.0, min(high, right) - max(low, left)) for left, right in cells]
        q.append(sum(count * part for count, part in zip(per_cell, overlap, strict=True)))
    seen = [place for place, count in enumerate(p) if count]
    p[seen[0]] += sum(value < cells[0][0] for value in x)
    p[seen[-1]] += sum(value > cells[-1][1] for value in x)
    total_p, total_q = sum(p), sum(q)
    return sum(p[i] / total_p * math.log(p[i] / total_p / (q[i] / total_q)) for i in seen)


def test_the_divergence_is_the_plain_one():
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(0, 2, 500), [9.3, -8.7]])
    edges = np.arange(-10, 10.25, 0.25)
    below = np.concatenate([[0.0], np.cumsum(np.histogram(x, edges)[0])])
    levels = np.arange(-4, 5)
    got = _divergence(edges, below, np.arange(-4, 6) - 0.5)
    within = edges[(edges >= -4.5) & (edges <= 4.5)]
    assert got == pytest.approx(plain_divergence(x.tolist(), levels.tolist(), within.tolist()), rel=1e-9)
    assert got > 0


def test_no_divergence_where_every_level_has_bins_of_its_own():
    edges, below = np.arange(-4.0, 5.0), np.array([0.0, 1, 3, 7, 9, 15, 16, 18, 20])
    assert _divergence(edges, below, edges) == pytest.approx(0, abs=1e-12)
    assert _divergence(edges, below, edges[::2]) > 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_entropy_clips_more_with_fewer_bits(bits):
    torch.manual_seed(6)
    histogram = histogram_of(torch.randn(50_000))
    ends = [range_of(*entropy(histogram, Format(b, "tensor", symmetric=True)), Format(b, "tensor", symmetric=True))
            for b in (bits, 2 * bits)]  # fmt: skip
    assert ends[0][0] > ends[1][0] - 0.2
    assert 1.0 < -ends[0][0] < 5.5


def test_entropy_is_not_drawn_to_a_peak_at_zero():
    torch.manual_seed(7)
    x = torch.softmax(3 * torch.randn(300, 64), -1)
    fmt = Format(8, "tensor", symmetric=False)
    assert range_of(*entropy(histogram_of(x), fmt), fmt)[1] >= float(x.flatten().quantile(0.9999)) / 16


@each_format
@each_method
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-30, -1e30])
def test_a_constant_is_kept(method, value, fmt):
    x = torch.full((100,), value)
    error = mean_square_error(x, *method(histogram_of(x), fmt), fmt)
    assert math.sqrt(error) <= 1e-6 * abs(value)


@each_format
@each_method
def test_one_value_a_million_times_the_rest(method, fmt):
    x = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1e6])])
    scale, zero_point = method(histogram_of(x), fmt)
    assert math.isfinite(scale)
    assert scale > 0
    assert fmt.symmetric or fmt.integer_range[0] <= zero_point <= fmt.integer_range[1]
    if method is mse:
        assert_near_the_least_error(x, fmt, 1.02)
    if method is not moving_average:
        assert method(histogram_of(x[:999], x[999:]), fmt) == (scale, zero_point)


@each_format
@pytest.mark.parametrize("method", [percentile, entropy])
def test_a_rare_outlier_is_clipped(method, fmt):
    torch.manual_seed(8)
    x = torch.cat([torch.randn(40_000), torch.tensor([1e6])])
    low, high = range_of(*method(histogram_of(x), fmt), fmt)
    assert -9 <= low <= -0.8
    assert 0.8 <= high <= 9


@pytest.mark.parametrize(("count", "clipped"), [(200, False), (60_000, True)])
def test_mse_clips_an_outlier_where_that_costs_less(count, clipped):
    torch.manual_seed(9)
    x, fmt = torch.cat([torch.randn(count), torch.tensor([20.0])]), Format(4, "tensor", symmetric=False)
    _, high = range_of(*mse(histogram_of(x), fmt), fmt)
    assert (high < 5) == clipped
    errors = [mean_square_error(x, *range_to_affine(-3.0, end, fmt), fmt) for end in (3.0, 15.0, 18.0, 20.0)]
    assert mean_square_error(x, *mse(histogram_of(x), fmt), fmt) <= 1.02 * min(errors)
    assert clipped == (errors[0] < errors[-1])


@each_method
def test_nothing_seen_gives_a_range_of_zero(method):
    for updates in ([], [torch.empty(0, 3)], [torch.zeros(4)]):
        assert method(histogram_of(*updates), EIGHT) == range_to_affine(0.0, 0.0, EIGHT)


@each_method
def test_the_least_float_is_a_range_too(method):
    least = torch.finfo(torch.float32).min
    scale, zero_point = method(histogram_of(torch.tensor([0.0, -1e4]), torch.tensor([0.0, least])), EIGHT)
    assert math.isfinite(scale)
    if method in (mse, min_max):
        assert -zero_point * scale == pytest.approx(least, rel=0.01)


def test_methods_are_found_by_name_with_options():
    name, method = RANGES.find("percentile:share=0.9")
    assert name == "percentile:share=0.9"
    histogram = histogram_of(torch.linspace(0, 1, 1001))
    assert range_of(*method(histogram, EIGHT), EIGHT)[1] == pytest.approx(0.9, rel=0.01)
    assert RANGES.find(min_max)[1] is min_max


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nonsense", r"ranges 'nonsense' is unknown; known: mse, min_max, moving_average, percentile, entropy"),
        ("mse:share=1", "it has none"),
        ("percentile:share=0.5", "give more than 0.5 and at most 1, as 0.9999"),
        ("percentile:share=99.9", "give more than 0.5"),
        ("percentile:share=nan", "give more than 0.5"),
        ("moving_average:weight=1", "give at least 0 and less than 1"),
    ],
)
def test_a_wrong_method_is_refused_at_once(given, message):
    with pytest.raises(InvalidInput, match=message):
        RANGES.find(given)


def test_entropy_does_not_narrow_around_a_background():
    torch.manual_seed(0)
    x = torch.where(torch.rand(50_000) < 0.8, torch.tensor(-0.42), torch.rand(50_000) * 3.2 - 0.4)
    histogram, fmt = Histogram(), Format(8, "tensor", symmetric=False)
    histogram.update(x)
    scale, zero_point = entropy(histogram, fmt)
    low, high = ((end - zero_point) * scale for end in fmt.integer_range)
    assert ((x < low - scale) | (x > high + scale)).float().mean() <= 1e-3
