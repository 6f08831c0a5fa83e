"""The metric `autoround`: sizes of gradient times error, to first order, as Intel AutoRound's AutoScheme scores."""

import torch
from torch import Tensor

from mixbit.core import method, track
from mixbit.graph.backward import Backward
from mixbit.graph.graph import Layer, Operation
from mixbit.metrics._input import Estimate, MetricInput
from mixbit.metrics._outputs import layer_entries, no_costs
from mixbit.quantization.statistics import batch_means


@method(rank=7)
def autoround(inputs: MetricInput) -> Estimate:
    """Sum |g_W (Q(W) - W)| + sum |g_x (Q(x) - x)| over the elements of a layer's weight and of what it reads.

    Gradients of the mean loss of a batch with labels: g_W over all that reads the weight, g_x through the layer itself
    alone, also where others read the same tensor. Sizes are taken after summing g_W over the batch, so that the
    entries of a weight shrink with larger batches; those of inputs do not. No bias correction, as published.

    Source: W. Cheng et al., "SignRoundV2", 2025 (DeltaLoss), and Intel AutoRound's AutoScheme.

    Returns:
        loss and standard error [L, C] in the unit of the loss; its samples are the batches, weighted by size.

    Raises:
        InvalidInput: batches without labels, or labels that do not fit the task.
    """
    inputs.check_labels("autoround")
    scorer = _Scorer(inputs)
    rows = []
    for batch, labels in track(inputs.batches, "measure"):
        scorer.start()
        scorer.backward.run_batch(batch, labels, inputs.task.loss)
        rows.append(layer_entries(inputs, scorer.weight_scores(), scorer.read_scores))
    sizes = torch.tensor([batch.batch_size for batch, _ in inputs.batches])
    loss, standard_error = batch_means(torch.stack(rows), sizes)
    return Estimate(loss.numpy(), standard_error.numpy(), len(rows))


class _Scorer:
    """Adds up, in backward, every weight's gradient and the scores of every layer's inputs, [formats]."""

    def __init__(self, inputs: MetricInput) -> None:
        self.inputs = inputs
        self.quantizers = inputs.input_quantizers()
        self.backward = Backward(inputs.graph, inputs.layers, self._add, None)

    def start(self) -> None:
        """Forget the batch before."""
        self.gradients: dict[str, Tensor] = {}
        self.read_scores = no_costs(self.inputs, self.inputs.input_formats)

    def weight_scores(self) -> dict[str, Tensor]:
        """Layer -> [formats] sum |g_W (Q(W) - W)| of the batch; 0 where the loss does not depend on the layer."""
        scores = no_costs(self.inputs, self.inputs.weight_formats)
        for layer in self.inputs.layers:
            if layer.name in self.gradients:
                for column, error in enumerate(self.inputs.weight_errors(layer)):
                    scores[layer.name][column] = (self.gradients[layer.name] * error).abs().sum().cpu()
        return scores

    def _add(self, layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        quantizers = self.quantizers.get(operation.input or "", [])
        weight = self.inputs.graph.parameter(layer.name).detach().requires_grad_()
        read = x.detach().requires_grad_(bool(quantizers))
        with torch.enable_grad():
            output = self.inputs.graph.run(operation, read, weight)
        by_weight, *by_input = torch.autograd.grad(output, [weight, read] if quantizers else [weight], gradient)
        self.gradients[layer.name] = self.gradients.get(layer.name, 0) + by_weight
        for column, quantizer in enumerate(quantizers):
            self.read_scores[layer.name][column] += ((quantizer(x) - x) * by_input[0]).abs().sum().cpu()
