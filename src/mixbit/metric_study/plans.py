"""Random plans, over all choices or near a budget, and how well predicted losses rank them. Arrays only.

Spearman's correlation is Pearson's of the ranks, those of equal values averaged. Kendall's is tau-b: pairs in the same
order minus pairs in the opposite one, over the root of the product of the pairs that are not tied on each side.
Intervals are bootstrap percentiles: N plans are drawn with replacement, NUM_RESAMPLES times.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mixbit.core import Budget, FloatArray, InvalidInput, Limit, Sensitivity, new_figure, save_figure
from mixbit.metric_study.folder import Truth

#: [L] the column of each layer's scheme.
Choice = NDArray[np.int64]
#: Groups of layers that read the same tensor.
Ties = Sequence[Sequence[int]]
#: A figure, None where it is not defined; or its interval, None where it would say too little.
Figures = dict[str, float | tuple[float, float] | None]

#: Share of the budget by which the usage of a plan near it may differ from it.
NEAR = 0.05
#: How often to start again where no move comes closer.
MOST_STARTS = 100
#: Random plans of a set.
MOST_PLANS = 100_000
#: A move that comes closer by a smaller share does so by rounding alone, and could be taken back and forth for ever.
ROUNDING = 1e-9
NUM_RESAMPLES = 1000
#: Resamples of fewer different plans differ too little to show how uncertain a figure is.
FEWEST_PLANS = 20
#: Percent of the resamples that an interval covers.
COVERAGE = 95
#: Width and height of a panel in a picture, in inches; and what its vertical axis shows.
PANEL = (3.6, 3.0)
LABELS = {"accuracy": "accuracy", "loss": "loss", "kl": "KL divergence, nats"}


def draw_choices(table: Sensitivity, number: int, near: Budget | None, seed: int) -> dict[str, list[Choice]]:
    """Set (`random`, and `near` where a budget of one limit is given) -> so many random plans.

    Plan i of a set depends on the seed alone, and not on how many are drawn. Raises InvalidInput for fewer than three
    plans, a budget of several limits, or one that no plan comes near.
    """
    if not 3 <= number <= MOST_PLANS:
        raise InvalidInput(f"{number} plans: a ranking needs at least 3, better 100; {MOST_PLANS:,} at most")
    limits = () if near is None else table.limits(near)
    if len(limits) > 1:  # of activation_bytes there is one for each moment
        raise InvalidInput(f"near budget {near}: {len(limits)} limits, and a plan can be near one; give one limit")
    bits, ties = [scheme.input_bits for scheme in table.schemes], table.input_ties
    offered = np.isfinite(table.loss)
    rngs = [[np.random.default_rng([seed, of_set, plan]) for plan in range(number)] for of_set in range(2)]
    drawn = {"random": [random_choice(offered, bits, ties, rng) for rng in rngs[0]]}
    if limits:
        drawn["near"] = [near_choice(limits[0], offered, bits, ties, rng) for rng in rngs[1]]
    return drawn


def random_choice(
    offered: NDArray[np.bool_], input_bits: Sequence[int], input_ties: Ties, rng: np.random.Generator
) -> Choice:
    """A choice [L], each layer's uniform over those offered to it, [L, C], and independent unless layers are tied.

    For tied layers, which read the same tensor, the input format is drawn first, uniformly over those that all of them
    are offered; then the choice of each, uniformly over its choices with that format. `input_bits` [C] are those of
    each choice.
    """
    bits = np.asarray(input_bits)
    choice = rng.integers(len(bits), size=len(offered))
    _redraw(choice, range(len(offered)), offered, rng)
    for tie in map(list, input_ties):
        common = [width for width in np.unique(bits) if (offered[tie] & (bits == width)).any(axis=1).all()]
        if not common:
            raise InvalidInput(f"choices: layers {tie} read one tensor, and no format of it is offered to all of them")
        of_format = bits == rng.choice(common)
        choice[tie] = rng.choice(np.flatnonzero(of_format), size=len(tie))
        _redraw(choice, tie, offered & of_format, rng)
    return choice


def _redraw(choice: Choice, rows: Iterable[int], offered: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Draw again, in place, what was drawn for these layers and is not offered to them."""
    for row in rows:
        if not offered[row, choice[row]]:
            choice[row] = rng.choice(np.flatnonzero(offered[row]))


