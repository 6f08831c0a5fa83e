import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mixbit.core.scheme import Scheme, Sparsity
from mixbit.quantization.affine import choose_mask, misfit, num_zeros

PATTERNS = (Sparsity(2, 4), Sparsity(1, 2), Sparsity(3, 4), Sparsity(50), Sparsity(1), Sparsity(99))
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def rows_of(shape, axis):
    """Places of the weights of each row, one after the other: input channels run fastest, then kernel positions."""
    other = 1 if axis == 0 else 0
    kernel = [range(size) for dimension, size in enumerate(shape) if dimension not in (axis, other)]
    for channel in range(shape[axis]):
        row = []
        for position in product(*kernel):
            for source in range(shape[other]):
                place = (channel, source) if axis == 0 else (source, channel)
                row.append((*place, *position))
        yield row


def kept_one_by_one(importance, axis, sparsity):
    """The least important ones of each block, or of the whole tensor, found one after the other."""
    kept = np.ones(importance.shape, dtype=bool)
    if sparsity.block:
        size = sparsity.block
        parts = [row[at : at + size] for row in rows_of(kept.shape, axis) for at in range(0, len(row), size)]
    else:
        parts = [list(np.ndindex(kept.shape))]
    for part in parts:
        for _ in range(math.floor(len(part) * sparsity.zeros / (sparsity.block or 100) + 1e-9)):
            left = [place for place in part if kept[place]]
            kept[min(left, key=lambda place: importance[place])] = False  # of equal ones min takes the first
    return kept


@given(SHAPES, st.integers(0, 1), st.sampled_from(PATTERNS), st.integers(0, 9))
def test_masks_are_those_found_one_by_one(shape, axis, sparsity, seed):
    if misfit(shape, axis, sparsity):
        shape = tuple(size if dimension == axis else 4 * size for dimension, size in enumerate(shape))
    generator = torch.Generator().manual_seed(seed)
    importance = torch.randint(0, 6, shape, generator=generator).float()  # many are equal
    kept = choose_mask(importance, axis, sparsity)
    assert kept.dtype == torch.bool
    assert np.array_equal(kept.numpy(), kept_one_by_one(importance.numpy(), axis, sparsity))
    assert int((~kept).sum()) == num_zeros(importance.numel(), sparsity)


def test_blocks_run_along_the_input_channels():
    weight = torch.arange(32.0).reshape(1, 8, 2, 2)  # channel c at position p is 4 c + p
    kept = choose_mask(weight, 0, Sparsity(2, 4))
    assert kept.flatten(2).tolist() == [[[one] * 4 for one in (False, False, True, True) * 2]]
    matrix = weight.reshape(4, 8)  # of a product x @ w: rows are columns
    assert choose_mask(matrix, 1, Sparsity(2, 4)).tolist() == [[False] * 8] * 2 + [[True] * 8] * 2


@pytest.mark.parametrize(
    ("numel", "sparsity", "wanted"),
    [
        (16, Sparsity(2, 4), 8),
        (7, Sparsity(50), 3),
        (5, Sparsity(99), 4),
        (99, Sparsity(1), 0),
    ],
)
def test_percentages_round_down(numel, sparsity, wanted):
    assert num_zeros(numel, sparsity) == wanted


def test_blocks_must_divide_rows():
    assert misfit((16, 3, 3, 3), 0, Sparsity(2, 4)) == (
        "blocks of 4 do not divide its rows of 27 weights; take the scheme without @2:4, or a share of the whole "
        "tensor, as @50%"
    )
    assert misfit((16, 3, 3, 3), 0, Sparsity(50)) is None
    assert misfit((8, 3), 1, Sparsity(2, 4)) is None
    assert misfit((16, 2, 2, 3), 0, Sparsity(2, 4)) is None  # 12 weights a row, though 2 input channels


def test_schemes_name_the_patterns():
    for text, wanted in (("w8a8@2:4", Sparsity(2, 4)), ("w4a8@50%", Sparsity(50))):
        weight = Scheme.parse(text).weight
        assert weight is not None
        assert weight.sparsity == wanted
