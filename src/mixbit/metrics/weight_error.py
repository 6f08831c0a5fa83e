"""The metric `weight_error`: round-off of the weights alone."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixbit.core import method, track
from mixbit.graph import LAYER_BY_LAYER
from mixbit.metrics._input import IGNORES_LOSS, IGNORES_TASK, Estimate, MetricInput

#: (Q(W) - W, W) -> the size of the error, as each norm counts it.
_SIZES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": lambda error, _: error.square().mean(),
    "absolute": lambda error, _: error.abs().mean(),
    "relative": lambda error, weight: (
        error.square().sum() / weight.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    ),
}


@method(
    IGNORES_LOSS,
    IGNORES_TASK,
    LAYER_BY_LAYER,
    rank=4,
    aliases={"weight_error_absolute": {"norm": "absolute"}, "weight_error_relative": {"norm": "relative"}},
    passes=lambda *_: 0,
)
def weight_error(inputs: MetricInput, *, norm: Literal["squares", "absolute", "relative"] = "squares") -> Estimate:
    """Size of the rounding error of the weight: exact, without a run of the network.

    No batch is read; data has a part only in the scales, which are chosen on it. Input formats contribute nothing.

    Args:
        inputs: Its batches, task and seed have no effect.
        norm: `squares` for mean (Q(W) - W)^2, `absolute` for mean |Q(W) - W|, `relative` for
            ||Q(W) - W||^2 / ||W||^2.

    Source: E. Kloberdanz, W. Le, "MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search",
    2023 (its norm is not given there: these are the usual ones).

    Returns:
        loss [L, C] in squares of the weight's unit, in that unit, or without a unit; and standard errors of 0.
    """
    weights, reads = inputs.zero_costs()
    for layer in track(inputs.layers, "measure"):
        weight = inputs.graph.parameter(layer.name).detach().double()
        for column, error in enumerate(inputs.weight_errors(layer)):
            weights[layer.name][column] = _SIZES[norm](error.double(), weight)
    loss = inputs.entries(weights, reads, shared=False).numpy()
    return Estimate(loss, np.zeros_like(loss), inputs.calibration.num_samples)
