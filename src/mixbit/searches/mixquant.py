"""MixQuant: per layer the fewest bits whose round-off error stays small; weights only, no data.

The error QE_b of a layer at b bits is its entry in the table, which one of the metrics `weight_error` fills. Criteria:

-   `relative`, the published one: the fewest bits with QE_b <= multiplier x QE_8. For a uniform quantizer QE_b / QE_8
    is (255 / (2^b - 1))^2 whatever the layer, so well-behaved layers all take the same width; and layers with outliers,
    whose error is large at 8 bits already, take fewer bits than they should.
-   `absolute`: the fewest bits with QE_b <= multiplier; with the metric `weight_error_relative` a bound on the share of
    noise in each weight.
-   `budgeted`: the smallest sum of QE_b x number of weights within the limits, solved exactly.

Without a multiplier, `relative` and `absolute` take the smallest one that keeps within the limits. Inputs are no part
of this search: of the choices with the same width of weight, the one with the widest quantized input is taken, in float
where there is no other; layers that read one tensor all take the format that leaves them most widths of weights.

Source: E. Kloberdanz, W. Le, "MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search", 2023.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from mixbit.core import InvalidInput, method
from mixbit.searches._exact import optimum
from mixbit.searches._problem import Floats, Integers, Problem, none_found

Criterion = Literal["relative", "absolute", "budgeted"]
#: Bits of weights to compare with, and of inputs in float.
INT8, FLOAT = 8, 32


@method(rank=4)
def mixquant(
    problem: Problem, *, criterion: Criterion = "relative", multiplier: Annotated[float, Gt(0)] | None = None
) -> Integers:
    """MixQuant: per layer the fewest bits whose round-off error stays within a multiple of int8's.

    Args:
        problem: With `weight_bits` and `input_bits`, and with `numel` for the criterion `budgeted`.
        criterion: See above.
        multiplier: Of int8's error, or the bound itself; where None, the smallest that keeps within the limits.

    Raises:
        InfeasibleBudget: if the multiplier, or any, leads to no choice within the limits.
        InvalidInput: an option out of its range, or no choice of 8 bits to compare with.
    """
    if criterion == "budgeted":
        if multiplier is not None:
            raise InvalidInput(f"search mixquant: multiplier={multiplier} with budgeted; give none")
        return _smallest_sum(problem)
    error = _widest_inputs(problem)
    if criterion == "relative":
        with np.errstate(over="ignore"):
            ratio = np.minimum(error / _int8_error(problem, error), np.finfo(float).max)
        error = np.where(np.isfinite(error), ratio, np.inf)
    bits, offered = problem.bits_of("weight_bits", "mixquant"), np.isfinite(error)
    widest = np.where(offered, -bits, np.inf)  # where no width is within the bound
    for bound in np.unique(error[offered]) if multiplier is None else [multiplier]:
        within = error <= bound
        reached = within.any(axis=1, keepdims=True)
        if multiplier is None and not reached.all():
            continue
        choice = np.where(reached, np.where(within, bits, np.inf), widest).argmin(axis=1)
        if problem.groups.keeps(choice):
            return choice[problem.groups.group]
    said = "no multiplier leads" if multiplier is None else f"multiplier={multiplier:g} does not lead"
    raise none_found(problem, f"{said} to a choice within every limit")


def _widest_inputs(problem: Problem) -> Floats:
    """[G, C] the groups' losses, +inf but for the choices whose input this search takes."""
    groups, error = problem.groups, np.full_like(problem.groups.loss, np.inf)
    weight_bits, input_bits = (problem.bits_of(what, "mixquant") for what in ("weight_bits", "input_bits"))
    rank = np.where(input_bits == FLOAT, 0, input_bits)  # float comes last
    for unit in groups.units:
        if len(unit) == 1:
            (row,) = groups.offered[unit]
            for width in np.unique(weight_bits[row]):
                same = row & (weight_bits == width)
                kept = unit[0], same & (rank == rank[same].max())
                error[kept] = groups.loss[kept]
            continue
        fits = [bits for bits in np.unique(rank) if groups.offered[np.ix_(unit, rank == bits)].any(1).all()]
        best = max(fits, key=lambda bits: (groups.offered[np.ix_(unit, rank == bits)].sum(), bits))
        kept = np.ix_(unit, rank == best)
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


def _smallest_sum(problem: Problem) -> Integers:
    if problem.numel is None:
        raise InvalidInput("search mixquant: criterion budgeted needs numel, the number of weights of each layer")
    weighted = replace(problem, loss=problem.loss * problem.numel[:, None])
    return optimum(replace(weighted.groups, loss=_widest_inputs(weighted))).choice[weighted.groups.group]
