"""The solver behind exact searches: integer programming by HiGHS, its proof, and shadow prices."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from mixbit.core import MixbitError
from mixbit.searches._problem import Floats, Integers, Problem, taken

Mask = NDArray[np.bool_]

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


class Optimum(NamedTuple):
    """The best choice [L], and by which share of its cost above every layer's cheapest choice another could be cheaper.

    The share is 0 where the choice is proven to be the best.
    """

    choice: Integers
    gap: float


def optimum(problem: Problem) -> Optimum:
    """The choice of every layer with the smallest summed loss within every limit.

    The solver's precision is a share of the largest cost. So choices that alone cost more than an answer are left out,
    and where that leaves much smaller costs, it solves again. Raises InfeasibleBudget where nothing keeps within the
    limits, and MixbitError where the solver stops without an answer.
    """
    floor = np.where(problem.offered, problem.usage, np.inf).min(axis=2, keepdims=True)
    usage = np.where(problem.offered, problem.usage - floor, 0.0)
    room = problem.limits + problem.slack / 2 - floor.sum(axis=(1, 2))
    allowed = problem.offered & np.all(usage <= room[:, None, None], axis=0)
    if not allowed.any(axis=1).all():
        raise problem.infeasible()
    usage *= np.divide(LIMIT_SIZE, room, out=np.zeros_like(room), where=room > 0)[:, None, None]
    cost = problem.loss - np.where(allowed, problem.loss, np.inf).min(axis=1, keepdims=True)
    allowed = _without_proven_losers(problem, cost, usage, allowed)
    best, best_cost = None, math.inf
    while True:
        largest = cost[allowed].max()
        answer = _cheapest_exactly_within(problem, cost, usage, allowed)
        if answer is None:
            break
        total = taken(cost, answer.choice).sum()
        if total < best_cost:
            best, best_cost = answer, total
        if not 0 < best_cost < 1e-3 * largest:
            break
        allowed &= cost <= best_cost
    if best is None:
        raise problem.infeasible()
    return best


def shadow_prices(problem: Problem) -> Floats:
    """[R] by how much the smallest loss would fall for each unit by which a limit were looser.

    The dual values of the linear relaxation, in which a layer may take shares of several choices: 0 for a limit that
    does not bind. Raises InfeasibleBudget where nothing keeps within the limits.
    """
    offered = problem.offered
    losses, usage = problem.loss[offered], problem.usage[:, offered]
    size = np.maximum(np.abs(problem.limits), np.abs(usage).max(axis=1, initial=1e-300))
    largest = max(np.abs(losses).max(), 1e-300)
    result = _relaxation(problem, losses / largest, usage / size[:, None], problem.limits / size, offered)
    if result.status != OPTIMAL:
        raise problem.infeasible()
    return np.maximum(-result.ineqlin.marginals * largest / size, 0.0)


def _without_proven_losers(problem: Problem, cost: Floats, usage: Floats, allowed: Mask) -> Mask:
    """The allowed choices but for those that are proven to be in no best answer.

    Every answer with a choice costs at least the optimum of the linear relaxation and the choice's reduced cost there;
    the best one costs no more than any answer within the limits, as rounding the relaxation mostly gives.
    """
    largest = cost[allowed].max()
    if not largest:
        return allowed
    result = _relaxation(problem, cost[allowed] / largest * COST_SIZE, usage[:, allowed], LIMIT_SIZE, allowed)
    if result.status != OPTIMAL:
        return allowed
    share = np.zeros(allowed.shape)
    share[allowed] = result.x
    rounded = np.where(share > SHARE, usage.max(axis=0, initial=0.0), np.inf).argmin(axis=1)
    if problem.broken(rounded) is not None or not problem.keeps(rounded):
        return allowed
    bound = taken(cost, rounded).sum() / largest * COST_SIZE
    contenders = allowed.copy()
    contenders[allowed] = result.fun + result.lower.marginals <= bound * (1 + MARGIN) + MARGIN
    return contenders


def _relaxation(problem: Problem, cost: Floats, usage: Floats, limits: Floats | float, allowed: Mask) -> Any:
    """The linear program in which a layer may take shares of several choices; arguments by allowed choice."""
    same_class = _same_class(problem, allowed)
    return optimize.linprog(
        cost,
        A_ub=usage,
        b_ub=np.broadcast_to(limits, len(usage)),
        A_eq=sparse.vstack([_one_choice(allowed), same_class]),
        b_eq=np.concatenate([np.ones(len(allowed)), np.zeros(len(same_class.indptr) - 1)]),
        bounds=(0, 1),
    )


def _cheapest_exactly_within(problem: Problem, cost: Floats, usage: Floats, allowed: Mask) -> Optimum | None:
    """The solver's best answer whose exact sums keep within the limits, or None where there is none."""
    excluded: list[Integers] = []
    while len(excluded) < MAX_EXCLUDED:
        answer = _program(problem, cost, usage, allowed, excluded)
        if answer is None or problem.keeps(answer.choice):
            return answer
        excluded.append(answer.choice)  # over a limit by less than the solver's tolerance
    raise MixbitError(f"search: the solver's {MAX_EXCLUDED} best answers are over a limit by a hair; change the limit")


def _program(problem: Problem, cost: Floats, usage: Floats, allowed: Mask, excluded: list[Integers]) -> Optimum | None:
    """The optimum of one integer program over x[l, c] in {0, 1}, or None where it is infeasible."""
    layer, column = np.nonzero(allowed)
    constraints = [
        optimize.LinearConstraint(_one_choice(allowed), 1, 1),
        optimize.LinearConstraint(usage[:, allowed], ub=LIMIT_SIZE),
        optimize.LinearConstraint(_same_class(problem, allowed), 0, 0),
        *(optimize.LinearConstraint(column == choice[layer], ub=len(allowed) - 1) for choice in excluded),
    ]
    largest = cost[allowed].max()
    result = optimize.milp(
        cost[allowed] / largest * COST_SIZE if largest else np.zeros(len(layer)),
        integrality=np.ones(len(layer)),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0, "time_limit": TIME_LIMIT_S},
    )
    if result.status == INFEASIBLE:
        return None
    gap = 0.0 if result.status == OPTIMAL else result.mip_gap
    if result.status not in (OPTIMAL, OUT_OF_TIME) or gap is None or not gap <= GAP:
        raise MixbitError(f"search: the solver stopped without a proven optimum: {result.message}")
    share = np.zeros(allowed.shape)
    share[allowed] = result.x
    return Optimum(share.argmax(axis=1), gap)


def _one_choice(allowed: Mask) -> sparse.csr_array:
    """[L, variables] which variables, the allowed choices in order, are of each layer."""
    return _members(np.nonzero(allowed)[0], len(allowed))


def _same_class(problem: Problem, allowed: Mask) -> sparse.csr_array:
    """[rows, variables]: zero where every layer takes a choice of the class that its unit's first layer takes."""
    layer, column = np.nonzero(allowed)
    num_layers, num_classes = len(allowed), problem.classes.max() + 1
    of_class = _members(layer * num_classes + problem.classes[column], num_layers * num_classes)
    rows = np.arange(num_layers * num_classes).reshape(num_layers, num_classes)
    tied = problem.first != np.arange(num_layers)
    return of_class[rows[tied].ravel()] - of_class[rows[problem.first[tied]].ravel()]


def _members(row: Integers, num_rows: int) -> sparse.csr_array:
    """[rows, variables] one where a variable, given by its row, stands."""
    return sparse.csr_array((np.ones(len(row)), (row, np.arange(len(row)))), shape=(num_rows, len(row)))
