"""Greedy search: from the smallest loss downwards, always the step that costs least for what it saves.

Steps are one group of tied layers to a choice of the same input format, or all groups that share an input to another
input format. What a step saves is the sum, over the limits that are still exceeded, of its saving as a share of the
limit. Once within the limits, what room is left is spent on steps back, the largest gain first.

Source: the marginal analysis of B. Fox, "Discrete Optimization Via Marginal Analysis", Management Science 1966.
"""

import numpy as np

from mixbit.core import method
from mixbit.searches._problem import Floats, Groups, Integers, Problem, none_found, taken


@method(rank=2)
def greedy(problem: Problem) -> Integers:
    """Greedy: from the smallest loss downwards, always the step that costs least for what it saves.

    Raises:
        InfeasibleBudget: if no step leads to within the limits.
    """
    groups = problem.groups
    choice = _cheapest(groups)
    while not groups.keeps(choice):
        used = np.array([taken(table, choice).sum() for table in groups.usage])
        largest = groups.usage.max(axis=(1, 2))
        scale = np.maximum(np.maximum(np.abs(groups.limits), 1e-9 * largest), np.finfo(float).tiny)
        exceeded = np.where(used > groups.limits, 1 / scale, 0.0)
        if not exceeded.any():
            exceeded = 1 / scale  # over by rounding alone
        step = _best_step(groups, choice, np.tensordot(exceeded, groups.usage, 1))
        if step is None:
            raise none_found(problem, "no step saves any more, and the choice is over a limit")
        choice = step
    return _spend(groups, choice)[groups.group]


def _cheapest(groups: Groups) -> Integers:
    """[G] the smallest loss without limits."""
    choice = np.zeros(len(groups.loss), dtype=np.int64)
    for unit in groups.units:
        options = [_columns(groups.loss[unit], columns) for columns in groups.columns(unit)]
        choice[unit] = min(options, key=lambda option: taken(groups.loss[unit], option).sum())
    return choice


def _columns(values: Floats, columns: Integers) -> Integers:
    """For each row, that of the columns with the smallest value."""
    return columns[values[:, columns].argmin(axis=1)]


def _best_step(groups: Groups, choice: Integers, weight: Floats) -> Integers | None:
    """The choice after the step with the least loss for each unit saved of `weight` [G, C]; None where none saves."""
    best, least = None, np.inf
    for unit in groups.units:
        for option in _options(groups, unit, choice, weight):
            saved = taken(weight[unit], choice[unit]).sum() - taken(weight[unit], option).sum()
            if saved <= 0:
                continue
            cost = taken(groups.loss[unit], option).sum() - taken(groups.loss[unit], choice[unit]).sum()
            if cost / saved < least:
                best, least = choice.copy(), cost / saved
                best[unit] = option
    return best


def _options(groups: Groups, unit: Integers, choice: Integers, weight: Floats) -> list[Integers]:
    """Where the groups of a unit can go in one step."""
    now, found = choice[unit], []
    for columns in groups.columns(unit):
        if groups.classes[columns[0]] == groups.classes[now[0]]:
            for index, column in np.ndindex(len(unit), len(columns)):
                if groups.offered[unit[index], columns[column]]:
                    option = now.copy()
                    option[index] = columns[column]
                    found.append(option)
        else:
            saving = weight[unit] <= taken(weight[unit], now)[:, None]
            found.append(_columns(np.where(saving, groups.loss[unit], np.inf), columns))
            found.append(_columns(np.where(groups.offered[unit], weight[unit], np.inf), columns))
    return [option for option in found if np.isfinite(taken(groups.loss[unit], option)).all()]


def _spend(groups: Groups, choice: Integers) -> Integers:
    """The choice after single layers went to a better choice of the same input format while the limits allow it."""
    while True:
        same = groups.classes == groups.classes[choice][:, None]
        gain = np.where(groups.offered & same, taken(groups.loss, choice)[:, None] - groups.loss, 0.0)
        for index in np.argsort(-gain, axis=None, kind="stable"):
            group, column = np.unravel_index(index, gain.shape)
            if gain[group, column] <= 0:
                return choice
            option = choice.copy()
            option[group] = column
            if groups.keeps(option):
                choice = option
                break
        else:
            return choice