def near_choice(
    limit: Limit,
    offered: NDArray[np.bool_],
    input_bits: Sequence[int],
    input_ties: Ties,
    rng: np.random.Generator,
) -> Choice:
    """A choice [L] whose usage differs from the limit's bound by at most NEAR of it.

    Starting from a `random_choice`, single layers are moved to other choices, each move drawn uniformly among those
    that come closer to the bound and obey the ties, until it is near; where no move comes closer, it starts again.
    Raises InvalidInput where that happens MOST_STARTS times.
    """
    usage, bits, whole = limit.usage, np.asarray(input_bits), limit.bound + limit.offset
    tied = np.zeros(len(usage), dtype=bool)
    tied[[layer for tie in input_ties for layer in tie]] = True
    for _ in range(MOST_STARTS):
        choice = random_choice(offered, input_bits, input_ties, rng)
        while True:
            now = np.take_along_axis(usage, choice[:, None], axis=1)
            total = float(now.sum())
            if abs(total - limit.bound) <= NEAR * whole:
                return choice
            allowed = offered & (~tied[:, None] | (bits == bits[choice][:, None]))
            distance = abs(total + (usage - now) - limit.bound)
            moves = np.argwhere(allowed & (distance < abs(total - limit.bound) * (1 - ROUNDING)))
            if not len(moves):
                break
            layer, column = rng.choice(moves)
            choice[layer] = column
    ends = np.where(offered, usage, np.inf).min(axis=1), np.where(offered, usage, -np.inf).max(axis=1)
    low, high = (float(end.sum()) + limit.offset for end in ends)
    reach = f"the choices reach {low:g} to {high:g}"
    raise InvalidInput(f"near budget {limit.name}={whole:g}: found no plan within {NEAR:.0%} of it; {reach}")


@dataclass(frozen=True)
class PlanSet:
    """Random plans of one set: their choices, and what they truly cost."""

    choices: Sequence[Choice]
    truths: Sequence[Truth]

    @property
    def num_distinct(self) -> int:
        """How many of the plans are different."""
        return len({tuple(choice) for choice in self.choices})

    @property
    def costs(self) -> FloatArray:
        """[N] what the metrics should predict, the higher the worse."""
        return np.array([truth.cost for truth in self.truths])


def predicted_losses(table: Sensitivity, choices: Iterable[Choice]) -> FloatArray:
    """[N] predicted loss of each plan, the sum of its entries; exact, so that plans which use the same are tied."""
    rows = np.arange(len(table.layers))
    return np.array([math.fsum(table.loss[rows, choice]) for choice in choices])


