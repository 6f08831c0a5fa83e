"""The smallest loss under several limits and ties, by integer programming; the equations stand in `ilp.py`."""

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from mixbit.core import MixbitError
from mixbit.searches._problem import Floats, Groups, Integers, infeasible, taken

TIME_LIMIT_S = 60.0
#: Smaller shares of a choice are rounding; and the share of a bound by which the solver's own tolerances may err.
SHARE, MARGIN = 1e-6, 1e-4
#: Where the time is over, an answer proven to be within this share of the smallest cost is taken.
GAP = 1e-3
# HiGHS stops within 1e-6, absolute, of the best value and of every limit: negligible where both are this large.
COST_SIZE = 1e4
LIMIT_SIZE = 1e4
MAX_EXCLUDED = 100
OPTIMAL, OUT_OF_TIME, INFEASIBLE = 0, 1, 2  # scipy's status codes


@dataclass(frozen=True)
class Optimum:
    """The best choice.

    Attributes:
        choice: [G] the column that each group takes.
        gap: By what share of its cost, above that of every group's cheapest choice, a better one could at most be
            cheaper; 0 where it is proven to be the best.
    """

    choice: Integers
    gap: float


def optimum(groups: Groups) -> Optimum:
    """The choice of every group with the smallest summed loss within every limit.

    Choices that cannot be part of the best answer go first. The solver's precision is a share of the largest cost; so
    after each answer the choices that alone cost more than the whole answer go, and where that leaves much smaller
    costs, they are solved again, more precisely.

    Raises:
        InfeasibleBudget: if nothing keeps within the limits.
        MixbitError: if the solver stops without an answer.
    """
    floor = np.where(groups.offered, groups.usage, np.inf).min(axis=2, keepdims=True)
    usage = groups.usage - floor
    room = groups.limits + groups.slack / 2 - floor.sum(axis=(1, 2))
    allowed = groups.offered & np.all(usage <= room[:, None, None], axis=0)
    if not allowed.any(axis=1).all():
        raise infeasible(groups)
    usage *= np.divide(LIMIT_SIZE, room, out=np.zeros_like(room), where=room > 0)[:, None, None]
    cost = groups.loss - np.where(allowed, groups.loss, np.inf).min(axis=1, keepdims=True)
    allowed = _that_can_be_best(groups, cost, usage, allowed)
    best, best_cost = None, math.inf
    while True:
        largest = cost[allowed].max()
        found = _cheapest_exactly_within(groups, cost, usage, allowed)
        if found is None:
            break
        total = taken(cost, found.choice).sum()
        if total < best_cost:
            best, best_cost = found, total
        if not 0 < best_cost < 1e-3 * largest:
            break
        allowed &= cost <= best_cost
    if best is None:
        raise infeasible(groups)
    return best


