"""The metrics `output_error` and `noise_to_signal`: mean square error of every operator's output."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import method, track
from mixbit.graph.graph import Layer, Operation, argument
from mixbit.graph.sample_axis import group_samples, sample_axis
from mixbit.metrics._input import IGNORES_LOSS, MEAN_OVER_SAMPLES, Estimate, MetricInput
from mixbit.metrics._outputs import from_inputs, from_weights, layer_entries, no_costs
from mixbit.quantization.statistics import RunningMean


@method(IGNORES_LOSS, MEAN_OVER_SAMPLES, rank=5)
def output_error(inputs: MetricInput) -> Estimate:
    """Mean square error of the operator's output, from rounding its weight plus from rounding its input.

    For sample i, mean (op(x_i, Q(W) - W) - m)^2 + mean (op(Q(x_i) - x_i, W))^2 over the elements of the output, x from
    the float network. m is what the first term has as mean over the calibration data in each channel, which bias
    correction takes off; 0 where no bias can. A weight that several operators read: the sum over them. A tensor that
    all samples share counts alike in each. One forward pass, and one more run of each operator per format.

    Source: the layer-wise error that reconstruction minimises, as in M. Nagel et al., "Up or Down? Adaptive Rounding
    for Post-Training Quantization", ICML 2020, with bias correction.

    Returns:
        loss and standard error [L, C], in squares of the output's unit.
    """
    errors = RunningMean((len(inputs.layers), len(inputs.schemes)))
    for each, _ in _squares(inputs):
        errors.update(each)
    return Estimate(*errors.result())


@method(IGNORES_LOSS, MEAN_OVER_SAMPLES, rank=5)
def noise_to_signal(inputs: MetricInput) -> Estimate:
    """`output_error` over the mean square of the output, bias included: 1 / SQNR.

    A ratio e / s of means over samples; its standard error is, to first order, that of the mean of
    (e_i - (e / s) s_i) / s.

    Returns:
        loss and standard error [L, C], without a unit.
    """
    parts = RunningMean((3, len(inputs.layers), len(inputs.schemes)))
    for errors, outputs in _squares(inputs):
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
def _squares(inputs: MetricInput) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every batch, mean squares of the error [N, L, C] and of the output [N, L], summed over a layer's operators."""
    run = _Run(inputs)
    for batch, _ in track(inputs.batches, "measure"):
        run.start(batch.batch_size)
        run.run(*inputs.graph.leaves(batch), enable_io_processing=False)
        signals = torch.stack([run.signals[layer.name] for layer in inputs.layers], 1)
        yield layer_entries(inputs, run.weights, run.read_scores), signals


class _Run(fx.Interpreter):
    """Runs the float graph and adds up every layer's mean squares: [N, formats] of errors, [N] of outputs."""

    def __init__(self, inputs: MetricInput) -> None:
        super().__init__(inputs.graph.module)
        self.inputs = inputs
        pairs = [(layer, operation) for layer in inputs.layers for operation in layer.operations]
        self.operations = {operation.node: (layer, operation) for layer, operation in pairs}
        self.shifts = {operation.node: self._mean_errors(layer, operation) for layer, operation in pairs}
        self.quantizers = inputs.input_quantizers()

    def start(self, batch_size: int) -> None:
        """Forget the batch before."""
        self.weights = no_costs(self.inputs, self.inputs.weight_formats, batch_size)
        self.read_scores = no_costs(self.inputs, self.inputs.input_formats, batch_size)
        self.signals = {name: torch.zeros(batch_size, dtype=torch.float64) for name in self.weights}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.operations:
            layer, operation = self.operations[n.name]
            x = self.env[argument(n, operation.data)]
            shifts = self.shifts[n.name]
            for column, error in enumerate(from_weights(self.inputs, layer, operation, x)):
                centred = error if shifts is None else error - shifts[column]
                self.weights[layer.name][:, column] += _mean_square(n, centred)
            for column, error in enumerate(from_inputs(self.inputs, layer, operation, x, self.quantizers)):
                self.read_scores[layer.name][:, column] += _mean_square(n, error)
            self.signals[layer.name] += _mean_square(n, value)
        return value

    def _mean_errors(self, layer: Layer, operation: Operation) -> list[Tensor] | None:
        """Mean output of each error, shaped to be taken off the output; None where no bias can do that."""
        means = self.inputs.mean_errors(operation, self.inputs.weight_errors(layer))
        ndim = len(self.inputs.graph.shapes[operation.node])
        return None if means is None else [operation.along_channels(mean, ndim) for mean in means]


def _mean_square(node: fx.Node, output: Tensor) -> Tensor:
    """[N] mean square of each sample, float64; [1] where samples cannot be told apart."""
    return group_samples(sample_axis(node), output).flatten(1).square().mean(1).cpu().double()
