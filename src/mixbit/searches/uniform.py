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
    choices = problem.uniform_choices.values()
    if not choices:
        raise problem.none_found("no choice, the same for every layer, keeps within every limit")
    return min(choices, key=lambda choice: np.sum(taken(problem.loss, choice)))
