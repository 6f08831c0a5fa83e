"""How well a prediction ranks plans: rank correlations with intervals, and the reliability of the truth (numbers only).

Spearman's correlation is Pearson's of the ranks, those of equal values averaged. Kendall's is tau-b: pairs in the same
order less pairs in the opposite one, over the root of the product of the pairs that each side tells apart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mixbit.core import Sensitivity
from mixbit.metric_study.truth import Truth

Floats = NDArray[np.float64]
Interval = tuple[float, float]

NUM_RESAMPLES = 1000
#: Resamples of fewer different plans differ too little to tell how uncertain a figure is.
FEWEST_PLANS = 20
COVERAGE = 95


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of a prediction with the truth, 1 for a perfect prediction; None where a side is constant.

    Attributes:
        spearman: Spearman's correlation.
        spearman_interval: Its bootstrap percentile interval, COVERAGE %; None where it would say too little.
        kendall: Kendall's tau-b.
        kendall_interval: Its interval, likewise.
    """

    spearman: float | None
    spearman_interval: Interval | None
    kendall: float | None
    kendall_interval: Interval | None


@dataclass(frozen=True)
class Reliability:
    """How reliable a figure of plans is.

    Attributes:
        reliability: Share of its variance over plans that is no noise.
        ceiling: The root of that: what a perfect prediction would correlate by with the figure.
        ceiling_interval: Its interval, as those of `Agreement`.
    """

    reliability: float
    ceiling: float
    ceiling_interval: Interval | None


def agreement(predicted: Floats, truth: Floats, num_distinct: int, rng: np.random.Generator) -> Agreement:
    """Agreement of the predicted cost [N] of N plans with the true one [N], both the higher the worse; inf may stand.

    The bootstrap draws N plans with replacement, NUM_RESAMPLES times. There is no interval from fewer than
    FEWEST_PLANS different plans, nor where a side is constant in a draw.

    Args:
        predicted: [N].
        truth: [N].
        num_distinct: How many of the plans are different.
        rng: Of the bootstrap.
    """
    ranks = np.stack([rankdata(predicted), rankdata(truth)])
    count = len(predicted)
    drawn = rng.integers(count, size=(NUM_RESAMPLES, count))
    copies = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)
    return Agreement(
        _number(_spearman(ranks[:, None])[0]),
        _interval(_spearman(ranks[:, drawn]), num_distinct),
        _number(_kendall(ranks, np.ones((1, count)))[0]),
        _interval(_kendall(ranks, copies), num_distinct),
    )


def reliability(first: Floats, second: Floats, num_distinct: int, rng: np.random.Generator) -> Reliability:
    """How reliable a figure [N] of N plans is, from those of two halves of its samples (Spearman-Brown).

    2 r / (1 + r) with r, Spearman's correlation between the halves; 0 where r is not positive, or a half is constant.
    The ceiling is an estimate like the correlations themselves, and one of these may come out above it.

    Args:
        first: [N] of one half.
        second: [N] of the other.
        num_distinct: How many of the plans are different.
        rng: Of the bootstrap, which is that of `agreement`.
    """
    halves = np.stack([first, second])
    drawn = rng.integers(len(first), size=(NUM_RESAMPLES, len(first)))
    (found,) = _spearman_brown(halves[:, None])
    interval = _interval(np.sqrt(_spearman_brown(halves[:, drawn])), num_distinct)
    return Reliability(float(found), math.sqrt(found), interval)


def _spearman_brown(halves: Floats) -> Floats:
    """[R] reliabilities of R pairs of halves [2, R, N]."""
    r = np.nan_to_num(_spearman(halves)).clip(min=0)
    return 2 * r / (1 + r)


def _spearman(pairs: Floats) -> Floats:
    """[R] correlations of R pairs of rows [2, R, N]; NaN where one is constant."""
    x, y = (rankdata(rows, axis=1) - (pairs.shape[-1] + 1) / 2 for rows in pairs)
    return _ratio((x * y).sum(1), (x * x).sum(1) * (y * y).sum(1))


