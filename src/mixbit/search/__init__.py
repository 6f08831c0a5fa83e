"""Search: from a table of sensitivities and a budget to a plan. Arrays only, never torch; one method a file."""

import math
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np

from mixbit.budget import Budget, Limit
from mixbit.errors import InfeasibleBudget, InvalidInput, MixbitError
from mixbit.plan import Plan
from mixbit.scheme import Scheme
from mixbit.search import ilp
from mixbit.search._plans import predicted_plan, uniform_plans
from mixbit.search._problem import Integers, keeps, taken
from mixbit.sensitivity import Sensitivity

__all__ = ["SEARCHES", "Method", "find_search", "search", "uniform_plans"]

Method = Callable[..., Integers]
"""`method(loss, usage, limits, ties, *, input_ties, input_classes) -> choice`: see `mixbit.search.ilp.solve`."""

SEARCHES: dict[str, Method] = {"ilp": ilp.solve}


def search(table: Sensitivity, budget: Budget, *, method: str | Method = "ilp") -> Plan:
    """The plan with the smallest predicted loss that keeps within the budget and obeys the table's ties.

    Args:
        table: Predicted loss and usage of every choice of every layer.
        budget: Limits, all of which the plan keeps.
        method: A name in SEARCHES, or a function of the same arguments as `mixbit.search.ilp.solve`.

    Returns:
        The plan, with its predicted loss, standard error and usage.

    Raises:
        InvalidInput: for an unknown method, or a limit on something that the table does not hold.
        InfeasibleBudget: if no plan keeps within the budget; it says what is reachable and which layers bind.
        MixbitError: if the method returns something that is not a plan within the budget.
    """
    name, solve = find_search(method)
    limits = budget.over(table)
    usage, bounds = np.stack([limit.usage for limit in limits]), np.array([limit.bound for limit in limits])
    input_bits = [Scheme.parse(choice).input_bits for choice in table.choices]
    try:
        choice = solve(table.loss, usage, bounds, table.ties, input_ties=table.input_ties, input_classes=input_bits)
    except InfeasibleBudget as error:
        raise _named(error, table, budget, limits) from error
    choice = np.asarray(choice)
    problem = _problem_with(choice, table, input_bits)
    if problem is None and not keeps(usage, bounds, choice):
        problem = "is over the budget"
    if problem:
        raise MixbitError(f"search {name}: returned a choice that {problem}; this is an error in the method")
    return predicted_plan(table, choice, budget, f"{table.metric} + {name}")


def find_search(method: str | Method) -> tuple[str, Method]:
    """Name and function of a search; raises InvalidInput for an unknown name."""
    if callable(method):
        return getattr(method, "__name__", type(method).__name__), method
    if method not in SEARCHES:
        raise InvalidInput(f"search {method!r} is unknown; known: {', '.join(SEARCHES)}; or pass a function")
    return method, SEARCHES[method]


def _problem_with(choice: Integers, table: Sensitivity, input_bits: list[int]) -> str | None:
    """What keeps a method's answer from being a plan, if anything."""
    num_layers, num_choices = table.loss.shape
    if choice.shape != (num_layers,) or not np.issubdtype(choice.dtype, np.integer):
        return f"has shape {choice.shape} and type {choice.dtype}, expected ({num_layers},) and integers"
    if choice.min() < 0 or choice.max() >= num_choices:
        return f"has columns from {choice.min()} to {choice.max()}, expected 0 to {num_choices - 1}"
    missing = np.flatnonzero(~np.isfinite(taken(table.loss, choice)))
    if missing.size:
        return f"gives {table.layers[missing[0]]} the scheme {table.choices[choice[missing[0]]]}, which is not offered"
    for ties, kinds in ((table.ties, choice), (table.input_ties, np.array(input_bits)[choice])):
        for tie in ties:
            if len(np.unique(kinds[list(tie)])) > 1:
                return f"breaks the tie of {_names(table, tie)}"
    return None


def _named(error: InfeasibleBudget, table: Sensitivity, budget: Budget, limits: list[Limit]) -> InfeasibleBudget:
    """The same error in the words of the table: names of limits and layers for their indices."""
    if not error.binding:
        return error
    names = _names(table, error.binding)
    if not error.reachable:
        return InfeasibleBudget(
            f"no plan: {names} are tied (one tensor is stored, or read, by all), but no scheme fits them all; "
            "offer one that does",
            binding=error.binding,
        )
    unreachable, kept = [], []
    for (name, asked), limit, (low, high) in zip(budget.limits.items(), limits, error.reachable, strict=True):
        ends = (low, high)
        if name == "bit_ops_ratio":  # a lower limit, kept as an upper one on bit_ops
            ends = tuple(asked * limit.bound / used if used else math.inf for used in (high, low))
        text = f"{name}={_number(asked)} (reachable: {' to '.join(map(_number, ends))})"
        (kept if low <= limit.bound else unreachable).append(text)
    alone = f"; {' and '.join(kept)} could be kept" if kept else ""
    together = "; each can be kept alone, but not all together"
    return InfeasibleBudget(
        f"no plan keeps {' and '.join(unreachable or kept)}{alone if unreachable else together}; "
        f"{names} use most even at their cheapest choice; loosen the limit or offer narrower schemes",
        reachable=error.reachable,
        binding=error.binding,
    )


def _names(table: Sensitivity, indices: tuple[int, ...]) -> str:
    return ", ".join(table.layers[index] for index in indices)


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


class _CallableModule(ModuleType):
    """This folder and the public function share the name `mixbit.search`.

    Importing anything of the folder puts this module in the function's place, so the module is called like it.
    """

    def __call__(self, table: Sensitivity, budget: Budget, *, method: str | Method = "ilp") -> Plan:
        return search(table, budget, method=method)


sys.modules[__name__].__class__ = _CallableModule
