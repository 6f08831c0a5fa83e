"""Choices as plans: what they are predicted to cost, and the uniform ones, which every other must beat."""

import math

import numpy as np

from mixbit.budget import Budget
from mixbit.plan import Plan
from mixbit.search._problem import Integers, keeps, taken
from mixbit.sensitivity import Sensitivity


def predicted_plan(table: Sensitivity, choice: Integers, budget: Budget, made_by: str) -> Plan:
    """The plan of a choice [L], with its predicted loss, standard error (where it is known) and usage.

    Entries of different layers count as independent: the standard error is the root of the summed squares.
    """
    used = {name: math.fsum(taken(values, choice)) for name, values in table.usage.items()}
    weights = float(table.numel.sum())
    predicted = {
        "loss": math.fsum(taken(table.loss, choice)),
        "standard_error": math.hypot(*taken(table.standard_error, choice)),
        "weight_bytes": used["weight_bytes"],
        "weight_ratio": used["weight_bytes"] / (4 * weights),
        "mean_bits": used["weight_bits"] / weights,
        "bit_ops": used["bit_ops"],
    }
    if math.isinf(predicted["standard_error"]):  # a single sample does not tell
        del predicted["standard_error"]
    return Plan(
        target=table.target,
        fingerprint=table.fingerprint,
        layers={layer: table.choices[column] for layer, column in zip(table.layers, choice, strict=True)},
        budget=dict(budget.limits),
        predicted=predicted,
        made_by=made_by,
    )


def uniform_plans(table: Sensitivity, budget: Budget) -> list[Plan]:
    """All plans with the same choice for every layer that keep within the budget, in the table's order of choices.

    A choice that some layer is not offered makes no uniform plan.

    Args:
        table: Layers and choices, with their usage.
        budget: Limits that each plan keeps.

    Returns:
        The plans, made by `uniform w8a8` and so on; empty where none fits.
    """
    limits = budget.over(table)
    usage, bounds = [limit.usage for limit in limits], [limit.bound for limit in limits]
    plans = []
    for column, name in enumerate(table.choices):
        choice = np.full(len(table.layers), column)
        if np.isfinite(table.loss[:, column]).all() and keeps(usage, bounds, choice):
            plans.append(predicted_plan(table, choice, budget, f"uniform {name}"))
    return plans
