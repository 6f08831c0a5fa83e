"""Can a table rank plans? Its costs must differ, and by more than their standard errors where a plan turns on them."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from mixbit.core import Budget, InfeasibleBudget, Plan, Sensitivity
from mixbit.searches.search import search

#: Budgets at which plans are compared, as shares of the way from the cheapest plan to the dearest.
SHARES = (0.25, 0.5, 0.75)
#: Tables drawn anew from the standard errors.
DRAWS = 8
#: A plan is stable where those of the drawn tables lose no more than this share on average by the table itself.
TOLERANCE = 0.05
#: In nats, what no plan turns on: every cost below it is about zero. Exact costs may be of any size but none.
NOTHING, TINIEST = 1e-9, 1e-300
#: Share of the dearest plan's loss below which the best plan's own is too small to compare with.
LEAST_BEST = 1e-3


def ranking_problem(table: Sensitivity) -> str | None:
    """Why the table cannot rank plans, None where it can.

    It cannot where all costs are about zero, as those of a model that has memorised its data; where most layers cost
    the same whatever their scheme; or where plans are not stable under resampling: entries are drawn anew as normal
    with their standard errors, and the plans searched on such tables lose more than TOLERANCE over the best one.
    """
    offered = np.isfinite(table.loss)
    sampled = bool(table.standard_error[offered].any())
    if np.abs(table.loss[offered]).max() < (NOTHING if sampled else TINIEST):
        return (
            f"all costs are about zero (at most {table.loss[offered].max():.1g}): the data does not challenge the model"
        )
    rows = [row[choices] for row, choices in zip(table.loss, offered, strict=True) if choices.sum() > 1]
    flat = sum(len(np.unique(row)) == 1 for row in rows)
    if rows and flat > len(rows) / 2:
        return f"{flat} of {len(rows)} layers cost the same whatever their scheme"
    if np.isinf(table.standard_error[offered]).any():
        return "a single sample has no standard error"
    excess = resampled_excess(table)
    if excess > TOLERANCE:
        return f"resampled plans lose {excess:.1%} more than the best one (stable: {TOLERANCE:.0%})"
    return None


def resampled_excess(table: Sensitivity) -> float:
    """By how much plans searched on resampled tables lose more than the table's own, relative; mean of all budgets.

    A best plan that loses next to nothing counts as LEAST_BEST of what the dearest choices lose.
    """
    offered = np.isfinite(table.loss)
    errors = np.where(offered, table.standard_error, 0)
    if not errors.any():
        return 0.0
    generator = np.random.default_rng(table.seed)
    floor = max(LEAST_BEST * float(np.where(offered, table.loss, 0).max(1).sum()), TINIEST)
    excesses = []
    for budget in _budgets(table):
        try:
            best = _loss_of(table, search(table, budget))
        except InfeasibleBudget:  # layers that are tied can need more than each alone
            continue
        for _ in range(DRAWS):
            drawn = dataclasses.replace(table, loss=table.loss + errors * generator.standard_normal(table.loss.shape))
            excesses.append((_loss_of(table, search(drawn, budget)) - best) / max(best, floor))
    return float(np.mean(excesses)) if excesses else 0.0


def _budgets(table: Sensitivity) -> Iterator[Budget]:
    """Limits on the mean bits of weights or, where all choices have the same, on bit operations."""
    offered = np.isfinite(table.loss)
    for name, resource, unit in (("mean_bits", "weight_bits", table.numel.sum()), ("bit_ops", "bit_ops", 1.0)):
        usage = table.usage[resource]
        low = np.where(offered, usage, np.inf).min(1).sum() / unit
        high = np.where(offered, usage, -np.inf).max(1).sum() / unit
        if high > low:
            yield from (Budget(**{name: low + share * (high - low)}) for share in SHARES)
            return


def _loss_of(table: Sensitivity, plan: Plan) -> float:
    rows = zip(table.loss, plan.layers.values(), strict=True)
    return math.fsum(row[table.choices.index(scheme)] for row, scheme in rows)
