"""The metric `output_error`: mean square error of every operator's output, absolute or over its signal."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixbit.core import method, track
from mixbit.graph import Layer, Operation, Walker, seen
from mixbit.metrics._input import IGNORES_LOSS, IGNORES_TASK, MEAN_OVER_SAMPLES, Costs, Estimate, MetricInput, averaged
from mixbit.quantization.statistics import RunningMean


@method(
    MEAN_OVER_SAMPLES,
    IGNORES_LOSS,
    IGNORES_TASK,
    rank=5,
    aliases={"noise_to_signal": {"relative": True}},
    passes=lambda *_: 2,
)
def output_error(inputs: MetricInput, *, relative: bool = False) -> Estimate:
    """Mean square error of the operator's output, from rounding its weight plus from rounding its input.

    For sample i, mean (op(x_i, Q(W) - W) - m)^2 + mean (op(Q(x_i) - x_i, W))^2 over the elements of the output, x from
    the float network. m is what the first term has as mean over the calibration data in each channel, which bias
    correction takes off; 0 where no bias can. A weight that several operators read: the sum over them. A tensor that
    all samples share counts alike in each. One forward pass, and one more run of each operator per format.

    Args:
        inputs: Its task and seed have no effect, nor do labels.
        relative: Over the mean square of the output, bias included: 1 / SQNR. This is a ratio e / s of means over
            samples; its standard error is, to first order, that of the mean of (e_i - (e / s) s_i) / s.

    Source: the layer-wise error that reconstruction minimises, as in M. Nagel et al., "Up or Down? Adaptive Rounding
    for Post-Training Quantization", ICML 2020, with bias correction.

    Returns:
        loss and standard error [L, C], in squares of the output's unit, or without a unit.
    """
    if not relative:
        return averaged(inputs, ((weights, reads) for weights, reads, _ in _squares(inputs)), shared=False)
    parts = RunningMean((3, len(inputs.layers), len(inputs.schemes)))
    for weights, reads, outputs in _squares(inputs):
        errors = inputs.entries(weights, reads, shared=False)
        signals = outputs.unsqueeze(-1).expand_as(errors)
        parts.update(torch.stack([errors, signals, errors + signals], 1))
    mean, deviation, count = parts.result()
    error, signal = mean[0], mean[1].clip(min=torch.finfo(torch.float32).tiny)
    ratio = error / signal
    if count < 2:
        return Estimate(ratio, deviation[0], count)
    variance, signal_variance, of_sum = deviation**2
    covariance = (of_sum - variance - signal_variance) / 2
    squares = variance - 2 * ratio * covariance + ratio**2 * signal_variance
    return Estimate(ratio, squares.clip(min=0) ** 0.5 / signal, count)


@torch.no_grad()
def _squares(inputs: MetricInput) -> Iterator[tuple[Costs, Costs, Tensor]]:
    """Of every batch, mean squares summed over a layer's operators.

    Layer -> [N, formats] of the error by its weight and by its inputs, and [N, L] of the output.
    """
    graph = inputs.graph
    shifts: dict[str, list[Tensor]] = {}
    for layer in inputs.layers:
        shifts |= inputs.mean_errors(layer, inputs.weight_errors(layer))

    def mean_square(operation: Operation, output: Tensor) -> Tensor:
        return inputs.by_sample(operation.node, output, count).flatten(1).square().mean(1).cpu().double()

    def see(layer: Layer, operation: Operation, value: Tensor, args: tuple[Any, ...]) -> None:
        errors_by_part = inputs.output_errors(layer, operation, args[operation.data], shifts.get(operation.node))
        for costs, errors in zip((weights, reads), errors_by_part, strict=True):
            for column, error in enumerate(errors):
                costs[layer.name][:, column] += mean_square(operation, error)
        signals[layer.name] += mean_square(operation, value)

    walker = Walker(graph.module, {name: seen(partial(see, *pair)) for name, pair in graph.operations.items()})
    for batch, _ in track(inputs.batches, "measure"):
        count = batch.batch_size
        weights, reads = inputs.zero_costs(count)
        signals = {layer.name: torch.zeros(count, dtype=torch.float64) for layer in inputs.layers}
        walker.returned(graph.leaves(batch))
        yield weights, reads, torch.stack([*signals.values()], 1)
