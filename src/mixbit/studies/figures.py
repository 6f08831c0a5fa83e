"""From what metrics predict and what plans truly cost, the figures of a study."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixbit.sensitivity import Sensitivity
from mixbit.studies.agreement import agreement, reliability
from mixbit.studies.truth import Truth

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PlanSet:
    """Random plans of one set: their choices [L], and what they truly cost."""

    choices: Sequence[Integers]
    truths: Sequence[Truth]

    @property
    def num_distinct(self) -> int:
        """How many of the plans are different."""
        return len({tuple(choice) for choice in self.choices})


def predicted_losses(table: Sensitivity, choices: Iterable[Integers]) -> Floats:
    """[N] predicted loss of each plan, the sum of its entries; exact, so that plans which use the same are tied."""
    rows = np.arange(len(table.layers))
    return np.array([math.fsum(table.loss[rows, choice]) for choice in choices])


def true_costs(truths: Iterable[Truth]) -> Floats:
    """[N] what the metrics are to predict, the higher the worse: see `Truth.cost`."""
    return np.array([one.cost for one in truths])


def agreement_figures(table: Sensitivity, sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    """The figures of `agreement()` on each set, with the true cost, and under `kl_` with the KL divergence.

    Those of the set `near` begin with `near_`. Every metric is judged on the same resamples. Where nothing can be
    ranked, figures are None and `reason` says why.
    """
    figures: dict[str, Any] = {}
    for name, plans in sets.items():
        predicted = predicted_losses(table, plans.choices)
        costs = {"": true_costs(plans.truths), "kl_": np.array([one.kl for one in plans.truths])}
        for word, cost in costs.items():
            found = asdict(agreement(predicted, cost, plans.num_distinct, np.random.default_rng(seed)))
            figures |= {f"{_prefix(name)}{word}{key}": value for key, value in found.items()}
        if _constant(predicted):
            figures["reason"] = f"predicts the same loss for all {name} plans, and so cannot rank them"
        elif _constant(costs[""]):
            figures["reason"] = f"all {name} plans truly cost the same, so that there is no rank to predict"
    return figures


def reliability_figures(sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    """The figures of `reliability()` on each set's truth, from its halves; those of `near` begin with `near_`."""
    figures = {}
    for name, plans in sets.items():
        first, second = np.array([one.halves for one in plans.truths]).T
        found = reliability(first, second, plans.num_distinct, np.random.default_rng(seed))
        figures |= {f"{_prefix(name)}{key}": value for key, value in asdict(found).items()}
    return figures


def regrets(
    chosen: Mapping[str, Mapping[str, Truth | None]], within: Mapping[str, NDArray[np.bool_]], truths: Sequence[Truth]
) -> dict[str, dict[str, float | None]]:
    """Metric -> budget -> true cost of the plan that it chose, less the least of any known plan within the budget.

    Args:
        chosen: Metric -> budget -> truth of its plan, None where it found none.
        within: Budget -> [N] which of all known plans keep it.
        truths: N of them.
    """
    costs = true_costs(truths)
    return {
        metric: {
            budget: None if truth is None else float(truth.cost - costs[within[budget]].min())
            for budget, truth in found.items()
        }
        for metric, found in chosen.items()
    }


def _constant(values: Floats) -> bool:
    return len(np.unique(values)) == 1


def _prefix(name: str) -> str:
    return "" if name == "random" else f"{name}_"
