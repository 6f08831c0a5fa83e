"""Mixtures of two plans that use just a share of a resource, for many tables at once: the linear relaxation."""

import numpy as np

from mixbit.core import FloatArray as Floats
from mixbit.searches._problem import TOLERANCE, Mask, Problem

#: Halvings of the range of prices, as many as a float64 tells apart.
HALVINGS = 100
#: The dearest price, in losses of everything over the smallest difference in use.
DEAREST = 1e3


def mixtures(problem: Problem, losses: Floats, usage: Floats, share: float) -> Floats:
    """[D, L, C] shares of every choice in the cheapest mixture of plans, by each of D tables.

    A mixture uses `share` of the way from the least to the greatest use of the resource, or less where more buys
    nothing. It is the linear relaxation of the integer program with the units' ties: at a price for the resource, every
    unit takes the class and the choices with the smallest loss plus price times use, and halving the range of prices
    finds the two plans on either side of the limit. (Everett 1963, "Generalized Lagrange Multiplier Method".)

    Args:
        problem: Which choices are offered, and which layers are tied.
        losses: [D, L, C], whatever where not offered.
        usage: [L, C] of the resource.
        share: From 0 to 1.
    """
    offered, count = problem.offered, len(losses)
    low, high = problem.smallest(usage), -problem.smallest(-usage)
    limit = (low + share * (high - low)) + TOLERANCE * abs(high)
    losses = np.where(offered, losses, 0.0)
    steps = np.diff(np.sort(np.where(offered, usage, np.nan), axis=1), axis=1)
    smallest = steps[steps > 0].min(initial=np.inf)
    spread = np.ptp(losses, axis=2).sum(axis=1)
    cheap, dear = np.zeros(count), DEAREST * np.where(spread > 0, spread, 1.0) / smallest
    first, second = _at_price(problem, losses, usage, cheap), _at_price(problem, 0 * losses, usage, dear)
    for _ in range(HALVINGS):
        middle = (cheap + dear) / 2
        plan = _at_price(problem, losses, usage, middle)
        within = _used(plan, usage) <= limit
        cheap, dear = np.where(within, cheap, middle), np.where(within, middle, dear)
        second, first = np.where(within[:, None, None], plan, second), np.where(within[:, None, None], first, plan)
    over, under = _used(first, usage), _used(second, usage)
    part = np.divide(limit - under, over - under, out=np.ones(count), where=over > limit)[:, None, None]
    return part * first + (1 - part) * second


def _used(plans: Floats, usage: Floats) -> Floats:
    return (plans * usage).sum(axis=(1, 2))


def _at_price(problem: Problem, losses: Floats, usage: Floats, prices: Floats) -> Floats:
    """[D, L, C] one in the choice of each layer with the smallest loss and price; of equal ones, in the first."""
    costs = np.where(problem.offered, losses + prices[:, None, None] * usage, np.inf)
    classes = [problem.classes == number for number in range(problem.classes.max() + 1)]
    by_class = np.stack([costs[:, :, columns].min(axis=2) for columns in classes], axis=2)
    order = np.argsort(problem.first, kind="stable")
    starts = np.flatnonzero(np.diff(problem.first[order], prepend=-1))
    best = np.add.reduceat(by_class[:, order], starts, axis=1).argmin(axis=2)
    of_layer = np.empty((len(costs), len(order)), dtype=np.int64)
    of_layer[:, order] = np.repeat(best, np.diff(np.append(starts, len(order))), axis=1)
    allowed: Mask = of_layer[:, :, None] == problem.classes
    choice = np.where(allowed, costs, np.inf).argmin(axis=2)
    return (choice[:, :, None] == np.arange(costs.shape[2])).astype(float)
