"""All choices that no other beats in both loss and use of one resource, by dynamic programming over units."""

import numpy as np

from mixbit.searches._problem import Floats, Integers, Problem


def pareto_choices(problem: Problem, usage: Floats) -> Integers:
    """[N, L] every choice that no other beats, by ascending use of the resource and so descending loss.

    Unit after unit, each choice on the front so far is joined with each of the unit's own, and of the joined ones those
    that another beats go: with a choice that was beaten, every continuation would be beaten too.

    Args:
        problem: Losses and input ties; its own limits do not count.
        usage: [L, C] what each choice uses of the resource; of what is not offered, anything.
    """
    loss, used = np.zeros(1), np.zeros(1)
    stages: list[tuple[Integers, Integers, Integers, Integers]] = []
    for unit in problem.units:
        options = _options(problem, unit, usage)
        rows = np.arange(len(unit))
        joined_loss = (problem.loss[unit][rows, options].sum(axis=1)[:, None] + loss).ravel()
        joined_used = (usage[unit][rows, options].sum(axis=1)[:, None] + used).ravel()
        unbeaten = _unbeaten(joined_loss, joined_used)
        stages.append((unit, options, unbeaten // len(loss), unbeaten % len(loss)))
        loss, used = joined_loss[unbeaten], joined_used[unbeaten]
    # written, and later added up, layer by layer: so the columns are contiguous
    choices, at = np.zeros((len(problem.loss), len(loss)), dtype=np.int64).T, np.arange(len(loss))
    for unit, options, option, parent in reversed(stages):
        choices[:, unit] = options[option[at]]
        at = parent[at]
    return choices


def _unbeaten(loss: Floats, used: Floats) -> Integers:
    """Indices of those that no other beats, by ascending use; of equal ones the first."""
    order = np.argsort(used, kind="stable")
    # among equal uses the smallest loss first: a second sort, where there are any
    ascending, losses = used[order], loss[order]
    if (ascending[1:] == ascending[:-1]).any():
        order = order[np.lexsort((losses, ascending))]
        losses = loss[order]
    best = np.minimum.accumulate(losses)
    return order[np.concatenate([[True], losses[1:] < best[:-1]])]


def _options(problem: Problem, unit: Integers, usage: Floats) -> Integers:
    """[n, members] the choices of a unit's layers together that no other beats."""
    by_class = []
    for columns in problem.columns(unit):
        options = np.zeros((1, 0), dtype=np.int64)
        for member, layer in enumerate(unit):
            offered = columns[problem.offered[layer, columns]]
            joined = np.repeat(options, len(offered), axis=0), np.tile(offered, len(options))[:, None]
            options = _best_of(problem, unit[: member + 1], usage, np.concatenate(joined, axis=1))
        by_class.append(options)
    return _best_of(problem, unit, usage, np.concatenate(by_class))


def _best_of(problem: Problem, unit: Integers, usage: Floats, options: Integers) -> Integers:
    rows = np.arange(len(unit))
    return options[_unbeaten(problem.loss[unit][rows, options].sum(axis=1), usage[unit][rows, options].sum(axis=1))]
