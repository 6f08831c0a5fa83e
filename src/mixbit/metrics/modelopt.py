"""The metric `modelopt`: squares of gradient times error at the operators' outputs, as NVIDIA ModelOpt scores."""

from collections.abc import Iterable

from torch import Tensor
from torch.nn import functional

from mixbit.core import method, track
from mixbit.core.batches import Inputs
from mixbit.graph.backward import Backward
from mixbit.graph.graph import Layer, Operation
from mixbit.graph.sample_axis import group_samples, sample_axis
from mixbit.metrics._input import (
    MEAN_OVER_SAMPLES,
    NEEDS_LABELS,
    Costs,
    Estimate,
    MetricInput,
    averaged,
    no_costs,
    output_errors,
)


@method(MEAN_OVER_SAMPLES, NEEDS_LABELS, rank=6)
def modelopt(inputs: MetricInput) -> Estimate:
    """Sum over the elements of an operator's output Y of (dl/dY (Y_q - Y))^2, the mean over samples.

    l is the loss of the sample's own label and Y_q the output with the rounded weight; for an input format, the same
    with the rounded input is added. Every layer is scored at its own output, also where several read one tensor. No
    bias correction, as published. The output of an operator that all samples share has one gradient for the batch, of
    which the square stands for the sum over samples.

    Source: NVIDIA TensorRT Model Optimizer, `auto_quantize` (its gradient score, there with gradients of the batch).

    Returns:
        loss and standard error [L, C], in squares of the loss.

    Raises:
        InvalidInput: labels that do not fit the task.
    """
    scorer = _Scorer(inputs)
    return averaged(inputs, (scorer.of_batch(*pair) for pair in track(inputs.batches, "measure")), shared=False)


class _Scorer:
    """Adds up, in backward, the scores of every layer: [N, formats] of its weight and of its inputs."""

    def __init__(self, inputs: MetricInput) -> None:
        self.inputs = inputs
        self.backward = Backward(inputs.graph, inputs.layers, self._add, None)

    def of_batch(self, batch: Inputs, labels: Tensor | None) -> tuple[Costs, Costs]:
        """Layer -> [N, formats] of its weight, and of its inputs."""
        inputs, count = self.inputs, batch.batch_size
        self.weights = no_costs(inputs, inputs.weight_formats, count)
        self.reads = no_costs(inputs, inputs.input_formats, count)
        # The loss is the mean of the batch, and a sample's own gradient is wanted.
        self.backward.run_batch(batch, labels, lambda *pair: inputs.task.loss(*pair) * count)
        return self.weights, self.reads

    def _add(self, layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        from_weights, from_reads = output_errors(self.inputs, layer, operation, x)
        self._add_scores(self.weights[layer.name], operation, gradient, from_weights)
        self._add_scores(self.reads[layer.name], operation, gradient, from_reads)

    def _add_scores(self, table: Tensor, operation: Operation, gradient: Tensor, errors: Iterable[Tensor]) -> None:
        """Add sum (gradient x error)^2 of each sample to the column of each error."""
        axis = sample_axis(self.inputs.graph.node(operation.node))
        for column, error in enumerate(errors):
            scores = group_samples(axis, gradient * error).flatten(1).square().sum(1).cpu().double()
            table[:, column] += functional.pad(scores, (0, len(table) - len(scores)))
