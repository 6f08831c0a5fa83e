"""Choices as plans: what they are predicted to cost, and the uniform ones, which every other must beat."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mixbit.core import Budget, Limit, Plan, Price, Scheme, Sensitivity, activation_bytes
from mixbit.searches._exact import optimum, shadow_prices
from mixbit.searches._problem import Floats, Integers, Problem, Trials, taken, uniform_choices


def problem_over(table: Sensitivity, limits: Sequence[Limit], trials: Trials | None = None) -> Problem:
    """The arrays of a table under some limits."""
    schemes = [Scheme.parse(choice) for choice in table.choices]
    loss, usage = table.loss.copy(), np.array([limit.usage for limit in limits]).reshape(-1, *table.loss.shape)
    for array in (loss, usage):
        array.setflags(write=False)  # a function of the user's own cannot change the table
    return Problem(
        loss=loss,
        usage=usage,
        limits=np.array([limit.bound for limit in limits], dtype=float),
        ties=table.ties,
        input_ties=table.input_ties,
        weight_bits=[scheme.weight_bits for scheme in schemes],
        input_bits=[scheme.input_bits for scheme in schemes],
        numel=table.numel,
        trace=table.trace,
        trials=trials,
        fallbacks=[[schemes.index(one) for one in scheme.fallbacks if one in schemes] for scheme in schemes],
    )


def predicted_figures(table: Sensitivity, choices: Integers) -> dict[str, Floats]:
    """Figure -> [N] for N choices [N, L]: predicted loss, its standard error, and usage.

    Entries of different layers count as independent: the standard error is the root of the summed squares; it is inf
    where a single sample does not tell.
    """
    rows = np.arange(len(table.layers))
    used = {name: values[rows, choices].sum(axis=1) for name, values in table.usage.items()}
    weights = float(table.numel.sum())
    figures = {
        "loss": table.loss[rows, choices].sum(axis=1),
        "standard_error": np.sqrt(np.square(table.standard_error[rows, choices]).sum(axis=1)),
        "weight_bytes": used["weight_bytes"],
        "weight_ratio": used["weight_bytes"] / (4 * weights),
        "mean_bits": used["weight_bits"] / weights,
        "bit_ops": used["bit_ops"],
    }
    if table.live is not None:
        figures["activation_bytes"] = activation_bytes(table, choices)
    if "latency_ms" in used:
        figures["latency_ms"] = used["latency_ms"]
    return figures


def plan_of(table: Sensitivity, choice: Sequence[int] | Integers, budget: Budget, made_by: str) -> Plan:
    """The plan of a choice [L], with its predicted figures, but for those that are not known."""
    figures = {name: float(values[0]) for name, values in predicted_figures(table, np.asarray(choice)[None]).items()}
    return Plan(
        target=table.target,
        fingerprint=table.fingerprint,
        layers={layer: table.choices[column] for layer, column in zip(table.layers, choice, strict=True)},
        budget=dict(budget.limits),
        predicted={name: value for name, value in figures.items() if math.isfinite(value)},
        made_by=made_by,
    )


def uniform_plans(table: Sensitivity, budget: Budget) -> list[Plan]:
    """All plans with the same choice for every layer that keep within the budget, in the table's order of choices.

    A layer that is not offered a choice whose input is ranged at run time takes what takes its place, see
    `Scheme.fallbacks`; a layer that is offered one choice only takes that. Any other choice that some layer is not
    offered makes no uniform plan.

    Args:
        table: Layers and choices, with their usage.
        budget: Limits that each plan keeps.

    Returns:
        The plans, made by `uniform w8a8`, or `uniform w8a8d (w8 elsewhere)` where some layers take another choice;
        empty where none fits.
    """
    found = uniform_choices(problem_over(table, budget.over(table)))
    return [
        plan_of(table, choice, budget, f"uniform {_named(table, column, choice)}") for column, choice in found.items()
    ]


def _named(table: Sensitivity, column: int, choice: Integers) -> str:
    others = [table.choices[other] for other in np.unique(choice) if other != column]
    return f"{table.choices[column]} ({' and '.join(others)} elsewhere)" if others else table.choices[column]


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
