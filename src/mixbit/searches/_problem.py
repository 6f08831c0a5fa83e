"""What every search is given, checked once, and the exact solver: integer programming by HiGHS, and shadow prices."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from mixbit.core import (
    OF_WEIGHTS,
    Budget,
    FloatArray as Floats,
    InfeasibleBudget,
    Limit,
    MixbitError,
    Sensitivity,
    converted,
)

TOLERANCE = 1e-9  # share of a limit that rounding may add to a sum

#: Input bits of choices that read float numbers.
IN_FLOAT = 32
#: Of each layer: the columns of `Trials.features`.
FEATURES = ("depthwise", "input_channels", "output_channels", "stride", "kernel", "num_weights", "input_size")

Integers = NDArray[np.int64]
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


@dataclass(frozen=True)
class Trials:
    """The network, for methods that try plans on it.

    Attributes:
        evaluate: A choice [L] -> its score, the higher the better: accuracy, or -KL divergence.
        evaluate_float: The score of the float network.
        features: [L, F] what each layer is, in the order of FEATURES.
        seed: Random seed, where the method is given none.
        evaluate_all: The same for several choices, at once where work is shared out; None for one after the other.
    """

    evaluate: Callable[[Integers], float]
    evaluate_float: Callable[[], float]
    features: Callable[[], Floats]
    seed: int = 0
    evaluate_all: Callable[[Sequence[Integers]], Sequence[float]] | None = None

    def scores(self, choices: Sequence[Integers]) -> Sequence[float]:
        """The scores of several choices, in their order."""
        if self.evaluate_all is None:
            return [self.evaluate(choice) for choice in choices]
        return self.evaluate_all(choices)


@dataclass(frozen=True, eq=False)
class Problem:
    """The arrays that every search is given: L layers, C choices, R limits.

    Attributes:
        layers: Names of the layers.
        loss: [L, C] loss increase of each choice, of either sign; +inf where it is not offered.
        budget: The R limits with their names; `usage` and `limits` hold their numbers.
        weight_bits: [C] of each choice, as `input_bits`.
        numel: [L] number of weights.
        input_ties: Groups of layers that take the same input bits; groups that share a layer become one.
        trace: [L] the Hessian's average trace, where the table holds it.
        trials: The network, for methods that try plans on it.
        fallbacks: [C] columns that replace a choice in uniform plans, the first that the layer is offered.

    Raises:
        InfeasibleBudget: layers that are tied have no choice in common.
    """

    layers: Sequence[str]
    loss: Floats
    budget: Sequence[Limit]
    weight_bits: Integers
    input_bits: Integers
    numel: Floats
    input_ties: Sequence[Sequence[int]] = ()
    trace: Floats | None = None
    trials: Trials | None = None
    fallbacks: Sequence[Sequence[int]] = ()

    @classmethod
    def of(cls, table: Sensitivity, budget: Budget | None = None, trials: Trials | None = None) -> "Problem":
        """The arrays of a table under a budget; the user's own search cannot change them."""
        schemes, loss = table.schemes, table.loss.copy()
        loss.setflags(write=False)
        return cls(
            layers=table.layers,
            loss=loss,
            budget=[] if budget is None else table.limits(budget),
            weight_bits=np.array([scheme.weight_bits for scheme in schemes]),
            input_bits=np.array([scheme.input_bits for scheme in schemes]),
            numel=table.numel,
            input_ties=table.input_ties,
            trace=table.trace,
            trials=trials,
            fallbacks=[[schemes.index(other) for other in scheme.fallbacks if other in schemes] for scheme in schemes],
        )

    def __post_init__(self) -> None:
        for unit in self.units:
            if not self.columns(unit):
                raise InfeasibleBudget(
                    f"no plan: {self.names(unit)} are tied (all read one tensor), but no scheme fits them all; offer "
                    "one that does",
                    binding=tuple(unit.tolist()),
                )

    @cached_property
    def usage(self) -> Floats:
        """[R, L, C] what each choice uses of each limited resource; of what is not offered, anything."""
        usage = np.array([limit.usage for limit in self.budget]).reshape(-1, *self.loss.shape)
        usage.setflags(write=False)
        return usage

    @cached_property
    def limits(self) -> Floats:
        """[R] the largest sum of each resource, in its own unit."""
        return np.array([limit.bound for limit in self.budget], dtype=float)

    @cached_property
    def conversions(self) -> Floats:
        """[R, L - 1, 2] what is used beside the sums where neighbours read differently, see `Sensitivity`."""
        none = np.zeros((len(self.loss) - 1, 2))
        every = [none if limit.conversions is None else limit.conversions for limit in self.budget]
        return np.array(every).reshape(len(every), *none.shape)

    def used(self, choice: Integers) -> Floats:
        """[R] what a choice [L] uses of each limited resource, exactly."""
        reads_float = np.asarray(self.input_bits)[choice] == IN_FLOAT
        sums = [math.fsum(taken(table, choice)) for table in self.usage]
        between = [float(converted(each, reads_float)) for each in self.conversions]
        return np.array(sums) + np.array(between)

    @property
    def slack(self) -> Floats:
        """[R] how far rounding may carry a sum over its limit."""
        return TOLERANCE * np.abs(self.limits)

    @cached_property
    def offered(self) -> Mask:
        """[L, C] which choices may be taken."""
        return np.isfinite(self.loss)

    @cached_property
    def classes(self) -> Integers:
        """[C] class of each choice, 0 .. K - 1, by its input bits; one class where no layers are tied."""
        if not self.input_ties:
            return np.zeros(self.loss.shape[1], dtype=np.int64)
        return np.unique(self.input_bits, return_inverse=True)[1]

    @cached_property
    def first(self) -> Integers:
        """[L] the first layer of each layer's unit: the layers that are tied, directly or through others."""
        first = np.arange(len(self.loss))
        for tie in self.input_ties:
            members = np.isin(first, first[list(tie)])
            first[members] = first[members].min()
        return first

    @cached_property
    def units(self) -> list[Integers]:
        """The layers of each unit, in order: they take choices of one class."""
        return [np.flatnonzero(self.first == layer) for layer in np.unique(self.first)]

    def columns(self, layers: Integers) -> list[Integers]:
        """For each class of which all these layers are offered a choice, its columns."""
        by_class = [np.flatnonzero(self.classes == k) for k in range(self.classes.max() + 1)]
        return [columns for columns in by_class if self.offered[np.ix_(layers, columns)].any(axis=1).all()]

    def broken(self, choice: Integers) -> Integers | None:
        """The first unit whose layers take choices of different classes, if any."""
        return next((unit for unit in self.units if len(np.unique(self.classes[choice[unit]])) > 1), None)

    def keeps(self, choice: Integers) -> bool:
        """Whether the exact sums of a choice [L] are within the limits, to rounding."""
        return bool((self.used(choice) <= self.limits + self.slack).all())

    @property
    def uniform_choices(self) -> dict[int, Integers]:
        """Column -> the choice [L] within the limits that takes it in every layer, or else the first fallback offered.

        A layer that is offered one choice only takes that. A column that some layer can take neither way is left out.
        """
        only = np.where(self.offered.sum(axis=1) == 1, self.offered.argmax(axis=1), -1)
        choices: dict[int, Integers] = {}
        for column in range(self.offered.shape[1]):
            places = [column, *(self.fallbacks[column] if self.fallbacks else ())]
            first = np.array(places)[self.offered[:, places].argmax(axis=1)]
            choice = np.where(only >= 0, only, first)
            if taken(self.offered, choice).all() and self.keeps(choice) and self.broken(choice) is None:
                choices[column] = choice
        return choices

    def smallest(self, values: Floats) -> float:
        """The smallest sum of `values` [L, C] over all offered choices that obey the input ties."""
        values = np.where(self.offered, values, np.inf)
        per_class = np.stack([values[:, self.classes == k].min(axis=1) for k in range(self.classes.max() + 1)], axis=1)
        return float(np.sum([np.min(sum(per_class[unit])) for unit in self.units]))

    def infeasible(self) -> InfeasibleBudget:
        """The error that says what each resource can reach and which layers hold most of the scarcest one."""
        least = [least_used(self, row) for row in range(len(self.usage))]
        most = [-self.smallest(-table) for table in self.usage]  # conversions come on top
        reachable = tuple((low, max(low, high)) for low, high in zip(least, most, strict=True))
        lowest = np.array([low for low, _ in reachable])
        over = lowest - self.limits
        scarcest = int(np.argmax(over / np.maximum(np.abs(lowest) + np.abs(self.limits), np.finfo(float).tiny)))
        cheapest = np.where(self.offered, self.usage[scarcest], np.inf).min(axis=1)
        binding = np.argsort(-cheapest, kind="stable")[:3]
        within: list[str] = []
        beyond: list[str] = []
        for name in dict.fromkeys(limit.name for limit in self.budget):
            rows = [row for row, limit in enumerate(self.budget) if limit.name == name]
            ends = sorted(max(self.budget[row].named(reachable[row][end]) for row in rows) for end in (0, 1))
            bound = self.budget[rows[0]].named(self.budget[rows[0]].bound)
            text = f"{name}={_number(bound)} (reachable: {' to '.join(map(_number, ends))})"
            if name in OF_WEIGHTS and (fixed := self.budget[rows[0]].offset) > 0:
                text += f", of which weights that stay in float take {_number(fixed)}"
            (within if np.all(over[rows] <= self.slack[rows]) else beyond).append(text)
        alone = f"; {' and '.join(within)} could be kept" if within else ""
        together = "; each can be kept alone, but not all together"
        return InfeasibleBudget(
            f"no plan keeps {' and '.join(beyond or within)}{alone if beyond else together}; "
            f"{self.names(binding)} use most even at their cheapest choice; "
            f"loosen the limit or {_way_out(self.budget[scarcest].name)}",
            reachable=reachable,
            binding=tuple(binding.tolist()),
        )

    def none_found(self, reason: str) -> InfeasibleBudget:
        """The error of a search that does not try everything: `infeasible`, or the reason why it fell short."""
        if any(self.smallest(table) > limit for table, limit in zip(self.usage, self.limits + self.slack, strict=True)):
            return self.infeasible()
        return InfeasibleBudget(f"{reason}; the search ilp finds a plan wherever there is one")

    def names(self, rows: Integers) -> str:
        """The layers' names, as text."""
        return ", ".join(self.layers[int(row)] for row in rows)


