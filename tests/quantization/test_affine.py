import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from mixbit.core.scheme import Format
from mixbit.quantization import affine
from mixbit.quantization.affine import (
    PLANES,
    SCALE_OF_ZEROS,
    SMALLEST_SCALE,
    along,
    bias_step,
    dequantize,
    min_max_factors,
    pack,
    packed_bytes,
    quantize,
    range_to_affine,
    straight_through,
    unpack,
)

FLOATS = st.floats(-1e6, 1e6, width=32)
BITS = st.integers(2, 8)


def in_words(x, scale, zero_point, low, high):
    """Quantization of one number, in Python's own arithmetic, whose round() also takes ties to even."""
    return min(max(round(x / scale) + zero_point, low), high)


@given(st.integers(1, 8), st.integers(0, 70), st.randoms(use_true_random=False))
def test_unpack_inverts_pack(bits, count, random):
    integers = np.array([random.randrange(2**bits) for _ in range(count)], dtype=np.uint8)
    planes = pack(integers, bits)
    assert all(plane.dtype == np.uint8 for plane in planes)
    assert sum(plane.nbytes for plane in planes) == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack(planes, bits, count), integers)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_integer_of_a_width_survives(bits):
    integers = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    np.testing.assert_array_equal(unpack(pack(integers, bits), bits, integers.size), integers.ravel())


@given(st.integers(1, 8), st.integers(0, 10**9))
def test_packed_bytes_are_the_bits_rounded_up_per_plane(bits, count):
    assert sum(PLANES[bits]) == bits
    exact = count * bits / 8
    assert exact <= packed_bytes(count, bits) < exact + len(PLANES[bits])
    assert packed_bytes(8 * count, bits) == count * bits


