"""What every search solves: layers merged by their ties, checked once, and the error where nothing fits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixbit.errors import InfeasibleBudget, InvalidInput

TOLERANCE = 1e-9  # share of a limit that rounding may add to a sum

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Ties = Sequence[Sequence[int]]


def taken(values: Floats, choice: Integers) -> Floats:
    """[L] the entries of `values` [L, C] that a choice [L] takes."""
    return values[np.arange(len(choice)), choice]


def keeps(usage: Sequence[Floats] | Floats, limits: Sequence[float] | Floats, choice: Integers) -> bool:
    """Whether the exact sums of `usage` [R, L, C] over a choice [L] are within the limits [R], to rounding."""
    used = [math.fsum(taken(table, choice)) for table in usage]
    return all(total <= limit + TOLERANCE * abs(limit) for total, limit in zip(used, limits, strict=True))


@dataclass(frozen=True)
class Problem:
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

    def keeps(self, choice: Integers) -> bool:
        """Whether the layers of a choice [G], added up exactly, are within the limits."""
        return keeps(self.layer_usage, self.limits, choice[self.group])

    def smallest(self, values: Floats) -> float:
        """The smallest sum of `values` [G, C] over all offered choices that obey the input ties."""
        values = np.where(self.offered, values, np.inf)
        per_class = np.stack([values[:, self.classes == k].min(axis=1) for k in range(self.classes.max() + 1)], axis=1)
        return float(_summed(per_class, self.unit).min(axis=1).sum())


def read_problem(
    loss: Floats, usage: Floats, limits: Floats, ties: Ties, input_ties: Ties, input_classes: Sequence[int] | None
) -> Problem:
    """Check the arguments of a search (see `mixbit.search.ilp.solve`) and merge the layers that are tied."""
    _check_arrays(loss, usage, limits)
    num_layers, num_choices = loss.shape
    _check_ties("tie", ties, num_layers)
    _check_ties("input tie", input_ties, num_layers)
    classes = np.zeros(num_choices, dtype=np.int64)
    if input_ties:
        if input_classes is None or len(input_classes) != num_choices:
            raise InvalidInput(f"input_classes is {input_classes}, expected a class for each of {num_choices} choices")
        classes = np.unique(input_classes, return_inverse=True)[1]
    group = _united(num_layers, ties)
    unit_of_layer = _united(num_layers, [*ties, *input_ties])
    unit = np.zeros(group.max() + 1, dtype=np.int64)
    unit[group] = unit_of_layer

    layer_usage = np.where(np.isfinite(loss), usage, 0.0)
    group_loss = _summed(loss, group)
    group_usage = np.array([_summed(table, group) for table in layer_usage]).reshape(len(limits), *group_loss.shape)
    _check_common_choice(np.isfinite(group_loss), group, unit, classes)
    return Problem(group_loss, group_usage, layer_usage, limits, group, unit, classes)


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


def infeasible(problem: Problem) -> InfeasibleBudget:
    """The error that says what each resource can reach and which layers hold most of the scarcest one."""
    reachable = tuple((problem.smallest(table), -problem.smallest(-table)) for table in problem.usage)
    lowest = np.array([low for low, _ in reachable])
    over = lowest - problem.limits
    scarcest = int(np.argmax(over / np.maximum(np.abs(lowest) + np.abs(problem.limits), np.finfo(float).tiny)))
    cheapest = np.where(problem.offered[problem.group], problem.layer_usage[scarcest], np.inf).min(axis=1)
    binding = tuple(np.argsort(-cheapest, kind="stable")[:3].tolist())
    parts = [
        f"limit {index} is {limit:g} and sums reach {low:g} to {high:g}"
        for index, (limit, (low, high)) in enumerate(zip(problem.limits, reachable, strict=True))
    ]
    if np.all(over <= problem.slack):
        parts.append("each limit can be kept alone, but not all together")
    return InfeasibleBudget(
        f"no choice keeps within every limit: {'; '.join(parts)}; "
        f"layers {list(binding)} use most even at their cheapest choice",
        reachable=reachable,
        binding=binding,
    )