def _way_out(name: str) -> str:
    """What else to do where this resource does not suffice."""
    if name == "latency_ms":
        return "offer schemes of other inputs, as w8a8 beside float: narrower weights are no faster"
    if name == "activation_bytes":
        return "offer narrower inputs, where the target has them"
    return "offer narrower schemes, where the target has them"


def taken(values: NDArray[Any], choice: Integers) -> NDArray[Any]:
    """[L] the entries of `values` [L, C] that a choice [L] takes."""
    return values[np.arange(len(choice)), choice]


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


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
    usage, conversions = np.where(problem.offered, problem.usage - floor, 0.0), problem.conversions
    room = problem.limits + problem.slack / 2 - floor.sum(axis=(1, 2))
    allowed = problem.offered & np.all(usage <= room[:, None, None], axis=0)
    if not allowed.any(axis=1).all():
        raise problem.infeasible()
    scale = np.divide(LIMIT_SIZE, room, out=np.zeros_like(room), where=room > 0)[:, None, None]
    usage = usage * scale
    most = np.full_like(conversions, 2 * LIMIT_SIZE)  # no room for it
    conversions = np.where(scale > 0, np.minimum(conversions * scale, most), np.where(conversions > 0, most, 0.0))
    cost = problem.loss - np.where(allowed, problem.loss, np.inf).min(axis=1, keepdims=True)
    allowed = _without_proven_losers(problem, cost, usage, allowed)
    best, best_cost = None, math.inf
    while True:
        largest = cost[allowed].max()
        answer = _cheapest_exactly_within(problem, cost, usage, conversions, allowed)
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


