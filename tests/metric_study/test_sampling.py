"""Random plans: their distribution, ties, and nearness to a budget."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mixbit.core import Limit
from mixbit.core.budget import Budget
from mixbit.core.errors import InvalidInput
from mixbit.metric_study.plans import NEAR, draw_choices, near_choice, random_choice
from tests.searches.fixtures import small_table

BITS = [8, 8, 8, 32]


def test_layers_without_ties_are_uniform_and_independent():
    rng = np.random.default_rng(0)
    drawn = np.array([random_choice(np.ones((2, 4), bool), BITS, [], rng) for _ in range(3200)])
    counts = np.bincount(drawn @ [1, 4], minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_tied_layers_share_a_format_drawn_first():
    rng = np.random.default_rng(0)
    drawn = np.array([random_choice(np.ones((3, 4), bool), BITS, [(0, 2)], rng) for _ in range(3600)])
    assert ((drawn[:, 0] == 3) == (drawn[:, 2] == 3)).all()
    in_float = (drawn[:, 0] == 3).sum()
    assert stats.binomtest(int(in_float), 3600, 0.5).pvalue > 1e-3, "one of two formats"
    rest = drawn[drawn[:, 0] != 3]
    assert stats.chisquare(np.bincount(rest[:, 0] + 3 * rest[:, 2], minlength=9)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(drawn[:, 1], minlength=4)).pvalue > 1e-3, "the layer between is free"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_plans_take_what_layers_are_offered_and_tied_ones_a_common_format(seed):
    rng = np.random.default_rng(seed)
    bits, offered = np.array([8, 8, 4, 32]), rng.random((6, 4)) < 0.5
    offered[:, 1] = True  # so that every tie has a common format
    usage = rng.uniform(1, 2, size=offered.shape)
    bound = np.where(offered, usage, 0).max(axis=1).sum()
    for choice in (
        random_choice(offered, bits, [(0, 3, 4)], rng),
        near_choice(Limit("bit_ops", usage, bound), offered, bits, [], rng),
    ):
        assert offered[np.arange(6), choice].all()
    assert len(set(bits[random_choice(offered, bits, [(0, 3, 4)], rng)[[0, 3, 4]]])) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(8, 14), st.floats(0.25, 0.75))
def test_near_plans_are_near_and_obey_ties(seed, num_layers, share):
    rng = np.random.default_rng(seed)
    usage = rng.uniform(1, 2, size=(num_layers, 1)) * [2, 3, 4, 6, 3, 6]
    bits, ties = np.array([8, 8, 8, 8, 32, 32]), [(0, 3), (1, 2, 5)]
    low, high = usage.min(1).sum(), usage.max(1).sum()
    bound = low + share * (high - low)
    choice = near_choice(Limit("bit_ops", usage, bound), np.ones(usage.shape, bool), bits, ties, rng)
    assert abs(usage[np.arange(num_layers), choice].sum() - bound) <= NEAR * bound
    for tie in ties:
        assert len(set(bits[choice[list(tie)]])) == 1


def test_a_budget_out_of_reach_says_what_is_in_reach():
    limit = Limit("mean_bits", np.array([[2.0, 4], [2, 4]]) / 2, 8)
    with pytest.raises(InvalidInput, match="mean_bits=8: found no plan within 5% of it; the choices reach 2 to 4"):
        near_choice(limit, np.ones((2, 2), bool), [8, 8], [], np.random.default_rng(0))


def test_a_plan_does_not_depend_on_how_many_are_drawn():
    table = small_table()
    few, many = (draw_choices(table, number, Budget(mean_bits=5.4), 7) for number in (4, 9))
    for name in ("random", "near"):
        assert np.array_equal(few[name], many[name][:4])
    other = draw_choices(table, 9, Budget(mean_bits=5.4), 8)
    assert not np.array_equal(other["random"], many["random"])


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InvalidInput, match="2 plans"):
        draw_choices(small_table(), 2, None, 0)
    with pytest.raises(InvalidInput, match="one limit"):
        draw_choices(small_table(), 5, Budget(mean_bits=5, weight_ratio=0.2), 0)
    alive = np.array([[0.0, 10, 20, 0], [0, 0, 20, 30]])
    with pytest.raises(InvalidInput, match=r"activation_bytes=40: 2 limits, .* give one limit"):
        draw_choices(small_table(live=alive), 5, Budget(activation_bytes=40), 0)
