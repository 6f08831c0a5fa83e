"""MixQuant: per layer the fewest bits whose round-off error stays small; weights only, no data.

The error QE_b of a layer at b bits is its entry in the table, which one of the metrics `weight_error` fills. Criteria:

-   `relative`, the published one: the fewest bits with QE_b <= multiplier x QE_8. For a uniform quantizer QE_b / QE_8
    is (255 / (2^b - 1))^2 whatever the layer, so well-behaved layers all take the same width; and layers with outliers,
    whose error is large at 8 bits already, take fewer bits than they should.
-   `absolute`: the fewest bits with QE_b <= multiplier; with the metric `weight_error_relative` a bound on the share of
    noise in each weight.
-   `budgeted`: the smallest sum of QE_b x number of weights within the limits, solved exactly.

Without a multiplier, `relative` and `absolute` take the smallest one that keeps within the limits. Of the choices with
the same width of weight, the one with the widest input is taken: inputs are no part of this search.

Source: E. Kloberdanz, W. Le, "MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search", 2023.
"""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from mixbit.errors import InvalidInput
from mixbit.search._exact import optimum
from mixbit.search._problem import Floats, Integers, Problem, none_found

Criterion = Literal["relative", "absolute", "budgeted"]
INT8 = 8


def solve(problem: Problem, *, criterion: Criterion = "relative", multiplier: float | None = None) -> Integers:
    """MixQuant: per layer the fewest bits whose round-off error stays within a multiple of int8's.

    Args:
        problem: With `weight_bits` and `input_bits`, and with `numel` for the criterion `budgeted`.
        criterion: See above.
        multiplier: Of int8's error, or the bound itself; where None, the smallest that keeps within the limits.

    Raises:
        InfeasibleBudget: if the multiplier, or any, leads to no choice within the limits.
        InvalidInput: an option out of its range, or no choice of 8 bits to compare with.
    """
    if criterion not in get_args(Criterion):
        raise InvalidInput(
            f"search mixquant: criterion {criterion!r} is unknown; known: {', '.join(get_args(Criterion))}"
        )
    if multiplier is not None and (criterion == "budgeted" or not multiplier > 0):
        raise InvalidInput(f"search mixquant: multiplier={multiplier} with {criterion}; give a positive one, or none")
    error = _widest_inputs(problem)
    if criterion == "budgeted":
        return _smallest_sum(problem, error)
    if criterion == "relative":
        error = error / _int8_error(problem, error)
    bits = np.where(np.isfinite(error), problem.bits_of("weight_bits", "mixquant"), np.inf)
    bounds = np.unique(error[np.isfinite(error)]) if multiplier is None else [multiplier]
    for bound in bounds:
        allowed = np.where(error <= bound, bits, np.inf)
        if not np.isfinite(allowed).any(axis=1).all():
            if multiplier is None:
                continue
            allowed = np.where(np.isfinite(allowed).any(axis=1, keepdims=True), allowed, -bits)  # the widest there is
        choice = allowed.argmin(axis=1)
        if problem.groups.keeps(choice):
            return choice[problem.groups.group]
    said = "no multiplier leads" if multiplier is None else f"multiplier={multiplier:g} does not lead"
    raise none_found(problem, f"{said} to a choice within every limit")


def _widest_inputs(problem: Problem) -> Floats:
    """[G, C] the groups' losses, +inf but for the widest input that every group of a unit is offered."""
    groups, error = problem.groups, np.full_like(problem.groups.loss, np.inf)
    input_bits = problem.bits_of("input_bits", "mixquant")
    for unit in groups.units:
        fits = [bits for bits in np.unique(input_bits) if groups.offered[np.ix_(unit, input_bits == bits)].any(1).all()]
        kept = np.ix_(unit, input_bits == max(fits))
        error[kept] = groups.loss[kept]
    return error


def _int8_error(problem: Problem, error: Floats) -> Floats:
    """[G, 1] the error at 8 bits; the smallest positive number for none at all, so that ratios stay finite."""
    columns = problem.bits_of("weight_bits", "mixquant") == INT8
    int8 = error[:, columns].min(axis=1, initial=np.inf)
    if not np.isfinite(int8).all():
        layer = int(np.flatnonzero(~np.isfinite(int8))[0])
        members = np.flatnonzero(problem.groups.group == layer).tolist()
        raise InvalidInput(
            f"search mixquant: layers {members} are offered no choice of 8 bits to compare with; offer w8a8, or take "
            "criterion=absolute"
        )
    return np.maximum(int8, np.finfo(float).tiny)[:, None]


def _smallest_sum(problem: Problem, error: Floats) -> Integers:
    if problem.numel is None:
        raise InvalidInput("search mixquant: criterion budgeted needs numel, the number of weights of each layer")
    groups = problem.groups
    weights = np.bincount(groups.group, weights=problem.numel) / np.bincount(groups.group)
    return optimum(replace(groups, loss=error * weights[:, None])).choice[groups.group]