def _cheapest_exactly_within(
    problem: Problem, cost: Floats, usage: Floats, conversions: Floats, allowed: Mask
) -> Optimum | None:
    """The solver's best answer whose exact sums keep within the limits, or None where there is none."""
    excluded: list[Integers] = []
    while len(excluded) < MAX_EXCLUDED:
        answer = _program(problem, cost, usage, conversions, allowed, excluded)
        if answer is None or problem.keeps(answer.choice):
            return answer
        excluded.append(answer.choice)  # over a limit by less than the solver's tolerance
    raise MixbitError(f"search: the solver's {MAX_EXCLUDED} best answers are over a limit by a hair; change the limit")


def least_used(problem: Problem, row: int) -> float:
    """The smallest use of a resource, conversions included, over all offered choices that obey the ties."""
    table, conversions = problem.usage[row], problem.conversions[row].T.ravel()
    if not conversions.any():
        return problem.smallest(table)
    offered, num_z = problem.offered, len(conversions)
    found = optimize.milp(
        np.append(table[offered], conversions),
        integrality=np.append(np.ones(offered.sum()), np.zeros(num_z)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            _limited(num_z, _one_choice(offered), 1, 1),
            _limited(num_z, _same_class(problem, offered), 0, 0),
            _limited(num_z, _rises(problem, offered), -np.inf, 0, -sparse.eye_array(num_z)),
        ],
        options={"mip_rel_gap": 0, "time_limit": TIME_LIMIT_S},
    )
    share = np.zeros(problem.offered.shape)
    share[problem.offered] = found.x[: problem.offered.sum()]
    return float(problem.used(share.argmax(axis=1))[row])