def agreement_figures(table: Sensitivity, sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    """`rank_correlation` with the true cost on each set, and under `kl_` with the KL divergence.

    Names for the set `near` begin with `near_`. Metrics share the resamples. `reason` says why figures are None.
    """
    figures: dict[str, Any] = {}
    for name, plans in sets.items():
        predicted = predicted_losses(table, plans.choices)
        for word, costs in (("", plans.costs), ("kl_", np.array([truth.kl for truth in plans.truths]))):
            correlations = rank_correlation(predicted, costs, plans.num_distinct, np.random.default_rng(seed))
            figures |= {f"{_prefix(name)}{word}{key}": value for key, value in correlations.items()}
        if len(np.unique(predicted)) == 1:
            figures["reason"] = f"predicts the same loss for all {name} plans, and so cannot rank them"
        elif len(np.unique(plans.costs)) == 1:
            figures["reason"] = f"all {name} plans truly cost the same, so that there is no rank to predict"
    return figures


def reliability_figures(sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    """`reliability` of each set's truth, from its halves; names for the set `near` begin with `near_`."""
    figures: dict[str, Any] = {}
    for name, plans in sets.items():
        first, second = np.array([truth.halves for truth in plans.truths]).T
        figures_of_set = reliability(first, second, plans.num_distinct, np.random.default_rng(seed))
        figures |= {f"{_prefix(name)}{key}": value for key, value in figures_of_set.items()}
    return figures


def _prefix(name: str) -> str:
    return "" if name == "random" else f"{name}_"


def rank_correlation(predicted: FloatArray, truth: FloatArray, num_distinct: int, rng: np.random.Generator) -> Figures:
    """Rank correlations of predicted costs [N], which may be inf, with true ones [N]: 1 for a perfect prediction.

    Returns:
        `spearman` and `kendall`, None where a side is constant; and the same with `_interval`, None from fewer than
        FEWEST_PLANS different plans, and where a side is constant in a draw.
    """
    ranks = np.stack([rankdata(predicted), rankdata(truth)])
    count = len(predicted)
    drawn = rng.integers(count, size=(NUM_RESAMPLES, count))
    copies = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)
    spearman, kendall = _spearman(ranks[:, None])[0], _kendall(ranks, np.ones((1, count)))[0]
    return {
        "spearman": None if math.isnan(spearman) else float(spearman),
        "spearman_interval": _interval(_spearman(ranks[:, drawn]), num_distinct),
        "kendall": None if math.isnan(kendall) else float(kendall),
        "kendall_interval": _interval(_kendall(ranks, copies), num_distinct),
    }


def reliability(first: FloatArray, second: FloatArray, num_distinct: int, rng: np.random.Generator) -> Figures:
    """How reliable a figure of N plans is, from that of two halves of its samples [N] each (Spearman-Brown).

    Returns:
        `reliability`, the share of the figure's variance over plans that is not noise: 2 r / (1 + r) with r, Spearman's
        correlation between the halves; 0 where r is not positive, or a half is constant. `ceiling`, its root: what a
        perfect prediction would correlate by with the figure, an estimate like the correlations themselves, of which
        one may come out above it. `ceiling_interval`, as those of `rank_correlation`.
    """
    halves = np.stack([first, second])
    drawn = rng.integers(len(first), size=(NUM_RESAMPLES, len(first)))
    (value,) = _spearman_brown(halves[:, None])
    return {
        "reliability": float(value),
        "ceiling": math.sqrt(value),
        "ceiling_interval": _interval(np.sqrt(_spearman_brown(halves[:, drawn])), num_distinct),
    }


def _spearman_brown(halves: FloatArray) -> FloatArray:
    """[R] reliabilities of R pairs of halves [2, R, N]."""
    r = np.nan_to_num(_spearman(halves)).clip(min=0)
    return 2 * r / (1 + r)


def _spearman(pairs: FloatArray) -> FloatArray:
    """[R] correlations of R pairs of rows [2, R, N]; NaN where a row is constant."""
    x, y = (rankdata(rows, axis=1) - (pairs.shape[-1] + 1) / 2 for rows in pairs)
    return _ratio((x * y).sum(1), (x * x).sum(1) * (y * y).sum(1))


def _kendall(ranks: FloatArray, copies: FloatArray) -> FloatArray:
    """[R] tau-b of the ranks [2, N] where plan n stands copies[r, n] times; copies of one plan are tied."""
    x, y = (np.sign(side[:, None] - side[None, :]) for side in ranks)
    agreeing, apart_x, apart_y = (((copies @ signs) * copies).sum(1) for signs in (x * y, abs(x), abs(y)))
    return _ratio(agreeing, apart_x * apart_y)


def _ratio(above: FloatArray, square_below: FloatArray) -> FloatArray:
    return np.where(square_below > 0, above / np.sqrt(np.where(square_below > 0, square_below, 1)), np.nan)


def _interval(values: FloatArray, num_distinct: int) -> tuple[float, float] | None:
    if num_distinct < FEWEST_PLANS or np.isnan(values).any():
        return None
    low, high = np.percentile(values, [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
    return float(low), float(high)


def draw_panels(path: Path, tables: Mapping[str, Sensitivity], sets: Mapping[str, PlanSet], judged_by: str) -> None:
    """Draw the truth of each set over the predicted loss of each metric; infinite predicted losses are left out."""
    sign = -1 if judged_by == "accuracy" else 1
    figure = new_figure(PANEL[0] * len(tables), PANEL[1] * len(sets))
    grid = figure.subplots(len(sets), len(tables), squeeze=False)
    for axes_row, (name, plans) in zip(grid, sets.items(), strict=True):
        for axes, (metric, table) in zip(axes_row, tables.items(), strict=True):
            predicted = predicted_losses(table, plans.choices)
            shown = np.isfinite(predicted)
            axes.scatter(predicted[shown], sign * plans.costs[shown], s=8, alpha=0.6)
            if shown.any() and predicted[shown].min() > 0:
                axes.set_xscale("log")
            axes.tick_params(axis="x", which="both", labelsize="x-small", labelrotation=45)
            axes.set_title(metric, fontsize="medium")
            axes.set_xlabel(f"predicted loss, {name} plans")
        axes_row[0].set_ylabel(LABELS[judged_by])
    save_figure(path, figure)
