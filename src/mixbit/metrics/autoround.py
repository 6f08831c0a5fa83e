"""The metric `autoround`: sizes of gradient times error, to first order, as Intel AutoRound's AutoScheme scores."""

from functools import partial

import torch
from torch import Tensor

from mixbit.core import Inputs, method, track
from mixbit.graph import Backward, Layer, Operation
from mixbit.metrics._input import NEEDS_LABELS, Estimate, MetricInput, batch_means


@method(NEEDS_LABELS, rank=7, passes=lambda *_: 5)
def autoround(inputs: MetricInput) -> Estimate:
    """Sum |g_W (Q(W) - W)| + sum |g_x (Q(x) - x)| over the elements of a layer's weight and of what it reads.

    Gradients of the mean loss of a batch with labels: g_W over all that reads the weight, g_x through the layer itself
    alone, also where others read the same tensor. Sizes are taken after summing g_W over the batch, so that the
    entries of a weight shrink with larger batches; those of inputs do not. No bias correction, as published.

    Source: W. Cheng et al., "SignRoundV2", 2025 (DeltaLoss), and Intel AutoRound's AutoScheme.

    Returns:
        loss and standard error [L, C] in the unit of the loss; its samples are the batches, weighted by size.

    Raises:
        InvalidInput: labels that do not fit the task.
    """
    generator = torch.Generator().manual_seed(inputs.seed)
    rows = torch.stack([_entries(inputs, *pair, generator) for pair in track(inputs.batches, "measure")])
    loss, standard_error = batch_means(rows, inputs.sizes)
    return Estimate(loss.numpy(), standard_error.numpy(), len(rows))


def _entries(inputs: MetricInput, batch: Inputs, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """[L, C] of one batch; 0 where the loss does not depend on the layer."""
    graph, gradients = inputs.graph, dict[str, Tensor]()
    weights, reads = inputs.zero_costs()

    def add(layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        quantizers = inputs.quantizers.get(operation.input or "", [])
        weight = graph.parameter(layer.name).detach().requires_grad_()
        read = x.detach().requires_grad_(bool(quantizers))
        with torch.enable_grad():
            output = graph.run(operation, read, weight)
        by_weight, *by_input = torch.autograd.grad(output, [weight, read] if quantizers else [weight], gradient)
        gradients[layer.name] = gradients.get(layer.name, 0) + by_weight
        for column, quantizer in enumerate(quantizers):
            reads[layer.name][column] += ((quantizer(x) - x) * by_input[0]).abs().sum().cpu()

    loss = partial(inputs.task.full_loss, generator=generator)
    Backward(graph, inputs.layers, add).run_batch(batch, labels, loss)
    for layer in inputs.layers:
        if layer.name in gradients:
            for column, error in enumerate(inputs.weight_errors(layer)):
                weights[layer.name][column] = (gradients[layer.name] * error).abs().sum().cpu()
    return inputs.entries(weights, reads, shared=False)
