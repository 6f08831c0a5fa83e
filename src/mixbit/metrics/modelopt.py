"""The metric `modelopt`: squares of gradient times error at the operators' outputs, as NVIDIA ModelOpt scores."""

from collections.abc import Iterable

from torch import Tensor, fx
from torch.nn import functional

from mixbit.core import method, track
from mixbit.graph.backward import Backward
from mixbit.graph.graph import Layer, Operation
from mixbit.graph.sample_axis import group_samples, sample_axis
from mixbit.metrics._input import MEAN_OVER_SAMPLES, Estimate, MetricInput
from mixbit.metrics._outputs import from_inputs, from_weights, layer_entries, no_costs
from mixbit.quantization.statistics import RunningMean


@method(MEAN_OVER_SAMPLES, rank=6)
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
        InvalidInput: batches without labels, or labels that do not fit the task.
    """
    inputs.check_labels("modelopt")
    scorer = _Scorer(inputs)
    entries = RunningMean((len(inputs.layers), len(inputs.schemes)))
    for batch, labels in track(inputs.batches, "measure"):
        count = batch.batch_size
        scorer.start(count)
        # The loss is the mean of the batch, and a sample's own gradient is wanted.
        scorer.backward.run_batch(batch, labels, lambda *pair, count=count: inputs.task.loss(*pair) * count)
        entries.update(layer_entries(inputs, scorer.weights, scorer.read_scores))
    return Estimate(*entries.result())


class _Scorer:
    """Adds up, in backward, the scores of every layer: [N, formats] of its weight and of its inputs."""

    def __init__(self, inputs: MetricInput) -> None:
        self.inputs = inputs
        self.quantizers = inputs.input_quantizers()
        self.backward = Backward(inputs.graph, inputs.layers, self._add, None)

    def start(self, batch_size: int) -> None:
        """Forget the batch before."""
        self.weights = no_costs(self.inputs, self.inputs.weight_formats, batch_size)
        self.read_scores = no_costs(self.inputs, self.inputs.input_formats, batch_size)

    def _add(self, layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        node = self.inputs.graph.node(operation.node)
        _add_scores(self.weights[layer.name], node, gradient, from_weights(self.inputs, layer, operation, x))
        errors = from_inputs(self.inputs, layer, operation, x, self.quantizers)
        _add_scores(self.read_scores[layer.name], node, gradient, errors)


def _add_scores(table: Tensor, node: fx.Node, gradient: Tensor, errors: Iterable[Tensor]) -> None:
    """Add sum (gradient x error)^2 of each sample to the column of each error."""
    for column, error in enumerate(errors):
        scores = group_samples(sample_axis(node), gradient * error).flatten(1).square().sum(1).cpu().double()
        table[:, column] += functional.pad(scores, (0, len(table) - len(scores)))
