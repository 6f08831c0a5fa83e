"""The metrics `weight_error`, `weight_error_absolute`, `weight_error_relative`: round-off of the weights alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from mixbit.core import method, track
from mixbit.metrics._input import IGNORES_LOSS, Estimate, MetricInput


@method(IGNORES_LOSS, rank=4)
def weight_error(inputs: MetricInput) -> Estimate:
    """Mean square of the rounding error, mean (Q(W) - W)^2: exact, without a run of the network.

    No batch is read; data has a part only in the scales, which are chosen on it. Input formats contribute nothing.

    Source: E. Kloberdanz, W. Le, "MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search",
    2023 (its norm is not given there: this and the next two are the usual ones).

    Returns:
        loss [L, C] in squares of the weight's unit, and standard errors of 0.
    """
    return _estimate(inputs, lambda error, _: error.square().mean())


@method(IGNORES_LOSS, rank=4)
def weight_error_absolute(inputs: MetricInput) -> Estimate:
    """Mean size of the rounding error, mean |Q(W) - W|; otherwise as `weight_error`.

    Returns:
        loss [L, C] in the weight's unit, and standard errors of 0.
    """
    return _estimate(inputs, lambda error, _: error.abs().mean())


@method(IGNORES_LOSS, rank=4)
def weight_error_relative(inputs: MetricInput) -> Estimate:
    """Rounding error relative to the weight, ||Q(W) - W||^2 / ||W||^2; otherwise as `weight_error`.

    Returns:
        loss [L, C] without a unit, and standard errors of 0.
    """
    return _estimate(inputs, _relative)


def _relative(error: Tensor, weight: Tensor) -> Tensor:
    return error.square().sum() / weight.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def _estimate(inputs: MetricInput, size: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
    """The table of size(error, weight), both in float64."""
    costs = {}
    for layer in track(inputs.layers, "measure"):
        weight = inputs.graph.parameter(layer.name).detach().double()
        sizes = [float(size(error.double(), weight)) for error in inputs.weight_errors(layer)]
        costs[layer.name] = torch.tensor(sizes, dtype=torch.float64)
    loss = inputs.entries(costs, {})
    return Estimate(loss.numpy(), torch.zeros_like(loss).numpy(), inputs.calibration.num_samples)
