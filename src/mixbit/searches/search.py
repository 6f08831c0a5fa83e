"""Search: from a table of sensitivities and a budget to a plan, and what a plan costs. Arrays only, never torch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mixbit.core import Budget, Methods, MixbitError, Plan, Price, Sensitivity, checked
from mixbit.searches._problem import Floats, Integers, Problem, Trials, optimum, shadow_prices, taken

#: From the arrays to the column [L] of each layer.
Method = Callable[[Problem], Integers]
SEARCHES: Methods[Method] = Methods("search", "mixbit.searches")
#: By what share a limit is loosened to see what that buys.
MORE = 0.05


@checked
def search(table: Sensitivity, budget: Budget, *, method: str | Method = "ilp", trials: Trials | None = None) -> Plan:
    """The plan with the smallest predicted loss that keeps within the budget and obeys the table's ties.

    Args:
        table: Predicted loss and usage of every choice of every layer.
        budget: Limits, all of which the plan keeps.
        method: A name in SEARCHES, with options as in `mixquant:multiplier=4`, or a function of a `Problem`.
        trials: The network, for methods that try plans on it.

    Raises:
        InvalidInput: for an unknown method or option, or a limit on something that the table does not hold.
        InfeasibleBudget: if no plan keeps within the budget; it says what is reachable and which layers bind.
        MixbitError: if the method returns something that is not a plan within the budget.
    """
    name, function = SEARCHES.find(method)
    problem = Problem.of(table, budget, trials)
    choice = np.asarray(function(problem))
    if fault := _fault(choice, table, problem):
        raise MixbitError(f"search {name}: returned a choice that {fault}; this is an error in the method")
    return table.plan(choice, f"{table.metric} + {name}", budget)


def _fault(choice: Integers, table: Sensitivity, problem: Problem) -> str | None:
    """What keeps a method's answer from being a plan within the budget, if anything."""
    num_layers, num_choices = table.loss.shape
    if choice.shape != (num_layers,) or not np.issubdtype(choice.dtype, np.integer):
        return f"has shape {choice.shape} and type {choice.dtype}, expected ({num_layers},) and integers"
    if choice.min() < 0 or choice.max() >= num_choices:
        return f"has columns from {choice.min()} to {choice.max()}, expected 0 to {num_choices - 1}"
    missing = np.flatnonzero(~np.isfinite(taken(table.loss, choice)))
    if missing.size:
        return f"gives {table.layers[missing[0]]} the scheme {table.choices[choice[missing[0]]]}, which is not offered"
    if (tied := problem.broken(choice)) is not None:
        return f"breaks the tie of {problem.names(tied)}"
    return None if problem.keeps(choice) else "is over the budget"


def uniform_plans(table: Sensitivity, budget: Budget) -> list[Plan]:
    """The plans of `Problem.uniform_choices` within the budget, in the table's order of choices.

    They are made by `uniform w8a8`, or `uniform w8a8d (w8 elsewhere)` where some layers take another choice.
    """
    plans = []
    for column, choice in Problem.of(table, budget).uniform_choices.items():
        others = [table.choices[other] for other in np.unique(choice) if other != column]
        elsewhere = f" ({' and '.join(others)} elsewhere)" if others else ""
        plans.append(table.plan(choice, f"uniform {table.choices[column]}{elsewhere}", budget))
    return plans


def priced(table: Sensitivity, budget: Budget, plan: Plan) -> Plan:
    """The plan with `prices`, and `optimality_gap` among its predictions.

    The gap is the share of the predicted loss by which another plan could at most be better: zero for the exact search,
    absolute where the loss is not positive. Raises InfeasibleBudget where nothing keeps within the budget.
    """
    problem = Problem.of(table, budget)
    best = optimum(problem)
    choice = table.columns(plan.layers)
    loss, smallest = (float(taken(table.loss, columns).sum()) for columns in (choice, best.choice))
    excess = loss - smallest
    gap = best.gap + max(excess / loss if loss > 0 else excess, 0.0)
    slopes = shadow_prices(problem)
    prices = {name: _price(table, problem, name, choice, slopes) for name in budget.limits}
    return plan.model_copy(update={"prices": prices, "predicted": plan.predicted | {"optimality_gap": gap}})


def _price(table: Sensitivity, problem: Problem, name: str, choice: Integers, slopes: Floats) -> Price:
    """The price of the limits of one name: of a peak, all moments are loosened alike."""
    limits = problem.budget
    used = {row: float(use) for row, use in enumerate(problem.used(choice)) if limits[row].name == name}
    fullest = max(used, key=lambda row: used[row] + limits[row].offset)
    limit = limits[fullest]
    more = MORE * (abs(limit.bound) + limit.offset)
    looser = [replace(other, bound=other.bound + more) if row in used else other for row, other in enumerate(limits)]
    wider = optimum(replace(problem, budget=looser)).choice
    gains = taken(table.loss, choice) - taken(table.loss, wider)
    bits = list(zip(problem.weight_bits, problem.input_bits, strict=True))
    price = float(slopes[list(used)].sum())
    if limit.ratio_of is not None:  # for a ratio r = c / usage, per unit that r falls
        price = price * limit.bound**2 / limit.ratio_of if limit.ratio_of else 0.0
    return Price(
        used=limit.named(used[fullest]),
        price=price,
        looser=limit.named(looser[fullest].bound),
        gain=max(float(gains.sum()), 0.0),
        widens={
            table.layers[row]: f"{table.choices[choice[row]]} to {table.choices[wider[row]]}"
            for row in np.argsort(-gains, kind="stable").tolist()
            if bits[wider[row]] > bits[choice[row]]
        },
    )
