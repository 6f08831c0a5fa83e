"""The metric `modelopt`: squares of gradient times error at the operators' outputs, as NVIDIA ModelOpt scores."""

from functools import partial

import torch
from torch import Tensor

from mixbit.core import Inputs, method, track
from mixbit.graph import Backward, Layer, Operation
from mixbit.metrics._input import MEAN_OVER_SAMPLES, NEEDS_LABELS, Costs, Estimate, MetricInput, averaged


@method(MEAN_OVER_SAMPLES, NEEDS_LABELS, rank=6, passes=lambda *_: 3)
def modelopt(inputs: MetricInput) -> Estimate:
    """Sum over the elements of an operator's output Y of (dl/dY (Y_q - Y))^2, the mean over samples.

    l is the loss of the sample's own label and Y_q the output with the rounded weight; for an input format, the same
    with the rounded input is added. Every layer is scored at its own output, also where several read one tensor. No
    bias correction, as published. Where samples share an operator's output, the square of its one gradient counts.

    Source: NVIDIA TensorRT Model Optimizer, `auto_quantize` (its gradient score, there with gradients of the batch).

    Returns:
        loss and standard error [L, C], in squares of the loss.

    Raises:
        InvalidInput: labels that do not fit the task.
    """
    generator = torch.Generator().manual_seed(inputs.seed)
    scores = (_scores(inputs, *pair, generator) for pair in track(inputs.batches, "measure"))
    return averaged(inputs, scores, shared=False)


def _scores(
    inputs: MetricInput, batch: Inputs, labels: Tensor | None, generator: torch.Generator
) -> tuple[Costs, Costs]:
    """Layer -> [N, formats] of its weight, and of its inputs: sums of (gradient x error)^2 of each sample."""
    count = batch.batch_size
    costs_of_parts = inputs.zero_costs(count)

    def add(layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        for costs, errors in zip(costs_of_parts, inputs.output_errors(layer, operation, x), strict=True):
            for column, error in enumerate(errors):
                products = backward.by_sample(operation.node, gradient * error).flatten(1)
                scores = products.square().sum(1).cpu().double()
                costs[layer.name][: len(scores), column] += scores

    # The loss is the mean of the batch, and a sample's own gradient is wanted.
    loss = partial(inputs.task.full_loss, generator=generator)
    backward = Backward(inputs.graph, inputs.layers, add)
    backward.run_batch(batch, labels, lambda *pair: loss(*pair) * count)
    return costs_of_parts
