"""Exact search: a multiple-choice knapsack with several limits and ties, by integer programming.

    minimise    sum_l loss[l, c_l]
    subject to  sum_l usage[r, l, c_l] <= limits[r]      for every limit r
                c_l = c_m                                for l, m in one tie
                class(c_l) = class(c_m)                  for l, m in one input tie

L layers, C choices, R limits, G groups of tied layers (each takes one choice), U units of groups that share an input.

Source: the integer linear program of HAWQ-V3 (Yao et al., ICML 2021), here with any number of choices and limits.
"""

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse

from mixbit.errors import MixbitError
from mixbit.search._problem import Floats, Integers, Problem, Ties, infeasible, read_problem, taken

TIME_LIMIT_S = 60.0
# HiGHS stops within 1e-6, absolute, of the best value and of every limit: negligible where both are this large.
COST_SIZE = 1e4
LIMIT_SIZE = 1e4
MAX_EXCLUDED = 100
OPTIMAL, INFEASIBLE = 0, 2  # scipy's status codes


def solve(
    loss: ArrayLike,
    usage: ArrayLike,
    limits: ArrayLike,
    ties: Ties = (),
    *,
    input_ties: Ties = (),
    input_classes: Sequence[int] | None = None,
) -> Integers:
    """The choice of every layer with the smallest summed loss within every limit: the proven optimum.

    Args:
        loss: [L, C] loss increase of each choice, of either sign; +inf where it is not offered.
        usage: [R, L, C] what each choice uses of each limited resource.
        limits: [R] the largest sum of each resource, in its own unit.
        ties: Groups of layers that take the same choice; groups that share a layer become one.
        input_ties: Groups of layers that take choices of the same input class.
        input_classes: [C] which choices have the same input format; needed with `input_ties`.

    Returns:
        [L] the column that each layer takes.

    Raises:
        InvalidInput: for NaN, shapes that disagree, an empty tie, or an index out of range.
        InfeasibleBudget: if no choice keeps within the limits, or layers that are tied have no choice in common.
        MixbitError: if the solver stops without an answer.

    Example:
        >>> solve([[0.1, 0.9], [0.2, 0.3]], [[[8, 4], [8, 4]]], [12]).tolist()
        [0, 1]
    """
    loss, usage, limits = np.asarray(loss, float), np.asarray(usage, float), np.asarray(limits, float)
    problem = read_problem(loss, usage, limits, ties, input_ties, input_classes)
    choice = _cheapest(problem)
    if choice is None:
        raise infeasible(problem)
    return choice[problem.group]


def _cheapest(problem: Problem) -> Integers | None:
    """[G] the optimum, or None where nothing keeps within the limits.

    The solver's precision is a share of the largest cost. So after each answer the choices that alone cost more than
    the whole answer go, and where that leaves much smaller costs, they are solved again, more precisely.
    """
    floor = np.where(problem.offered, problem.usage, np.inf).min(axis=2, keepdims=True)
    usage = problem.usage - floor
    room = problem.limits + problem.slack / 2 - floor.sum(axis=(1, 2))
    allowed = problem.offered & np.all(usage <= room[:, None, None], axis=0)
    if not allowed.any(axis=1).all():
        return None
    usage *= np.divide(LIMIT_SIZE, room, out=np.zeros_like(room), where=room > 0)[:, None, None]
    cost = problem.loss - np.where(allowed, problem.loss, np.inf).min(axis=1, keepdims=True)
    best, best_cost = None, math.inf
    while True:
        largest = cost[allowed].max()
        found = _cheapest_exactly_within(problem, cost, usage, allowed)
        if found is None:
            return best
        total = taken(cost, found).sum()
        if total < best_cost:
            best, best_cost = found, total
        if not 0 < best_cost < 1e-3 * largest:
            return best
        allowed &= cost <= best_cost


def _cheapest_exactly_within(
    problem: Problem, cost: Floats, usage: Floats, allowed: NDArray[np.bool_]
) -> Integers | None:
    """[G] the solver's best answer whose exact sums keep within the limits, or None where there is none."""
    excluded: list[Integers] = []
    while len(excluded) < MAX_EXCLUDED:
        found = _program(cost, usage, allowed, problem, excluded)
        if found is None or problem.keeps(found):
            return found
        excluded.append(found)  # over a limit by less than the solver's tolerance
    raise MixbitError(f"search: the solver's {MAX_EXCLUDED} best answers are over a limit by a hair; change the limit")


def _program(
    cost: Floats, usage: Floats, allowed: NDArray[np.bool_], problem: Problem, excluded: list[Integers]
) -> Integers | None:
    """[G] the optimum of one integer program over x[g, c] in {0, 1}, or None where it is infeasible."""
    group, choice = np.nonzero(allowed)
    num_groups, num_classes = len(allowed), problem.classes.max() + 1
    ones, column = np.ones(len(group)), np.arange(len(group))
    one_choice = sparse.csr_array((ones, (group, column)), shape=(num_groups, len(group)))
    class_row = group * num_classes + problem.classes[choice]
    class_taken = sparse.csr_array((ones, (class_row, column)), shape=(num_groups * num_classes, len(group)))
    first_of_unit = np.unique(problem.unit, return_index=True)[1][problem.unit]
    minus_first = sparse.csr_array(np.eye(num_groups) - np.eye(num_groups)[first_of_unit])
    rows = [
        optimize.LinearConstraint(one_choice, 1, 1),
        optimize.LinearConstraint(usage[:, allowed], ub=LIMIT_SIZE),
        optimize.LinearConstraint(sparse.kron(minus_first, np.eye(num_classes)) @ class_taken, 0, 0),
        *(optimize.LinearConstraint(choice == found[group], ub=num_groups - 1) for found in excluded),
    ]
    largest = cost[allowed].max()
    with _c_output_discarded():
        result = optimize.milp(
            cost[allowed] / largest * COST_SIZE if largest else np.zeros(len(group)),
            integrality=ones,
            bounds=optimize.Bounds(0, 1),
            constraints=rows,
            options={"mip_rel_gap": 0, "time_limit": TIME_LIMIT_S},
        )
    if result.status == INFEASIBLE:
        return None
    if result.status != OPTIMAL:
        raise MixbitError(f"search: the solver stopped without a proven optimum: {result.message}")
    share = np.zeros(allowed.shape)
    share[allowed] = result.x
    return share.argmax(axis=1)


@contextmanager
def _c_output_discarded() -> Iterator[None]:
    """Discard what C code writes to standard output within the block, which belongs to the results.

    HiGHS 1.12, the one inside scipy 1.17, prints a debug line whatever its options say, which would spoil `--json`.
    Does nothing where the platform has no C library to flush, or standard output is closed.
    """
    try:
        flush, kept = ctypes.CDLL(None).fflush, os.dup(1)
    except (OSError, TypeError):
        yield
        return
    flush(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
