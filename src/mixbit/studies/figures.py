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

#: Share of a budget that rounding may add to a sum.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class PlanSet:
    """Random plans of one set: their choices [L], and what they truly cost."""

    choices: Sequence[Integers]
    truths: Sequence[Truth]


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
            found = asdict(agreement(predicted, cost, np.random.default_rng(seed)))
            figures |= {f"{_prefix(name)}{word}{key}": value for key, value in found.items()}
        if _constant(predicted):
            figures["reason"] = f"predicts the same loss for all {name} plans, and so cannot rank them"
        elif _constant(costs[""]):
            figures["reason"] = f"all {name} plans truly cost the same, so that there is no rank to predict"
    return figures


def reliability_figures(sets: Mapping[str, PlanSet]) -> dict[str, float]:
    """Split-half reliability of each set's truth, and its root, the ceiling of what a metric can reach."""
    figures = {}
    for name, plans in sets.items():
        found = reliability(*np.array([one.halves for one in plans.truths]).T)
        figures |= {f"{_prefix(name)}reliability": found, f"{_prefix(name)}ceiling": math.sqrt(found)}
    return figures


def regrets(
    chosen: Mapping[str, Mapping[float, Truth | None]], mean_bits: Floats, truths: Sequence[Truth]
) -> dict[str, dict[str, float | None]]:
    """Metric -> budget -> true cost of the plan that it chose, less the least of any known plan within the budget.

    Args:
        chosen: Metric -> mean bits allowed -> truth of its plan, None where it found none.
        mean_bits: [N] of all known plans.
        truths: N of them.
    """
    costs = true_costs(truths)
    found: dict[str, dict[str, float | None]] = {}
    for metric, by_budget in chosen.items():
        found[metric] = {}
        for bits, truth in by_budget.items():
            key = f"mean_bits={bits:g}"
            if truth is None:
                found[metric][key] = None
                continue
            within = mean_bits <= bits * (1 + TOLERANCE)
            found[metric][key] = float(true_costs([truth])[0] - costs[within].min())
    return found


def _constant(values: Floats) -> bool:
    return len(np.unique(values)) == 1


def _prefix(name: str) -> str:
    return "" if name == "uniform" else f"{name}_"
