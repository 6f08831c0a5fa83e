"""The baseline: one scheme for every layer."""

import numpy as np

from mixbit.core import method
from mixbit.searches._problem import Integers, Problem, taken


@method(rank=5)
def uniform(problem: Problem) -> Integers:
    """The same choice for every layer: of those within the limits, the one with the smallest loss.

    A layer that is offered one choice only, as one that is pinned, takes that.

    Raises:
        InfeasibleBudget: if no such choice keeps within the limits.
    """
    choices = uniform_choices(problem).values()
    if not choices:
        raise problem.none_found("no choice, the same for every layer, keeps within every limit")
    return min(choices, key=lambda choice: np.sum(taken(problem.loss, choice)))


def uniform_choices(problem: Problem) -> dict[int, Integers]:
    """Column -> the choice [L] that takes it in every layer, or the first of its fallbacks that the layer is offered.

    A layer that is offered one choice only takes that. Those within the limits; a column with neither itself nor a
    fallback for some layer makes no uniform choice.
    """
    offered = problem.offered
    only = np.where(offered.sum(axis=1) == 1, offered.argmax(axis=1), -1)
    choices: dict[int, Integers] = {}
    for column in range(offered.shape[1]):
        places = [column, *(problem.fallbacks[column] if problem.fallbacks else ())]
        first = np.array(places)[offered[:, places].argmax(axis=1)]
        choice = np.where(only >= 0, only, first)
        if taken(offered, choice).all() and problem.keeps(choice) and problem.broken(choice) is None:
            choices[column] = choice
    return choices