def _that_can_be_best(groups: Groups, cost: Floats, usage: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The allowed choices but for those that are proven to be in no best answer.

    Every answer with a choice costs at least the optimum of the linear relaxation and the choice's reduced cost there;
    the best one costs no more than any answer within the limits, as rounding the relaxation mostly gives.
    """
    largest = cost[allowed].max()
    if not largest:
        return allowed
    result = _relaxation(groups, cost[allowed] / largest * COST_SIZE, usage[:, allowed], LIMIT_SIZE, allowed)
    if result.status != OPTIMAL:
        return allowed
    share = np.zeros(allowed.shape)
    share[allowed] = result.x
    rounded = np.where(share > SHARE, usage.max(axis=0, initial=0.0), np.inf).argmin(axis=1)
    if not groups.keeps(rounded) or _breaks_classes(groups, rounded):
        return allowed
    bound = taken(cost, rounded).sum() / largest * COST_SIZE
    kept = allowed.copy()
    kept[allowed] = result.fun + result.lower.marginals <= bound * (1 + MARGIN) + MARGIN
    return kept


def _breaks_classes(groups: Groups, choice: Integers) -> bool:
    return any(len(np.unique(groups.classes[choice[unit]])) > 1 for unit in groups.units if len(unit) > 1)


def _relaxation(groups: Groups, cost: Floats, usage: Floats, limits: Floats | float, allowed: NDArray[np.bool_]) -> Any:
    """The linear program in which a group may take shares of several choices; arguments by allowed choice."""
    same_class = _same_class(groups, allowed)
    with _c_output_discarded():
        return optimize.linprog(
            cost,
            A_ub=usage,
            b_ub=np.broadcast_to(limits, len(usage)),
            A_eq=sparse.vstack([_one_choice(allowed), same_class]),
            b_eq=np.concatenate([np.ones(len(allowed)), np.zeros(len(same_class.indptr) - 1)]),
            bounds=(0, 1),
        )


def shadow_prices(groups: Groups) -> Floats:
    """[R] by how much the smallest loss would fall for each unit by which a limit were looser.

    The dual values of the linear relaxation, in which a group may take shares of several choices: 0 for a limit that
    does not bind.
    """
    offered = groups.offered
    size = np.maximum(np.abs(groups.limits), np.abs(groups.usage).max(axis=(1, 2), initial=1e-300))
    largest = max(np.abs(groups.loss[offered]).max(), 1e-300)
    result = _relaxation(
        groups, groups.loss[offered] / largest, groups.usage[:, offered] / size[:, None], groups.limits / size, offered
    )
    if result.status != OPTIMAL:
        raise infeasible(groups)
    return np.maximum(-result.ineqlin.marginals * largest / size, 0.0)


def _cheapest_exactly_within(groups: Groups, cost: Floats, usage: Floats, allowed: NDArray[np.bool_]) -> Optimum | None:
    """The solver's best answer whose exact sums keep within the limits, or None where there is none."""
    excluded: list[Integers] = []
    while len(excluded) < MAX_EXCLUDED:
        found = _program(groups, cost, usage, allowed, excluded)
        if found is None or groups.keeps(found.choice):
            return found
        excluded.append(found.choice)  # over a limit by less than the solver's tolerance
    raise MixbitError(f"search: the solver's {MAX_EXCLUDED} best answers are over a limit by a hair; change the limit")


def _program(
    groups: Groups,
    cost: Floats,
    usage: Floats,
    allowed: NDArray[np.bool_],
    excluded: list[Integers],
) -> Optimum | None:
    """The optimum of one integer program over x[g, c] in {0, 1}, or None where it is infeasible."""
    group, choice = np.nonzero(allowed)
    rows = [
        optimize.LinearConstraint(_one_choice(allowed), 1, 1),
        optimize.LinearConstraint(usage[:, allowed], ub=LIMIT_SIZE),
        optimize.LinearConstraint(_same_class(groups, allowed), 0, 0),
        *(optimize.LinearConstraint(choice == found[group], ub=len(allowed) - 1) for found in excluded),
    ]
    largest = cost[allowed].max()
    with _c_output_discarded():
        result = optimize.milp(
            cost[allowed] / largest * COST_SIZE if largest else np.zeros(len(group)),
            integrality=np.ones(len(group)),
            bounds=optimize.Bounds(0, 1),
            constraints=rows,
            options={"mip_rel_gap": 0, "time_limit": TIME_LIMIT_S},
        )
    if result.status == INFEASIBLE:
        return None
    left = 0.0 if result.status == OPTIMAL else result.mip_gap
    if result.status not in (OPTIMAL, OUT_OF_TIME) or left is None or not left <= GAP:
        raise MixbitError(f"search: the solver stopped without a proven optimum: {result.message}")
    share = np.zeros(allowed.shape)
    share[allowed] = result.x
    return Optimum(share.argmax(axis=1), left)


def _one_choice(allowed: NDArray[np.bool_]) -> sparse.csr_array:
    """[G, variables] which variables, the allowed choices in order, are of each group."""
    group, _ = np.nonzero(allowed)
    return sparse.csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(len(allowed), len(group)))


def _same_class(groups: Groups, allowed: NDArray[np.bool_]) -> sparse.csr_array:
    """[rows, variables]: zero where every group takes a choice of the class that its unit's first group takes."""
    group, choice = np.nonzero(allowed)
    num_groups, num_classes = len(allowed), int(groups.classes.max()) + 1
    first = np.unique(groups.unit, return_index=True)[1][groups.unit]
    tied = np.flatnonzero(first != np.arange(num_groups))
    row = group * num_classes + groups.classes[choice]
    shape = (num_groups * num_classes, len(group))
    taken_class = sparse.csr_array((np.ones(len(group)), (row, np.arange(len(group)))), shape=shape)
    classes = np.arange(num_classes)
    return (
        taken_class[(tied[:, None] * num_classes + classes).ravel()]
        - taken_class[(first[tied][:, None] * num_classes + classes).ravel()]
    )


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