def test_a_byte_holds_values_a_stride_apart():
    """Byte j of a plane holds values j, j + m, ...: what the writers of targets unpack with whole-array shifts."""
    (plane,) = pack(np.array([1, 2, 3, 4, 5], dtype=np.uint8), 4)
    np.testing.assert_array_equal(plane, [1 | 4 << 4, 2 | 5 << 4, 3])
    low, high = pack(np.array([0b101, 0b010], dtype=np.uint8), 3)
    np.testing.assert_array_equal(low, [0b01 | 0b10 << 2])
    np.testing.assert_array_equal(high, [0b1 | 0 << 1])


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=FLOATS),
    st.floats(1e-3, 1e3),
    BITS,
    st.booleans(),
    st.data(),
)
def test_quantize_is_what_its_formula_says(x, scale, bits, symmetric, data):
    low, high = Format(bits, "tensor", symmetric).integer_range
    zero_point = data.draw(st.integers(low, high))
    factors = torch.tensor(scale, dtype=torch.float64), torch.tensor(float(zero_point), dtype=torch.float64)
    q = quantize(torch.from_numpy(x), *factors, None, low, high)
    expected = [in_words(float(value), scale, zero_point, low, high) for value in x.ravel()]
    assert q.ravel().tolist() == expected
    back = dequantize(q, *factors, None)
    assert back.ravel().tolist() == [(value - zero_point) * scale for value in expected]
    inside = (x >= (low - zero_point) * scale) & (x <= (high - zero_point) * scale)
    errors = np.abs(back.numpy() - x)[inside]
    assert (errors <= scale / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scales_lie_along_their_axis(axis):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    scale = torch.rand(x.shape[axis], dtype=torch.float64) + 0.1
    zero_point = torch.arange(x.shape[axis], dtype=torch.float64)
    kept = x.clone()
    q = quantize(x, scale, zero_point, axis, 0, 15)
    back = dequantize(q, scale, zero_point, axis)
    assert torch.equal(x, kept)
    for index in range(x.shape[axis]):
        one = x.select(axis, index), scale[index], zero_point[index]
        assert torch.equal(q.select(axis, index), quantize(*one, None, 0, 15))
        assert torch.equal(back.select(axis, index), dequantize(q.select(axis, index), *one[1:], None))


def test_along_leaves_scalars_alone():
    assert along(torch.tensor(2.0), None, (2, 4, 5)).shape == ()
    assert along(torch.arange(4), 1, (2, 4, 5)).shape == (1, 4, 1)


@given(hnp.arrays(np.float64, (3, 7), elements=FLOATS), BITS, st.sampled_from([0, 1]))
def test_min_max_scale_is_the_smallest_that_clips_nothing(weight, bits, axis):
    fmt = Format(bits, "channel", symmetric=True)
    low, high = fmt.integer_range
    tensor = torch.from_numpy(weight)
    scale, _ = min_max_factors(tensor, axis, fmt)
    assert scale.shape == (weight.shape[axis],)
    for index, one in enumerate(scale.tolist()):
        channel = np.take(weight, index, axis)
        assert one > 0
        if np.abs(channel).max() < SMALLEST_SCALE * 2**bits:  # as good as zeros
            continue
        tolerance = 1e-9 * np.abs(channel).max()
        assert channel.max() <= high * one + tolerance
        assert channel.min() >= low * one - tolerance
        smaller = 0.999 * one
        assert channel.max() > high * smaller or channel.min() < low * smaller


@pytest.mark.parametrize("zeros", [0.0, 1e-45, 1e-38])
def test_a_channel_of_zeros_stays_zeros(zeros):
    fmt = Format(4, "channel", symmetric=True)
    weight = torch.tensor([[0.0, zeros], [1.0, -3.0]])
    scale, zero = min_max_factors(weight, 0, fmt)
    rounded = dequantize(quantize(weight, scale, zero, 0, *fmt.integer_range), scale, zero, 0)
    assert torch.isfinite(scale).all()
    assert rounded[0].tolist() == [0.0, 0.0]


@given(FLOATS, FLOATS, BITS, st.booleans())
def test_a_range_keeps_zero_and_its_ends(first, second, bits, symmetric):
    low, high = sorted((first, second))
    fmt = Format(bits, "tensor", symmetric)
    scale, zero_point = range_to_affine(low, high, fmt)
    least, most = fmt.integer_range
    assert math.isfinite(scale)
    assert scale > 0
    assert isinstance(zero_point, int)
    assert least <= zero_point <= most
    assert (in_words(0.0, scale, zero_point, least, most) - zero_point) * scale == 0.0
    for end in (low, high):
        error = (in_words(end, scale, zero_point, least, most) - zero_point) * scale - end
        assert abs(error) <= scale * (0.5 + 1e-6)
    if symmetric:
        assert zero_point == 0


@pytest.mark.parametrize("high", [0.0, 5e-324, 1e-38])
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_empty_range_maps_zero_to_zero(symmetric, high):
    fmt = Format(8, "tensor", symmetric)
    scale, zero_point = range_to_affine(0.0, high, fmt)
    assert scale == SCALE_OF_ZEROS
    assert zero_point == 0


def lsq_in_words(x, scale, zero_point, low, high):
    """Derivatives of one number by x and by the scale: equation 3 of LSQ, in Python's own arithmetic."""
    v, lowest, highest = x / scale, low - zero_point, high - zero_point
    if v < lowest - 0.5:
        return 0.0, lowest
    if v > highest + 0.5:
        return 0.0, highest
    return 1.0, min(max(round(v), lowest), highest) - v


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(None, ()), (1, (4,)), *(pytest.param(0, shape, marks=pytest.mark.slow) for shape in ((3,), (3, 2)))],
)
@given(data=st.data())
def test_gradients_are_those_of_lsq(axis, shape, data):
    """Per tensor, per channel along either axis, and two groups a channel; with zero points."""
    low, high = data.draw(st.sampled_from([(-2, 1), (-8, 7), (0, 3), (0, 255)]))
    x, slopes = (data.draw(hnp.arrays(np.float64, (3, 4), elements=st.floats(-9, 9))) for _ in range(2))
    scale = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(0.01, 3)))
    zero_point = data.draw(hnp.arrays(np.float64, shape, elements=st.integers(low, high).map(float)))
    expected_x, expected_scale = np.zeros_like(x), np.zeros(shape)
    for i, j in np.ndindex(3, 4):
        place = {(None, 0): (), (0, 1): (i,), (1, 1): (j,), (0, 2): (i, j // 2)}[axis, len(shape)]
        by_x, by_scale = lsq_in_words(x[i, j], scale[place], zero_point[place], low, high)
        expected_x[i, j] = slopes[i, j] * by_x
        expected_scale[place] += slopes[i, j] * by_scale
    tensors = (torch.from_numpy(np.asarray(one)) for one in (x, scale, zero_point))
    by_x, by_scale = straight_through(*tensors, axis, (low, high), torch.from_numpy(slopes))
    np.testing.assert_allclose(by_x.numpy(), expected_x)
    np.testing.assert_allclose(by_scale.numpy(), expected_scale, atol=1e-9)


def test_a_gradient_worked_by_hand():
    """Scale 2, integers -2 .. 1: 3.5 / 2 is above 1.5, clipped to 1; -1.2 / 2 rounds to -1; 0.4 / 2 to 0."""
    x, slopes = torch.tensor([3.5, -1.2, 0.4]), torch.tensor([10.0, 1.0, 2.0])
    by_x, by_scale = straight_through(x, torch.tensor(2.0), torch.tensor(0.0), None, (-2, 1), slopes)
    torch.testing.assert_close(by_x, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(by_scale, torch.tensor(10 * 1 + 1 * (-1 + 0.6) + 2 * (0 - 0.2)))


def test_gradients_are_the_same_piece_by_piece(monkeypatch):
    x, slopes = torch.randn(5, 7, 3).transpose(0, 2), torch.randn(3, 7, 5)
    arguments = (x, torch.tensor(0.3), torch.tensor(3.0), None, (0, 7), slopes)
    whole = straight_through(*arguments)
    monkeypatch.setattr(affine, "FEW_ELEMENTS", 8)
    for one, other in zip(straight_through(*arguments), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_biases_are_multiples_of_the_products_of_scales():
    step = bias_step(torch.tensor(0.5), torch.tensor([1.0, 2.0]), 4)
    assert step.tolist() == [0.5, 1.0, 0.5, 1.0]  # two groups
    assert bias_step(torch.tensor(0.5), torch.tensor([3.0]), 2).tolist() == [1.5, 1.5]  # one scale for the tensor
    assert bias_step(torch.tensor(0.5), torch.tensor([1.0, 2.0]), 1).tolist() == [0.5, 1.0]  # one bias for all channels
