"""All choices that no other beats in both loss and use of one resource, by dynamic programming over units."""

import numpy as np

from mixbit.searches._problem import Floats, Groups, Integers


def pareto_choices(groups: Groups, usage: Floats) -> Integers:
    """[N, G] every choice that no other beats, by ascending use of the resource and so descending loss.

    Unit after unit, each choice on the front so far is joined with each of the unit's own, and of the joined ones those
    that another beats go: with a choice that was beaten, every continuation would be beaten too.

    Args:
        groups: Layers merged by their ties; its own usage and limits are not looked at.
        usage: [G, C] what each choice uses of the resource; of what is not offered, anything.
    """
    loss, used = np.zeros(1), np.zeros(1)
    stages: list[tuple[Integers, Integers, Integers, Integers]] = []
    for unit in groups.units:
        options = _options(groups, unit, usage)
        rows = np.arange(len(unit))
        option_loss = groups.loss[unit][rows, options].sum(axis=1)
        option_used = usage[unit][rows, options].sum(axis=1)
        joined_loss = (option_loss[:, None] + loss).ravel()
        joined_used = (option_used[:, None] + used).ravel()
        kept = _unbeaten(joined_loss, joined_used)
        stages.append((unit, options, kept // len(loss), kept % len(loss)))
        loss, used = joined_loss[kept], joined_used[kept]
    choices, at = np.zeros((len(loss), len(groups.loss)), dtype=np.int64), np.arange(len(loss))
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


def _options(groups: Groups, unit: Integers, usage: Floats) -> Integers:
    """[n, members] the choices of a unit's groups together that no other beats."""
    found = []
    for columns in groups.columns(unit):
        part = np.zeros((1, 0), dtype=np.int64)
        for member in range(len(unit)):
            offered = columns[groups.offered[unit[member], columns]]
            part = np.concatenate([np.repeat(part, len(offered), axis=0), np.tile(offered, len(part))[:, None]], axis=1)
            part = _best_of(groups, unit[: member + 1], usage, part)
        found.append(part)
    return _best_of(groups, unit, usage, np.concatenate(found))


def _best_of(groups: Groups, unit: Integers, usage: Floats, options: Integers) -> Integers:
    rows = np.arange(len(unit))
    return options[_unbeaten(groups.loss[unit][rows, options].sum(axis=1), usage[unit][rows, options].sum(axis=1))]
