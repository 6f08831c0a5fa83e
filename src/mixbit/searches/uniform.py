"""The baseline: one scheme for every layer."""

import numpy as np

from mixbit.core import method
from mixbit.searches._problem import Integers, Problem, none_found, taken, uniform_choices


@method(rank=5)
def uniform(problem: Problem) -> Integers:
    """The same choice for every layer: of those within the limits, the one with the smallest loss.

    A layer that is offered one choice only, as one that is pinned, takes that.

    Raises:
        InfeasibleBudget: if no such choice keeps within the limits.
    """
    found = uniform_choices(problem)
    if not found:
        raise none_found(problem, "no choice, the same for every layer, keeps within every limit")
    return min(found.values(), key=lambda choice: np.sum(taken(problem.loss, choice)))
