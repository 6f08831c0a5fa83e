"""The metrics `measured` and `measured_loss`: the network run with one tensor rounded at a time, the slow truth."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from mixbit.core import Scheme, method, track
from mixbit.core.batches import Inputs
from mixbit.graph.graph import Graph, Layer
from mixbit.graph.layers import after
from mixbit.graph.walk import Walker
from mixbit.metrics._input import IGNORES_LOSS, MEAN_OVER_SAMPLES, NEEDS_LABELS, Costs, Estimate, MetricInput, averaged
from mixbit.quantization.calibrate import weight_quantizer
from mixbit.quantization.offers import why_not
from mixbit.quantization.statistics import batch_means

#: (what the float network returns, what the changed one returns, labels) -> costs, [N] or [1].
Score = Callable[[Any, Any, Tensor | None], Tensor]


@method(MEAN_OVER_SAMPLES, IGNORES_LOSS, rank=8)
def measured(inputs: MetricInput) -> Estimate:
    """KL divergence in nats of the network with one tensor rounded from the float network.

    One weight at a time in each format, for all that reads it, with the bias that is deployed: less the mean that the
    rounding error adds on the calibration data. One input tensor at a time in each format, for all that read it. What a
    layer's choice costs is the sum of its weight and its inputs, an input shared among the layers that read it; what
    rounding several tensors does together is not seen. A float run per batch, and of each variant what comes after the
    change; the values of one batch's float run are kept in memory.

    Source: Y. Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020 (sensitivity by KL divergence),
    with bias correction and inputs.

    Returns:
        loss and standard error [L, C] in nats.
    """
    task = inputs.task

    def divergence(reference: Any, returned: Any, _: Tensor | None) -> Tensor:
        # In float32, the terms of a small divergence do not cancel.
        return task.divergence(task.outputs(reference).double(), task.outputs(returned).double()).clamp(min=0)

    return averaged(inputs, _costs(inputs, divergence))


@method(NEEDS_LABELS, rank=8)
def measured_loss(inputs: MetricInput) -> Estimate:
    """Increase of the task's loss on labels; tensors are rounded and their costs added as in `measured`.

    A mean increase below 0, of a weight or of an input, counts as 0: it is chance, or fits the labels at hand alone,
    and a search would go after it. So entries lean upwards where they are smaller than their standard errors, which
    are those of the increases as they are.

    Returns:
        loss and standard error [L, C] in the unit of the loss; its samples are the batches, weighted by size, since
        a loss is the mean of a batch.

    Raises:
        InvalidInput: labels that do not fit the task.
    """
    loss = inputs.task.loss

    def increase(reference: Any, returned: Any, labels: Tensor | None) -> Tensor:
        return (loss(returned, labels) - loss(reference, labels)).reshape(1)

    batches = list(_costs(inputs, increase))
    sizes = torch.tensor([batch.batch_size for batch, _ in inputs.batches])
    weights, reads = (
        {name: torch.cat([batch[part][name] for batch in batches]) for name in batches[0][part]} for part in (0, 1)
    )
    _, standard_error = batch_means(inputs.entries(weights, reads), sizes)
    gains_nothing = [
        {name: batch_means(costs, sizes)[0].clamp(min=0) for name, costs in part.items()} for part in (weights, reads)
    ]
    return Estimate(inputs.entries(*gains_nothing).numpy(), standard_error.numpy(), len(batches))


@dataclass(frozen=True)
class _Change:
    """One tensor in one format.

    Attributes:
        nodes: Nodes whose values are rounded.
        quantizer: Rounds them.
        after: Nodes that depend on them.
        shifts: Operator's node -> what its corrected bias takes off its output.
    """

    nodes: frozenset[fx.Node]
    quantizer: nn.Module
    after: frozenset[fx.Node]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def _costs(inputs: MetricInput, score: Score) -> Iterator[tuple[Costs, Costs]]:
    """Of every batch, layer -> costs of its weight [N, formats] and tensor -> costs of rounding it [N, formats]."""
    changes = (
        {layer.name: _weight_changes(inputs, layer) for layer in inputs.layers},
        {name: _read_changes(inputs, name) for name in inputs.readers},
    )
    runs = sum(len(variants) for part in changes for variants in part.values())
    progress = track(range(runs * len(inputs.batches)), "measure")

    def of_batch(batch: Inputs, labels: Tensor | None) -> tuple[Costs, Costs]:
        walker = Walker(inputs.graph.module, hold=True)
        reference = walker.returned(inputs.graph.leaves(batch))
        unchanged = score(reference, reference, labels)

        def costs(variants: list[_Change]) -> Tensor:
            scores = [unchanged]  # which makes the shape where there is no format
            for change in variants:
                next(progress)
                scores.append(score(reference, _rerun(inputs.graph, walker.env, change), labels))
            return torch.stack([part.cpu().double() for part in scores], -1)[..., 1:]

        weights, reads = ({name: costs(variants) for name, variants in part.items()} for part in changes)
        return weights, reads

    with closing(progress):
        for batch, labels in inputs.batches:
            yield of_batch(batch, labels)


def _weight_changes(inputs: MetricInput, layer: Layer) -> list[_Change]:
    graph, calibration = inputs.graph, inputs.calibration
    nodes = frozenset(node for node in graph.module.graph.find_nodes(op="get_attr") if node.target == layer.name)
    later = after(graph.module.graph, nodes) - nodes
    errors = inputs.weight_errors(layer)
    means = {operation: inputs.mean_errors(operation, errors) for operation in layer.operations}
    changes = []
    for column, fmt in enumerate(inputs.weight_formats):
        shifts = {
            operation.node: operation.along_channels(mean[column], len(graph.shapes[operation.node]))
            for operation, mean in means.items()
            if mean is not None
        }
        fits = why_not(layer, Scheme(fmt)) is None
        quantizer = weight_quantizer(graph, layer, fmt, calibration) if fits else nn.Identity()
        changes.append(_Change(nodes, quantizer, later, shifts))
    return changes


def _read_changes(inputs: MetricInput, name: str) -> list[_Change]:
    nodes = frozenset([inputs.graph.node(name)])
    later = after(inputs.graph.module.graph, nodes) - nodes
    return [_Change(nodes, quantizer, later) for quantizer in inputs.quantizers[name]]


def _rerun(graph: Graph, values: Mapping[fx.Node, Any], change: _Change) -> Any:
    """What the graph returns with the change, from the values of its nodes on the same inputs without it."""
    known = {node: value for node, value in values.items() if node not in change.after}
    known |= {node: change.quantizer(values[node]) for node in change.nodes}
    shifted = {name: partial(_shifted, shift) for name, shift in change.shifts.items()}
    walker = Walker(graph.module, shifted, hold=True)
    return walker.run(initial_env=known, enable_io_processing=False)  # runs what is not known


def _shifted(shift: Tensor, run: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
    return run(*args) - shift
