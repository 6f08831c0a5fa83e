"""The metrics `measured` and `measured_loss`: the network run with one tensor rounded at a time, the slow truth."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, fx, nn

from mixbit.core import Inputs, method, track
from mixbit.graph import Graph, Layer, Walker, after
from mixbit.metrics._input import (
    IGNORES_LOSS,
    MEAN_OVER_SAMPLES,
    NEEDS_LABELS,
    Costs,
    Estimate,
    MetricInput,
    averaged,
    batch_means,
)

#: (what the float network returns, what the changed one returns, labels) -> costs, [N] or [1].
Score = Callable[[Any, Any, Tensor | None], Tensor]
#: From the values of the float network's nodes, what the network returns with one change.
Rerun = Callable[[Mapping[fx.Node, Any]], Any]


@method(MEAN_OVER_SAMPLES, IGNORES_LOSS, rank=8, passes=lambda layers, choices: 0.4 * layers * choices)
def measured(inputs: MetricInput) -> Estimate:
    """KL divergence in nats of the network with one tensor rounded from the float network.

    One weight at a time in each format, for all that reads it, with biases corrected as in the deployed network; one
    input tensor at a time in each format, for all that read it. A layer's choice costs the sum of its weight and its
    inputs, an input shared among the layers that read it; effects of several roundings together are not seen. Each
    batch takes one float run, whose values stay in memory, and for each variant a run of what follows the change.

    Source: Y. Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020 (sensitivity by KL divergence),
    with bias correction and inputs.

    Returns:
        loss and standard error [L, C] in nats.
    """
    task = inputs.task

    def divergence(reference: Any, returned: Any, _: Tensor | None) -> Tensor:
        # In float32, the terms of a small divergence do not cancel.
        exact, changed = (
            {name: output.double() for name, output in task.read(each).items()} for each in (reference, returned)
        )
        return task.divergences(exact, changed).clamp(min=0)

    return averaged(inputs, _costs(inputs, divergence), shared=True)


@method(NEEDS_LABELS, rank=8, passes=lambda layers, choices: 0.4 * layers * choices)
def measured_loss(inputs: MetricInput) -> Estimate:
    """Increase of the task's loss on labels; tensors are rounded and their costs added as in `measured`.

    Outputs without labels cost their divergence from those of the float network.

    A mean increase below 0, of a weight or of an input, counts as 0: it is chance, or fits the labels at hand alone,
    and a search would chase it. So entries smaller than their standard errors, those of the increases, lean upwards.

    Returns:
        loss and standard error [L, C] in the unit of the loss; its samples are the batches, weighted by size.

    Raises:
        InvalidInput: labels that do not fit the task.
    """
    task = inputs.task

    def increase(reference: Any, returned: Any, labels: Tensor | None) -> Tensor:
        on_labels = task.loss(returned, labels) - task.loss(reference, labels)
        others = task.unlabelled_divergences(task.read(reference), task.read(returned)).mean()
        return (on_labels + others.to(on_labels)).reshape(1)

    sizes, names, parts = inputs.sizes, list[list[str]](), list[Tensor]()
    for costs in _costs(inputs, increase):  # as one tensor a batch, where there are many small ones
        names = [list(part) for part in costs]
        parts.append(torch.cat([cost for part in costs for cost in part.values()], -1))
    columns = [len(inputs.weight_formats)] * len(names[0]) + [len(inputs.input_formats)] * len(names[1])
    each = iter(torch.cat(parts).split(columns, -1))
    weights, reads = ({name: next(each) for name in part} for part in names)
    _, standard_error = batch_means(inputs.entries(weights, reads, shared=True), sizes)
    gains_nothing = [
        {name: batch_means(costs, sizes)[0].clamp(min=0) for name, costs in part.items()} for part in (weights, reads)
    ]
    return Estimate(inputs.entries(*gains_nothing, shared=True).numpy(), standard_error.numpy(), len(sizes))


@torch.no_grad()
def _costs(inputs: MetricInput, score: Score) -> Iterator[tuple[Costs, Costs]]:
    """Of every batch, layer -> costs of its weight [N, formats] and tensor -> costs of rounding it [N, formats]."""
    reruns = (
        {layer.name: _with_the_weight(inputs, layer) for layer in inputs.layers},
        {
            name: [_rerun(inputs.graph, [inputs.graph.node(name)], quantizer, {}) for quantizer in quantizers]
            for name, quantizers in inputs.quantizers.items()
        },
    )
    runs = sum(len(variants) for part in reruns for variants in part.values())
    progress = track(range(runs * len(inputs.batches)), "measure")

    def of_batch(batch: Inputs, labels: Tensor | None) -> tuple[Costs, Costs]:
        walker = Walker(inputs.graph.module, hold=True)
        reference = walker.returned(inputs.graph.leaves(batch))
        unchanged = score(reference, reference, labels)

        def costs(variants: list[Rerun]) -> Tensor:
            scores = [unchanged]  # which makes the shape where there is no format
            for rerun in variants:
                next(progress)
                scores.append(score(reference, rerun(walker.env), labels))
            return torch.stack([part.cpu().double() for part in scores], -1)[..., 1:]

        weights, reads = ({name: costs(variants) for name, variants in part.items()} for part in reruns)
        return weights, reads

    with closing(progress):
        for batch, labels in inputs.batches:
            yield of_batch(batch, labels)


def _with_the_weight(inputs: MetricInput, layer: Layer) -> list[Rerun]:
    """One in each weight format, biases corrected."""
    graph = inputs.graph
    nodes = [node for node in graph.module.graph.find_nodes(op="get_attr") if node.target == layer.name]
    means = inputs.mean_errors(layer, inputs.weight_errors(layer))
    return [
        _rerun(graph, nodes, quantizer, {name: shifts[column] for name, shifts in means.items()})
        for column, quantizer in enumerate(inputs.weight_quantizers(layer))
    ]


def _rerun(graph: Graph, nodes: list[fx.Node], quantizer: nn.Module, shifts: Mapping[str, Tensor]) -> Rerun:
    """With these nodes' values rounded, and its shift subtracted from each operator's output (node -> shift)."""
    later = after(graph, nodes)
    around = {name: lambda run, args, shift=shift: run(*args) - shift for name, shift in shifts.items()}

    def rerun(values: Mapping[fx.Node, Any]) -> Any:
        known = {node: value for node, value in values.items() if node not in later}
        known |= {node: quantizer(values[node]) for node in nodes}
        return Walker(graph.module, around, hold=True).returned((), known)  # runs what is not known

    return rerun
