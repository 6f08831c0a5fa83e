"""Greedy search: from the smallest loss downwards, always the step that costs least for what it saves.

Steps are one layer to a choice of the same input format, or all layers that read one tensor to another input format.
What a step saves is the sum, over the limits that are still exceeded, of its saving as a share of the limit. Once
within the limits, what room is left is spent on steps back, the largest gain first.

Source: the marginal analysis of B. Fox, "Discrete Optimization Via Marginal Analysis", Management Science 1966.
"""

import numpy as np

from mixbit.core import method
from mixbit.searches._problem import Floats, Integers, Problem, taken


@method(rank=2)
def greedy(problem: Problem) -> Integers:
    """Greedy: from the smallest loss downwards, always the step that costs least for what it saves.

    Raises:
        InfeasibleBudget: if no step leads to within the limits.
    """
    usage = np.where(problem.offered, problem.usage, 0.0)
    scale = np.maximum(np.abs(problem.limits), 1e-9 * usage.max(axis=(1, 2)))
    weight = 1 / np.maximum(scale, np.finfo(float).tiny)
    choice, passed = _cheapest(problem), set[bytes]()
    while not problem.keeps(choice):
        passed.add(choice.tobytes())
        exceeded = np.where(problem.used(choice) > problem.limits, weight, 0.0)
        if not exceeded.any():
            exceeded = weight  # over by rounding alone
        step = _best_step(problem, choice, np.tensordot(exceeded, usage, 1))
        if step is None:
            raise problem.none_found("no step saves any more, and the choice is over a limit")
        if step.tobytes() in passed:  # what saves of one limit adds to another
            raise problem.none_found("the steps go round in circles between the limits")
        choice = step
    return _spend(problem, choice)


def _cheapest(problem: Problem) -> Integers:
    """[L] the smallest loss without limits."""
    choice = np.zeros(len(problem.loss), dtype=np.int64)
    for unit in problem.units:
        options = [_columns(problem.loss[unit], columns) for columns in problem.columns(unit)]
        choice[unit] = min(options, key=lambda option: problem.loss[unit, option].sum())
    return choice


def _columns(values: Floats, columns: Integers) -> Integers:
    """For each row, that of the columns with the smallest value."""
    return columns[values[:, columns].argmin(axis=1)]


def _best_step(problem: Problem, choice: Integers, use: Floats) -> Integers | None:
    """The choice after the step with the least loss for each unit saved of `use` [L, C]; None where none saves."""
    best, least = None, np.inf
    for unit in problem.units:
        for option in _options(problem, unit, choice, use):
            saved = use[unit, choice[unit]].sum() - use[unit, option].sum()
            if saved <= 0:
                continue
            cost = problem.loss[unit, option].sum() - problem.loss[unit, choice[unit]].sum()
            if cost / saved < least:
                best, least = choice.copy(), cost / saved
                best[unit] = option
    return best


def _options(problem: Problem, unit: Integers, choice: Integers, use: Floats) -> list[Integers]:
    """Where the layers of a unit can go in one step."""
    now, options = choice[unit], []
    for columns in problem.columns(unit):
        if problem.classes[columns[0]] == problem.classes[now[0]]:
            for index, column in np.ndindex(len(unit), len(columns)):
                option = now.copy()
                option[index] = columns[column]
                options.append(option)
        else:
            saving = use[unit] <= use[unit, now][:, None]
            options.append(_columns(np.where(saving, problem.loss[unit], np.inf), columns))
            options.append(_columns(np.where(problem.offered[unit], use[unit], np.inf), columns))
    return [option for option in options if problem.offered[unit, option].all()]


def _spend(problem: Problem, choice: Integers) -> Integers:
    """The choice after single layers went to a better choice of the same input format while the limits allow it."""
    while True:
        same = problem.classes == problem.classes[choice][:, None]
        gain = np.where(problem.offered & same, taken(problem.loss, choice)[:, None] - problem.loss, 0.0)
        for index in np.argsort(-gain, axis=None, kind="stable"):
            layer, column = np.unravel_index(index, gain.shape)
            if gain[layer, column] <= 0:
                return choice
            option = choice.copy()
            option[layer] = column
            if problem.keeps(option):
                choice = option
                break
        else:
            return choice
