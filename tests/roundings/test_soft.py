import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from mixbit.core.scheme import Format
from mixbit.quantization.affine import min_max_factors, quantize
from mixbit.roundings._learned import beta_at, penalty, rise, rounded_weight, start

WEIGHTS = hnp.arrays(np.float64, (3, 8), elements=st.floats(-4, 4, width=32))
FORMATS = st.sampled_from(
    [
        Format(3, "channel", symmetric=True),
        Format(4, "channel", symmetric=False),
        Format(2, "tensor", symmetric=True),
        Format(4, "group", symmetric=True, group=4),
    ]
)


@given(WEIGHTS, FORMATS)
def test_learning_starts_at_the_weight_itself(array, fmt):
    weight = torch.from_numpy(array)
    factors = min_max_factors(weight, 0, fmt)
    v = start(weight, factors[0], 0)
    soft = rounded_weight(weight, v, factors, 0, fmt.integer_range, hard=False)
    assert (soft - weight).abs().max() <= 0.5 * factors[0].max() if not fmt.symmetric else 0.011 * factors[0].max()


@given(WEIGHTS, FORMATS, st.integers(0, 9))
def test_hard_weights_are_one_of_the_two_neighbours_as_written_in_the_paper(array, fmt, seed):
    weight = torch.from_numpy(array)
    scale, zero = min_max_factors(weight, 0, fmt)
    v = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = fmt.integer_range
    hard = rounded_weight(weight, v, (scale, zero), 0, (low, high), hard=True)
    soft = rounded_weight(weight, v, (scale, zero), 0, (low, high), hard=False)
    for row in range(3):
        for column in range(8):
            part = column // 4 if fmt.granularity == "group" else ()
            s, z = (one[0 if fmt.granularity == "tensor" else row][part] for one in (scale, zero))
            below = math.floor(weight[row, column] / s)
            h = min(1.0, max(0.0, 1.2 / (1 + math.exp(-v[row, column])) - 0.1))
            expected = s * (min(high, max(low, below + round(h) + z)) - z)
            assert hard[row, column] == pytest.approx(float(expected), abs=1e-12)
            expected = s * (min(high, max(low, below + h + z)) - z)
            assert soft[row, column] == pytest.approx(float(expected), abs=1e-12)
    integers = quantize(hard, scale, zero, 0, low, high)
    assert torch.equal(quantize(hard.float(), scale.float(), zero.float(), 0, low, high).double(), integers)


def test_the_penalty_is_one_for_undecided_weights_and_none_for_decided_ones():
    assert penalty(torch.zeros(5), 2.0) == 1
    assert penalty(torch.tensor([9.0, -9.0]), 2.0) == 0
    assert penalty(torch.tensor([1.0]), 20.0) > penalty(torch.tensor([1.0]), 2.0)
    v = torch.tensor([0.3, -1.0], requires_grad=True)
    penalty(v, 2.0).backward()
    assert v.grad[0] < 0 < v.grad[1], "a step down the gradient drives both away from the middle"


def test_rise_reaches_its_ends():
    assert rise(torch.tensor([-3.0, 3.0])).tolist() == [0.0, 1.0]
    assert rise(torch.tensor(0.0)) == pytest.approx(0.5)


def test_the_exponent_falls_after_the_warm_up():
    assert beta_at(0.09) is None
    assert [beta_at(progress) for progress in (0.1, 0.55, 1.0)] == pytest.approx([20, 11, 2])
