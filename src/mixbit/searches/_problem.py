"""What every search is given, checked once, and the errors where no plan keeps within the limits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixbit.core import Budget, InfeasibleBudget, Limit, Sensitivity

TOLERANCE = 1e-9  # share of a limit that rounding may add to a sum

#: Of each layer: the columns of `Trials.features`.
FEATURES = ("depthwise", "input_channels", "output_channels", "stride", "kernel", "num_weights", "input_size")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Trials:
    """The network, for methods that try plans on it.

    Attributes:
        evaluate: A choice [L] -> its score, the higher the better: accuracy, or -KL divergence.
        evaluate_float: The score of the float network.
        features: [L, F] what each layer is, in the order of FEATURES.
        seed: Random seed, where the method is given none.
    """

    evaluate: Callable[[Integers], float]
    evaluate_float: Callable[[], float]
    features: Callable[[], Floats]
    seed: int = 0


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

    @property
    def slack(self) -> Floats:
        """[R] how far rounding may carry a sum over its limit."""
        return TOLERANCE * np.abs(self.limits)

    @cached_property
    def offered(self) -> NDArray[np.bool_]:
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
        most = self.limits + self.slack
        return all(math.fsum(taken(table, choice)) <= limit for table, limit in zip(self.usage, most, strict=True))

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
        reachable = tuple((self.smallest(table), -self.smallest(-table)) for table in self.usage)
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
            (within if np.all(over[rows] <= self.slack[rows]) else beyond).append(text)
        alone = f"; {' and '.join(within)} could be kept" if within else ""
        together = "; each can be kept alone, but not all together"
        return InfeasibleBudget(
            f"no plan keeps {' and '.join(beyond or within)}{alone if beyond else together}; "
            f"{self.names(binding)} use most even at their cheapest choice; "
            "loosen the limit or offer narrower schemes",
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


def taken(values: NDArray[Any], choice: Integers) -> NDArray[Any]:
    """[L] the entries of `values` [L, C] that a choice [L] takes."""
    return values[np.arange(len(choice)), choice]


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"
