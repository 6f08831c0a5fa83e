"""What every search is asked: checked once, layers merged by their ties, and the error where nothing fits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixbit.core import InfeasibleBudget, InvalidInput

TOLERANCE = 1e-9  # share of a limit that rounding may add to a sum

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Ties = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Trials:
    """The network, for methods that try plans on it.

    Attributes:
        evaluate: A choice [L] -> its score, the higher the better: accuracy, or -KL divergence.
        evaluate_float: The score of the network in float.
        features: [L, F] what each layer is, in the order of `mixbit.searches.autoq.FEATURES`.
        seed: Of every draw, where the method is given none.
    """

    evaluate: Callable[[Integers], float]
    evaluate_float: Callable[[], float]
    features: Callable[[], Floats]
    seed: int = 0


def taken(values: Floats, choice: Integers) -> Floats:
    """[L] the entries of `values` [L, C] that a choice [L] takes."""
    return values[np.arange(len(choice)), choice]


def keeps(usage: Sequence[Floats] | Floats, limits: Sequence[float] | Floats, choice: Integers) -> bool:
    """Whether the exact sums of `usage` [R, L, C] over a choice [L] are within the limits [R], to rounding."""
    used = [math.fsum(taken(table, choice)) for table in usage]
    return all(total <= limit + TOLERANCE * abs(limit) for total, limit in zip(used, limits, strict=True))


@dataclass(frozen=True, eq=False)
class Problem:
    """The arrays that every search is given: L layers, C choices, R limits.

    Attributes:
        loss: [L, C] loss increase of each choice, of either sign; +inf where it is not offered.
        usage: [R, L, C] what each choice uses of each limited resource.
        limits: [R] the largest sum of each resource, in its own unit.
        ties: Groups of layers that take the same choice; groups that share a layer become one.
        input_ties: Groups of layers that take choices of the same input bits.
        weight_bits: [C] of each choice; only some methods need it.
        input_bits: [C] of each choice; needed with `input_ties`.
        numel: [L] number of weights; only some methods need it.
        trace: [L] the Hessian's average trace, where the table holds it.
        trials: The network, for methods that try plans on it.
        fallbacks: [C] columns, in order, that take a choice's place in uniform plans for a layer that is not offered
            it; none where left out.

    Raises:
        InvalidInput: for NaN, shapes that disagree, an empty tie, or an index out of range.
    """

    loss: Floats
    usage: Floats
    limits: Floats
    ties: Ties = ()
    input_ties: Ties = ()
    weight_bits: Sequence[int] | None = None
    input_bits: Sequence[int] | None = None
    numel: Floats | None = None
    trace: Floats | None = None
    trials: Trials | None = None
    fallbacks: Sequence[Sequence[int]] = ()

    @classmethod
    def of(
        cls,
        loss: ArrayLike,
        usage: ArrayLike,
        limits: ArrayLike,
        ties: Ties = (),
        *,
        input_ties: Ties = (),
        weight_bits: Sequence[int] | None = None,
        input_bits: Sequence[int] | None = None,
    ) -> "Problem":
        """A problem from lists or arrays of numbers."""
        arrays = np.asarray(loss, float), np.asarray(usage, float), np.asarray(limits, float)
        return cls(*arrays, ties, input_ties, weight_bits, input_bits)

    def __post_init__(self) -> None:
        _check_arrays(self.loss, self.usage, self.limits)
        num_layers, num_choices = self.loss.shape
        _check_ties("tie", self.ties, num_layers)
        _check_ties("input tie", self.input_ties, num_layers)
        for name, bits in (("weight_bits", self.weight_bits), ("input_bits", self.input_bits)):
            if bits is not None and len(bits) != num_choices:
                raise InvalidInput(f"{name} is {bits}, expected a number for each of {num_choices} choices")
        if self.input_ties and self.input_bits is None:
            raise InvalidInput("input_bits is None, and input_ties need them")

    @cached_property
    def groups(self) -> "Groups":
        """The layers merged by their ties; raises InfeasibleBudget where tied layers have no choice in common."""
        num_layers, num_choices = self.loss.shape
        classes = np.zeros(num_choices, dtype=np.int64)
        if self.input_ties:
            classes = np.unique(self.input_bits, return_inverse=True)[1]  # type: ignore[arg-type] checked above
        group = _united(num_layers, self.ties)
        unit = np.zeros(group.max() + 1, dtype=np.int64)
        unit[group] = _united(num_layers, [*self.ties, *self.input_ties])
        layer_usage = np.where(np.isfinite(self.loss), self.usage, 0.0)
        loss = _summed(self.loss, group)
        usage = np.array([_summed(table, group) for table in layer_usage]).reshape(len(self.limits), *loss.shape)
        _check_common_choice(np.isfinite(loss), group, unit, classes)
        return Groups(loss, usage, layer_usage, self.limits, group, unit, classes)

    def bits_of(self, what: str, method: str) -> Integers:
        """[C] `weight_bits` or `input_bits`; raises InvalidInput, which names the method, where they are not given."""
        bits = getattr(self, what)
        if bits is None:
            raise InvalidInput(f"search {method}: needs {what}, a number for each choice")
        return np.asarray(bits)


@dataclass(frozen=True)
class Groups:
    """Layers merged into groups that take one choice.

    Attributes:
        loss: [G, C] summed over the layers of a group; +inf where not offered.
        usage: [R, G, C] likewise; 0 where not offered.
        layer_usage: [R, L, C] before the merge.
        limits: [R].
        group: [L] group of each layer.
        unit: [G] unit of each group: those of one unit take choices of one class.
        classes: [C] class of each choice, 0 .. K - 1.
    """

    loss: Floats
    usage: Floats
    layer_usage: Floats
    limits: Floats
    group: Integers
    unit: Integers
    classes: Integers

    @property
    def offered(self) -> NDArray[np.bool_]:
        """[G, C] which choices may be taken."""
        return np.isfinite(self.loss)

    @property
    def slack(self) -> Floats:
        """[R] how far rounding may carry a sum over its limit."""
        return TOLERANCE * np.abs(self.limits)

    @property
    def units(self) -> list[Integers]:
        """The groups of each unit."""
        return [np.flatnonzero(self.unit == index) for index in range(self.unit.max() + 1)]

    def columns(self, members: Integers) -> list[Integers]:
        """For each class that all these groups are offered, its columns."""
        found = [np.flatnonzero(self.classes == k) for k in range(self.classes.max() + 1)]
        return [columns for columns in found if self.offered[np.ix_(members, columns)].any(axis=1).all()]

    def keeps(self, choice: Integers) -> bool:
        """Whether the layers of a choice [G], added up exactly, are within the limits."""
        return keeps(self.layer_usage, self.limits, choice[self.group])

    def smallest(self, values: Floats) -> float:
        """The smallest sum of `values` [G, C] over all offered choices that obey the input ties."""
        values = np.where(self.offered, values, np.inf)
        per_class = np.stack([values[:, self.classes == k].min(axis=1) for k in range(self.classes.max() + 1)], axis=1)
        return float(_summed(per_class, self.unit).min(axis=1).sum())


def _check_arrays(loss: Floats, usage: Floats, limits: Floats) -> None:
    if loss.ndim != 2 or not loss.size:
        raise InvalidInput(f"loss has shape {loss.shape}, expected [layers, choices], at least one of each")
    if limits.ndim != 1 or not np.isfinite(limits).all():
        raise InvalidInput(f"limits are {limits.tolist()}, expected a list of finite numbers")
    if usage.shape != (len(limits), *loss.shape):
        raise InvalidInput(f"usage has shape {usage.shape}, expected {(len(limits), *loss.shape)}")
    for layer, row in enumerate(loss):
        if np.isnan(row).any() or np.isneginf(row).any():
            raise InvalidInput(f"loss of layer {layer} is {row.tolist()}, expected numbers or +inf")
        if not np.isfinite(row).any():
            raise InvalidInput(f"layer {layer} is offered no choice: its losses are all infinite")
    unusable = np.isnan(usage) | (np.isfinite(loss) & ~np.isfinite(usage))
    if unusable.any():
        limit, layer, choice = np.argwhere(unusable)[0]
        raise InvalidInput(f"usage[{limit}, {layer}, {choice}] is {usage[limit, layer, choice]}, not a finite number")


def _check_ties(word: str, ties: Ties, num_layers: int) -> None:
    for tie in ties:
        if not len(tie):
            raise InvalidInput(f"empty {word}: it names no layer")
        for layer in tie:
            if not 0 <= layer < num_layers:
                raise InvalidInput(f"{word} {list(tie)} names layer {layer}, but there are {num_layers} layers")


def _united(count: int, ties: Ties) -> Integers:
    """Numbers 0, 1, ... of the groups that the ties make of `count` things, those that share a member united."""
    number = np.arange(count)
    for tie in ties:
        members = np.isin(number, number[list(tie)])
        number[members] = number[members].min()
    return np.unique(number, return_inverse=True)[1]


def _summed(rows: Floats, number: Integers) -> Floats:
    """[N, C] sums of the rows [M, C] that have the same number."""
    sums = np.zeros((number.max() + 1, rows.shape[1]))
    np.add.at(sums, number, rows)
    return sums


def _check_common_choice(offered: NDArray[np.bool_], group: Integers, unit: Integers, classes: Integers) -> None:
    for index in np.flatnonzero(~offered.any(axis=1)):
        members = np.flatnonzero(group == index).tolist()
        raise InfeasibleBudget(f"layers {members} are tied, but no choice is offered to all", binding=tuple(members))
    for index in range(unit.max() + 1):
        rows = offered[unit == index]
        if not any(rows[:, classes == k].any(axis=1).all() for k in range(classes.max() + 1)):
            members = np.flatnonzero(unit[group] == index).tolist()
            raise InfeasibleBudget(
                f"layers {members} share an input, but no input format is offered to all", binding=tuple(members)
            )


def uniform_choices(problem: Problem) -> dict[int, Integers]:
    """Column -> the choice [L] that takes it in every layer, or the first of its fallbacks that the layer is offered.

    A layer that is offered one choice only takes that. Those within the limits; a column with neither itself nor a
    fallback for some layer makes no uniform choice.
    """
    offered = np.isfinite(problem.loss)
    only = np.where(offered.sum(axis=1) == 1, offered.argmax(axis=1), -1)
    input_bits = np.zeros(problem.loss.shape[1]) if problem.input_bits is None else np.asarray(problem.input_bits)
    found: dict[int, Integers] = {}
    for column in range(problem.loss.shape[1]):
        places = [column, *(problem.fallbacks[column] if problem.fallbacks else ())]
        first = np.array(places)[offered[:, places].argmax(axis=1)]
        choice = np.where(only >= 0, only, first)
        if not np.isfinite(taken(problem.loss, choice)).all() or not keeps(problem.usage, problem.limits, choice):
            continue
        tied = all(len(np.unique(choice[list(tie)])) == 1 for tie in problem.ties)
        if tied and all(len(np.unique(input_bits[choice[list(tie)]])) == 1 for tie in problem.input_ties):
            found[column] = choice
    return found


def none_found(problem: Problem, what: str) -> InfeasibleBudget:
    """The error of a search that does not try everything: nothing keeps within the limits, or it fell short."""
    groups = problem.groups
    if any(
        groups.smallest(table) > limit for table, limit in zip(groups.usage, groups.limits + groups.slack, strict=True)
    ):
        return infeasible(groups)
    return InfeasibleBudget(f"{what}; the search ilp finds a plan wherever there is one")


def infeasible(groups: Groups) -> InfeasibleBudget:
    """The error that says what each resource can reach and which layers hold most of the scarcest one."""
    reachable = tuple((groups.smallest(table), -groups.smallest(-table)) for table in groups.usage)
    lowest = np.array([low for low, _ in reachable])
    over = lowest - groups.limits
    scarcest = int(np.argmax(over / np.maximum(np.abs(lowest) + np.abs(groups.limits), np.finfo(float).tiny)))
    cheapest = np.where(groups.offered[groups.group], groups.layer_usage[scarcest], np.inf).min(axis=1)
    binding = tuple(np.argsort(-cheapest, kind="stable")[:3].tolist())
    parts = [
        f"limit {index} is {limit:g} and sums reach {low:g} to {high:g}"
        for index, (limit, (low, high)) in enumerate(zip(groups.limits, reachable, strict=True))
    ]
    if np.all(over <= groups.slack):
        parts.append("each limit can be kept alone, but not all together")
    return InfeasibleBudget(
        f"no choice keeps within every limit: {'; '.join(parts)}; "
        f"layers {list(binding)} use most even at their cheapest choice",
        reachable=reachable,
        binding=binding,
    )