def _program(
    problem: Problem, cost: Floats, usage: Floats, conversions: Floats, allowed: Mask, excluded: list[Integers]
) -> Optimum | None:
    """The optimum of one integer program over x[l, c] in {0, 1}, or None where it is infeasible.

    Where there are conversions, z[l, 0] >= f[l + 1] - f[l] and z[l, 1] >= f[l] - f[l + 1] have a part in the limits,
    with f[l], the sum of x[l, c] over the choices c that read float numbers.
    """
    layer, column = np.nonzero(allowed)
    num_z = conversions[0].size if conversions.any() else 0
    of_z = conversions.transpose(0, 2, 1).reshape(len(usage), 2 * conversions.shape[1])[:, :num_z]
    rises = _rises(problem, allowed)[:num_z]

    largest = cost[allowed].max()
    result = optimize.milp(
        np.append(cost[allowed] / largest * COST_SIZE if largest else np.zeros(len(layer)), np.zeros(num_z)),
        integrality=np.append(np.ones(len(layer)), np.zeros(num_z)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            _limited(num_z, _one_choice(allowed), 1, 1),
            _limited(num_z, usage[:, allowed], -np.inf, LIMIT_SIZE, of_z),
            _limited(num_z, _same_class(problem, allowed), 0, 0),
            _limited(num_z, rises, -np.inf, 0, -sparse.eye_array(num_z)),
            *(_limited(num_z, (column == choice[layer])[None], -np.inf, len(allowed) - 1) for choice in excluded),
        ],
        options={"mip_rel_gap": 0, "time_limit": TIME_LIMIT_S},
    )
    if result.status == INFEASIBLE:
        return None
    gap = 0.0 if result.status == OPTIMAL else result.mip_gap
    if result.status not in (OPTIMAL, OUT_OF_TIME) or gap is None or not gap <= GAP:
        raise MixbitError(f"search: the solver stopped without a proven optimum: {result.message}")
    share = np.zeros(allowed.shape)
    share[allowed] = result.x[: len(layer)]
    return Optimum(share.argmax(axis=1), gap)


def _one_choice(allowed: Mask) -> sparse.csr_array:
    """[L, variables] which variables, the allowed choices in order, are of each layer."""
    return _members(np.nonzero(allowed)[0], len(allowed))


def _limited(num_z: int, matrix: Any, low: float, high: float, of_z: Any = None) -> optimize.LinearConstraint:
    """Low <= matrix @ x + of_z @ z <= high, of z none by default, see `_program`."""
    more = sparse.csr_array((matrix.shape[0], num_z)) if of_z is None else sparse.csr_array(of_z)
    return optimize.LinearConstraint(sparse.hstack([sparse.csr_array(matrix), more], format="csr"), low, high)


def _same_class(problem: Problem, allowed: Mask) -> sparse.csr_array:
    """[rows, variables]: zero where every layer takes a choice of the class that its unit's first layer takes."""
    layer, column = np.nonzero(allowed)
    num_layers, num_classes = len(allowed), problem.classes.max() + 1
    of_class = _members(layer * num_classes + problem.classes[column], num_layers * num_classes)
    rows = np.arange(num_layers * num_classes).reshape(num_layers, num_classes)
    tied = problem.first != np.arange(num_layers)
    return of_class[rows[tied].ravel()] - of_class[rows[problem.first[tied]].ravel()]


def _rises(problem: Problem, allowed: Mask) -> sparse.csr_array:
    """[2 (L - 1), variables] f[l + 1] - f[l] of each layer but the last, see `_program`, and then the negatives."""
    column = np.nonzero(allowed)[1]
    in_float = _one_choice(allowed) * (np.asarray(problem.input_bits)[column] == IN_FLOAT)[None]
    rises = in_float.tocsr()[1:] - in_float.tocsr()[:-1]
    return sparse.csr_array(sparse.vstack([rises, -rises]))


def _members(row: Integers, num_rows: int) -> sparse.csr_array:
    """[rows, variables] one where a variable, given by its row, stands."""
    return sparse.csr_array((np.ones(len(row)), (row, np.arange(len(row)))), shape=(num_rows, len(row)))
