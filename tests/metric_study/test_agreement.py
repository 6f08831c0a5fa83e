"""Rank statistics against scipy and against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mixbit.metric_study.plans import FEWEST_PLANS, rank_correlation, reliability

FEW_VALUES = st.integers(0, 5).map(float)  # so that there are ties


def rng():
    return np.random.default_rng(0)


@given(arrays(float, (2, 12), elements=FEW_VALUES))
def test_correlations_are_scipys(values):
    x, y = values
    found = rank_correlation(x, y, 12, rng())
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert set(found.values()) == {None}
        return
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_intervals_are_those_of_the_slow_bootstrap():
    x = np.array([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4])
    y = np.array([2.0, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5, 2, 3, 5, 3])
    found = rank_correlation(x, y, FEWEST_PLANS, rng())
    drawn = rng().integers(20, size=(1000, 20))
    spearman = [stats.spearmanr(x[row], y[row]).statistic for row in drawn]
    kendall = [stats.kendalltau(x[row], y[row]).statistic for row in drawn]
    assert found["spearman_interval"] == pytest.approx(np.percentile(spearman, [2.5, 97.5]))
    assert found["kendall_interval"] == pytest.approx(np.percentile(kendall, [2.5, 97.5]))


def test_few_plans_give_no_interval():
    x, y = rng().normal(size=(2, 30))
    found = rank_correlation(x, y, FEWEST_PLANS - 1, rng())
    assert found["spearman"] is not None
    assert found["spearman_interval"] is found["kendall_interval"] is None
    assert reliability(x, y + x, FEWEST_PLANS - 1, rng())["ceiling_interval"] is None


def test_no_interval_where_draws_have_a_constant_side():
    x = np.arange(30.0)
    found = rank_correlation(x, (x == 7).astype(float), 30, rng())
    assert found["kendall"] is not None
    assert found["spearman_interval"] is found["kendall_interval"] is None


def test_a_perfect_prediction_is_1_and_its_reverse_minus_1():
    truth = np.array([0.1, 0.5, 0.2, 0.9])
    found = rank_correlation(np.exp(truth), truth, 4, rng())
    assert (found["spearman"], found["kendall"]) == (pytest.approx(1), pytest.approx(1))
    found = rank_correlation(-truth, truth, 4, rng())
    assert (found["spearman"], found["kendall"]) == (pytest.approx(-1), pytest.approx(-1))


def test_an_infinite_prediction_is_the_worst():
    truth = np.array([1.0, 2, 3, 4])
    assert rank_correlation(np.array([0.0, 1, np.inf, np.inf]), truth, 4, rng())["spearman"] == pytest.approx(
        0.948683298
    )


def test_reliability_by_hand():
    first = np.array([1.0, 2, 3, 4])
    second = np.array([1.0, 3, 2, 4])  # ranks differ by 0, 1, 1, 0: r = 1 - 6 * 2 / (4 * 15) = 0.8
    found = reliability(first, second, 4, rng())
    assert (found["reliability"], found["ceiling"]) == pytest.approx((2 * 0.8 / 1.8, (2 * 0.8 / 1.8) ** 0.5))
    assert reliability(first, first, 4, rng())["ceiling"] == pytest.approx(1)
    assert reliability(first, -first, 4, rng())["ceiling"] == 0
    assert reliability(first, np.ones(4), 4, rng())["reliability"] == 0


def test_the_interval_of_the_ceiling_is_that_of_the_slow_bootstrap():
    first = rng().normal(size=25)
    second = first + np.random.default_rng(1).normal(size=25)
    drawn = rng().integers(25, size=(1000, 25))
    r = np.array([max(stats.spearmanr(first[row], second[row]).statistic, 0) for row in drawn])
    expected = np.percentile((2 * r / (1 + r)) ** 0.5, [2.5, 97.5])
    assert reliability(first, second, 25, rng())["ceiling_interval"] == pytest.approx(expected)
