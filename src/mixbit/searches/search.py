"""Search: from a table of sensitivities and a budget to a plan. Arrays only, never torch; one method a file."""

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np

from mixbit.core import Budget, InfeasibleBudget, Limit, Methods, MixbitError, Plan, Sensitivity
from mixbit.searches._plans import plan_of, priced, problem_over, uniform_plans
from mixbit.searches._problem import Integers, Problem, Trials, keeps, taken
from mixbit.searches.front import Front, front

__all__ = [
    "SEARCHES", "Front", "Method", "Problem", "Trials", "front", "plan_of", "priced", "search",
    "uniform_plans",
]  # fmt: skip

Method = Callable[[Problem], Integers]
"""From the arrays to the column [L] of each layer."""

SEARCHES: Methods[Method] = Methods("search", "mixbit.searches")


def search(table: Sensitivity, budget: Budget, *, method: str | Method = "ilp", trials: Trials | None = None) -> Plan:
    """The plan with the smallest predicted loss that keeps within the budget and obeys the table's ties.

    Args:
        table: Predicted loss and usage of every choice of every layer.
        budget: Limits, all of which the plan keeps.
        method: A name in SEARCHES, with options as in `mixquant:multiplier=4`, or a function of a `Problem`.
        trials: The network, for methods that try plans on it.

    Returns:
        The plan, with its predicted loss, standard error and usage.

    Raises:
        InvalidInput: for an unknown method or option, or a limit on something that the table does not hold.
        InfeasibleBudget: if no plan keeps within the budget; it says what is reachable and which layers bind.
        MixbitError: if the method returns something that is not a plan within the budget.
    """
    name, solve = SEARCHES.find(method)
    limits = budget.over(table)
    problem = problem_over(table, limits, trials)
    try:
        choice = np.asarray(solve(problem))
    except InfeasibleBudget as error:
        raise _named(error, table, budget, limits) from error
    wrong = _problem_with(choice, table, problem)
    if wrong is None and not keeps(problem.usage, problem.limits, choice):
        wrong = "is over the budget"
    if wrong:
        raise MixbitError(f"search {name}: returned a choice that {wrong}; this is an error in the method")
    return plan_of(table, choice, budget, f"{table.metric} + {name}")


def _problem_with(choice: Integers, table: Sensitivity, problem: Problem) -> str | None:
    """What keeps a method's answer from being a plan, if anything."""
    num_layers, num_choices = table.loss.shape
    if choice.shape != (num_layers,) or not np.issubdtype(choice.dtype, np.integer):
        return f"has shape {choice.shape} and type {choice.dtype}, expected ({num_layers},) and integers"
    if choice.min() < 0 or choice.max() >= num_choices:
        return f"has columns from {choice.min()} to {choice.max()}, expected 0 to {num_choices - 1}"
    missing = np.flatnonzero(~np.isfinite(taken(table.loss, choice)))
    if missing.size:
        return f"gives {table.layers[missing[0]]} the scheme {table.choices[choice[missing[0]]]}, which is not offered"
    for ties, kinds in ((table.ties, choice), (table.input_ties, np.array(problem.input_bits)[choice])):
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
    for name, asked in budget.limits.items():
        pairs = [pair for pair in zip(limits, error.reachable, strict=True) if pair[0].name == name]
        ends = sorted(max(limit.named(used[end]) for limit, used in pairs) for end in (0, 1))
        text = f"{name}={_number(asked)} (reachable: {' to '.join(map(_number, ends))})"
        (kept if all(low <= limit.bound for limit, (low, _) in pairs) else unreachable).append(text)
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
    """This folder and the public function share the name `mixbit.searches.search`.

    Importing anything of the folder puts this module in the function's place, so the module is called like it.
    """

    def __call__(
        self, table: Sensitivity, budget: Budget, *, method: str | Method = "ilp", trials: Trials | None = None
    ) -> Plan:
        return search(table, budget, method=method, trials=trials)


sys.modules[__name__].__class__ = _CallableModule
