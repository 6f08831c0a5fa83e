"""Which plan a budget leads to, where plans are tried on the network: by a search, or up to a largest drop."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mixbit.budget import Budget, MaxDrop
from mixbit.errors import InvalidInput
from mixbit.features import layer_features
from mixbit.layers import find_layers
from mixbit.plan import Plan
from mixbit.scoring import Scoring
from mixbit.search import Method, Trials, front, plan_of, priced, search, uniform_plans
from mixbit.sensitivity import FloatArray, Sensitivity


def searched(table: Sensitivity, new_scoring: Callable[[], Scoring], budget: Budget, method: str | Method) -> Plan:
    """The plan of a search, with its prices; the scoring is made where the search tries plans."""
    scoring = cache(new_scoring)

    def evaluate(choice: NDArray[np.int64]) -> float:
        return scoring().simulated(plan_of(table, choice, budget, "a plan"))

    def features() -> FloatArray:
        return layer_features(scoring().graph, find_layers(scoring().graph))

    trials = Trials(evaluate, lambda: scoring().float_score, features, table.seed)
    return priced(table, budget, search(table, budget, method=method, trials=trials))


def cheapest_enough(table: Sensitivity, scoring: Scoring, drop: MaxDrop) -> tuple[Plan, str]:
    """The plan with the fewest bytes whose artefact drops no more, and the grounds for it in a sentence.

    It is on the front of bytes, or uniform where that is cheaper still.

    Raises:
        InvalidInput: a drop in percent, and scores that are no shares of right answers.
        InfeasibleBudget: the dearest plan drops more.
    """
    if drop.percent and not scoring.in_accuracy:
        unit = "units of your function" if scoring.score else "nats, since the data has no labels"
        raise InvalidInput(f"max drop {drop}: a percentage is of right answers; give a number, in {unit}")
    if drop.value >= 1 and scoring.in_accuracy:
        raise InvalidInput(f"max drop {drop}: of right answers, give less than 1; five points are 5% or 0.05")
    points, least = front(table, "weight_bytes"), scoring.float_score - drop.value
    index = points.cheapest_enough(scoring.deployed, least)
    found = points.plan(index)
    limits = Budget(weight_bytes=found.predicted["weight_bytes"])
    uniform = [plan for plan in uniform_plans(table, limits) if scoring.deployed(plan) >= least]
    best = min([found, *uniform], key=lambda plan: plan.predicted["weight_bytes"])
    what = "whose artefact gives" if scoring.in_accuracy else "whose simulation scores" if scoring.score else "at"
    unit = " of right answers" if scoring.in_accuracy else "" if scoring.score else " nats, negative,"
    grounds = (
        f"the cheapest plan {what} {least:.6g}{unit} or more (float {scoring.float_score:.6g}, allowed drop {drop}): "
        f"{best.made_by}, {scoring.deployed(best):.6g}, after {len(scoring.journal.scores)} plans"
    )
    if best is found and index:
        cheaper = points.plan(index - 1)
        size, score = cheaper.predicted["weight_bytes"], scoring.deployed(cheaper)
        grounds += f"; the one a step cheaper, {size:.0f} bytes, has {score:.6g}"
    return best.model_copy(update={"budget": {"max_drop": drop.value}}), grounds
