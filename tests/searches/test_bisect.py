import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mixbit.core.errors import InfeasibleBudget
from mixbit.searches.front import front
from tests.searches.test_front import random_table

FRONT = front(random_table(6, 4))


def scored(scores):
    """A function of a plan that looks its score up, and the list of the points it was asked about."""
    number = {tuple(FRONT.plan(index).layers.values()): index for index in range(len(FRONT))}
    asked = []

    def score(plan):
        asked.append(number[tuple(plan.layers.values())])
        return scores[asked[-1]]

    return score, asked


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(FRONT) - 1))
def test_where_scores_rise_it_is_the_first_that_is_enough(first):
    scores = np.arange(len(FRONT)) / len(FRONT)
    score, asked = scored(scores)
    assert FRONT.cheapest_enough(score, scores[first]) == first
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * np.log2(len(FRONT)) + 6


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000))
def test_where_scores_are_noisy_it_is_enough_and_a_step_cheaper_is_not(seed):
    scores = np.linspace(0, 1, len(FRONT)) + np.random.default_rng(seed).normal(0, 0.1, len(FRONT))
    scores[-1] = 2
    score, asked = scored(scores)
    found = FRONT.cheapest_enough(score, 0.6)
    assert scores[found] >= 0.6
    assert found == 0 or scores[found - 1] < 0.6
    assert len(asked) == len(set(asked))


def test_a_dip_before_the_found_point_is_looked_through():
    """Enough from 20 on, and at 12 too: the probe 8 steps below 20 finds it."""
    scores = np.where(np.arange(len(FRONT)) >= 20, 1.0, 0.0)
    scores[12] = 1.0
    score, _ = scored(scores)
    assert FRONT.cheapest_enough(score, 0.5) == 12


def test_the_cheapest_plan_of_all():
    score, _ = scored(np.ones(len(FRONT)))
    assert FRONT.cheapest_enough(score, 0.5) == 0


def test_not_even_the_dearest():
    score, _ = scored(np.zeros(len(FRONT)))
    with pytest.raises(InfeasibleBudget, match=r"the dearest plan scores less than 0.5: allow a larger drop"):
        FRONT.cheapest_enough(score, 0.5)
