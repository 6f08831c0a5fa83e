"""What each limit of a budget costs: its shadow price, and what a little more of it would buy."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mixbit.budget import Budget, Limit
from mixbit.plan import Plan, Price
from mixbit.scheme import Scheme
from mixbit.search._exact import optimum, shadow_prices
from mixbit.search._plans import problem_over
from mixbit.search._problem import Floats, Integers, Problem, taken
from mixbit.sensitivity import Sensitivity

#: By what share a limit is loosened to see what that buys.
MORE = 0.05


def priced(table: Sensitivity, budget: Budget, plan: Plan) -> Plan:
    """The plan with `prices`, and `optimality_gap` among its predictions.

    The gap is the share of the predicted loss by which another plan could at most be better, zero for the exact search.
    It is absolute, in units of the loss, where the loss is not positive.

    Args:
        table: What the plan was searched on.
        budget: What it was searched for.
        plan: From any search.

    Raises:
        InfeasibleBudget: nothing keeps within the budget.
    """
    limits = budget.over(table)
    problem = problem_over(table, limits)
    best = optimum(problem.groups)
    choice = np.array([table.choices.index(plan.layers[layer]) for layer in table.layers])
    loss, smallest = (float(taken(table.loss, one).sum()) for one in (choice, best.choice[problem.groups.group]))
    excess = loss - smallest
    gap = best.gap + max(excess / loss if loss > 0 else excess, 0.0)
    slopes = shadow_prices(problem.groups)
    found = {name: _price(table, problem, limits, name, choice, slopes) for name in budget.limits}
    return plan.model_copy(update={"prices": found, "predicted": plan.predicted | {"optimality_gap": gap}})


def _price(
    table: Sensitivity, problem: Problem, limits: Sequence[Limit], name: str, choice: Integers, slopes: Floats
) -> Price:
    """The price of the limits of one name: of a peak, all moments are loosened alike."""
    own = [index for index, limit in enumerate(limits) if limit.name == name]
    used = {index: float(taken(limits[index].usage, choice).sum()) for index in own}
    fullest = max(own, key=lambda index: used[index] + limits[index].offset)
    limit, bounds = limits[fullest], problem.limits.copy()
    bounds[own] += MORE * (abs(limit.bound) + limit.offset)
    more = dataclasses.replace(problem, limits=bounds)
    wider = optimum(more.groups).choice[more.groups.group]
    gains = taken(table.loss, choice) - taken(table.loss, wider)
    return Price(
        used=limit.named(used[fullest]),
        price=_per_unit(limit, float(slopes[own].sum())),
        looser=limit.named(float(bounds[fullest])),
        gain=max(float(gains.sum()), 0.0),
        widens={
            table.layers[row]: f"{table.choices[choice[row]]} to {table.choices[wider[row]]}"
            for row in np.argsort(-gains, kind="stable").tolist()
            if _wider(table, int(choice[row]), int(wider[row]))
        },
    )


def _per_unit(limit: Limit, slope: float) -> float:
    """A slope per unit of usage as one per unit of the name: for a ratio r = c / usage, per unit that r falls."""
    if limit.ratio_of is None:
        return slope
    return slope * limit.bound**2 / limit.ratio_of if limit.ratio_of else 0.0


def _wider(table: Sensitivity, before: int, after: int) -> bool:
    was, becomes = Scheme.parse(table.choices[before]), Scheme.parse(table.choices[after])
    return (becomes.weight_bits, becomes.input_bits) > (was.weight_bits, was.input_bits)
