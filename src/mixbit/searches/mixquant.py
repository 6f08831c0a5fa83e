"""MixQuant: per layer the fewest bits whose round-off error stays small; weights only, no data.

The error QE_b of a layer at b bits is its entry in the table, which one of the metrics `weight_error` fills. Criteria:

-   `relative`, the published one: the fewest bits with QE_b <= multiplier x QE_8. For a uniform quantizer QE_b / QE_8
    is (255 / (2^b - 1))^2 for every layer, so well-behaved layers all take the same width; and layers with outliers,
    whose error is large at 8 bits already, take fewer bits than they should.
-   `absolute`: the fewest bits with QE_b <= multiplier; with `weight_error_relative` the share of noise in each weight.
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
from mixbit.searches._problem import Floats, Integers, Problem, optimum

Criterion = Literal["relative", "absolute", "budgeted"]
#: Bits of weights to compare with, and of inputs in float.
INT8, FLOAT = 8, 32


@method(rank=4)
def mixquant(
    problem: Problem, *, criterion: Criterion = "relative", multiplier: Annotated[float, Gt(0)] | None = None
) -> Integers:
    """MixQuant: per layer the fewest bits whose round-off error stays within a multiple of int8's.

    Args:
        problem: Errors as losses.
        criterion: See above.
        multiplier: Of int8's error, or the bound itself; where None, the smallest that keeps within the limits.

    Raises:
        InfeasibleBudget: if the multiplier, or any, leads to no choice within the limits.
        InvalidInput: an option out of its range, or no choice of 8 bits to compare with.
    """
    if criterion == "budgeted":
        if multiplier is not None:
            raise InvalidInput(f"search mixquant: multiplier={multiplier} with budgeted; give none")
        weighted = replace(problem, loss=problem.loss * problem.numel[:, None])
        return optimum(replace(weighted, loss=_widest_inputs(weighted))).choice
    error = _widest_inputs(problem)
    if criterion == "relative":
        with np.errstate(over="ignore"):
            ratio = np.minimum(error / _int8_error(problem, error), np.finfo(float).max)
        error = np.where(np.isfinite(error), ratio, np.inf)
    offered = np.isfinite(error)
    widest = np.where(offered, -problem.weight_bits, np.inf)  # where no width is within the bound
    for bound in np.unique(error[offered]) if multiplier is None else [multiplier]:
        within = error <= bound
        reached = within.any(axis=1, keepdims=True)
        if multiplier is None and not reached.all():
            continue
        choice = np.where(reached, np.where(within, problem.weight_bits, np.inf), widest).argmin(axis=1)
        if problem.keeps(choice):
            return choice
    reason = "no multiplier leads" if multiplier is None else f"multiplier={multiplier:g} does not lead"
    raise problem.none_found(f"{reason} to a choice within every limit")


def _widest_inputs(problem: Problem) -> Floats:
    """[L, C] the losses, +inf but for the choices whose input this search takes."""
    error = np.full_like(problem.loss, np.inf)
    rank = np.where(problem.input_bits == FLOAT, 0, problem.input_bits)  # float comes last
    for unit in problem.units:
        if len(unit) == 1:
            (offered,) = problem.offered[unit]
            for width in np.unique(problem.weight_bits[offered]):
                same = offered & (problem.weight_bits == width)
                widest = unit[0], same & (rank == rank[same].max())
                error[widest] = problem.loss[widest]
            continue
        offered = {bits: problem.offered[np.ix_(unit, rank == bits)] for bits in np.unique(rank)}
        common = [bits for bits, choices in offered.items() if choices.any(axis=1).all()]
        best = max(common, key=lambda bits: (offered[bits].sum(), bits))
        widest = np.ix_(unit, rank == best)
        error[widest] = problem.loss[widest]
    return error


def _int8_error(problem: Problem, error: Floats) -> Floats:
    """[L, 1] the error at 8 bits; the smallest positive number for none at all, so that ratios stay finite."""
    int8 = error[:, problem.weight_bits == INT8].min(axis=1, initial=np.inf)
    for layer, value in zip(problem.layers, int8, strict=True):
        if not np.isfinite(value):
            missing = f"{layer} is offered no choice of 8 bits to compare with"
            raise InvalidInput(f"search mixquant: {missing}; offer w8a8, or take criterion=absolute")
    return np.maximum(int8, np.finfo(float).tiny)[:, None]