def _kendall(ranks: Floats, copies: Floats) -> Floats:
    """[R] tau-b of the ranks [2, N] where plan n stands copies[r, n] times; copies of one plan are tied."""
    x, y = (np.sign(one[:, None] - one[None, :]) for one in ranks)
    agreeing, apart_x, apart_y = (((copies @ signs) * copies).sum(1) for signs in (x * y, abs(x), abs(y)))
    return _ratio(agreeing, apart_x * apart_y)


def _ratio(above: Floats, square_below: Floats) -> Floats:
    return np.where(square_below > 0, above / np.sqrt(np.where(square_below > 0, square_below, 1)), np.nan)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _interval(values: Floats, num_distinct: int) -> Interval | None:
    if num_distinct < FEWEST_PLANS or np.isnan(values).any():
        return None
    low, high = np.percentile(values, [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
    return float(low), float(high)


Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PlanSet:
    """Random plans of one set: their choices [L], and what they truly cost."""

    choices: Sequence[Integers]
    truths: Sequence[Truth]

    @property
    def num_distinct(self) -> int:
        """How many of the plans are different."""
        return len({tuple(choice) for choice in self.choices})


def predicted_losses(table: Sensitivity, choices: Iterable[Integers]) -> Floats:
    """[N] predicted loss of each plan, the sum of its entries; exact, so that plans which use the same are tied."""
    rows = np.arange(len(table.layers))
    return np.array([math.fsum(table.loss[rows, choice]) for choice in choices])


def true_costs(truths: Iterable[Truth]) -> Floats:
    """[N] what the metrics are to predict, the higher the worse: see `Truth.cost`."""
    return np.array([one.cost for one in truths])


def agreement_figures(table: Sensitivity, sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    """The figures of `agreement()` on each set, with the true cost, and under `kl_` with the KL divergence.

    Those of the set `near` begin with `near_`. Every metric is judged on the same resamples. Where nothing can be
    ranked, figures are None and `reason` says why.
    """
    figures: dict[str, Any] = {}
    for name, plans in sets.items():
        predicted = predicted_losses(table, plans.choices)
        costs = {"": true_costs(plans.truths), "kl_": np.array([one.kl for one in plans.truths])}
        for word, cost in costs.items():
            found = asdict(agreement(predicted, cost, plans.num_distinct, np.random.default_rng(seed)))
            figures |= {f"{_prefix(name)}{word}{key}": value for key, value in found.items()}
        if _constant(predicted):
            figures["reason"] = f"predicts the same loss for all {name} plans, and so cannot rank them"
        elif _constant(costs[""]):
            figures["reason"] = f"all {name} plans truly cost the same, so that there is no rank to predict"
    return figures


def reliability_figures(sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    """The figures of `reliability()` on each set's truth, from its halves; those of `near` begin with `near_`."""
    figures = {}
    for name, plans in sets.items():
        first, second = np.array([one.halves for one in plans.truths]).T
        found = reliability(first, second, plans.num_distinct, np.random.default_rng(seed))
        figures |= {f"{_prefix(name)}{key}": value for key, value in asdict(found).items()}
    return figures


def regrets(
    chosen: Mapping[str, Mapping[str, Truth | None]], within: Mapping[str, NDArray[np.bool_]], truths: Sequence[Truth]
) -> dict[str, dict[str, float | None]]:
    """Metric -> budget -> true cost of the plan that it chose, less the least of any known plan within the budget.

    Args:
        chosen: Metric -> budget -> truth of its plan, None where it found none.
        within: Budget -> [N] which of all known plans keep it.
        truths: N of them.
    """
    costs = true_costs(truths)
    return {
        metric: {
            budget: None if truth is None else float(truth.cost - costs[within[budget]].min())
            for budget, truth in found.items()
        }
        for metric, found in chosen.items()
    }


def _constant(values: Floats) -> bool:
    return len(np.unique(values)) == 1


def _prefix(name: str) -> str:
    return "" if name == "random" else f"{name}_"
