"""Each sample's gradient by every weight, handed over during one backward pass."""

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor, fx

from mixbit.graph import Graph
from mixbit.layers import Layer
from mixbit.nodes import get_tensor
from mixbit.operators import FEW_ELEMENTS, Operation, run_operation
from mixbit.samples import group_samples, sample_axis

#: (layer, its samples' gradients [N, *weight], a few samples at a time; one for the batch where none can be told apart)
AtWeight = Callable[[Layer, Iterator[Tensor]], None]
#: (operator, weight) -> [channels] what is taken off its output, linear in the weight; None where nothing is.
Means = Callable[[Operation, Tensor], Tensor | None]


class SampleGradients:
    """Waits for every operator of a weight, and then gives the weight's gradients of all samples.

    A weight that several operators use takes the sum of their gradients. Where the samples of some operator cannot be
    told apart, as in a position embedding that all share, the batch's gradient stands for them.

    Args:
        graph: The float graph.
        at_weight: Called once a layer and batch; it goes through the gradients.
        means: What bias correction takes off each operator's output for a change of its weight; gradients are then
            those of the corrected network. None for the gradients as they are.
    """

    def __init__(self, graph: Graph, at_weight: AtWeight, means: Means | None = None) -> None:
        self.graph, self.at_weight, self.means = graph, at_weight, means
        #: Layer -> what its operators read, and the gradients by their outputs, until all of them have called.
        self.uses: dict[str, list[tuple[Operation, Tensor, Tensor]]] = {}

    def add_use(self, layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        """Take what one operator reads and the gradient by its output, as `Backward` hands them over."""
        self.uses.setdefault(layer.name, []).append((operation, x, gradient))
        if len(self.uses[layer.name]) == len(layer.operations):
            self._hand_over(layer)

    def finish_batch(self, layers: tuple[Layer, ...]) -> None:
        """Hand over the layers of which the loss does not depend on every operator."""
        for layer in layers:
            if layer.name in self.uses:
                self._hand_over(layer)

    @torch.no_grad()
    def _hand_over(self, layer: Layer) -> None:
        self.at_weight(layer, self._gradients(layer, self.uses.pop(layer.name)))

    def _gradients(self, layer: Layer, uses: list[tuple[Operation, Tensor, Tensor]]) -> Iterator[Tensor]:
        nodes = [self.graph.node(operation.node) for operation, _, _ in uses]
        weight = get_tensor(self.graph.module, layer.name).detach()
        axes = [sample_axis(node) for node in nodes]
        if None in axes:
            axes = [None] * len(axes)
        reads = [group_samples(axis, x) for axis, (_, x, _) in zip(axes, uses, strict=True)]
        slopes = [group_samples(axis, gradient) for axis, (_, _, gradient) in zip(axes, uses, strict=True)]
        size = max(1, FEW_ELEMENTS // weight.numel())
        for start in range(0, len(slopes[0]), size):
            some = slice(start, start + size)
            parts = (
                self._sample_gradients(node, operation, weight, x[some], gradient[some])
                for node, (operation, _, _), x, gradient in zip(nodes, uses, reads, slopes, strict=True)
            )
            yield reduce(torch.add, parts)

    def _sample_gradients(
        self, node: fx.Node, operation: Operation, weight: Tensor, x: Tensor, gradient: Tensor
    ) -> Tensor:
        """[N, *weight] of each sample's gradient, for what the operator reads and the gradient by its output.

        Both are [N, rows, ...].
        """

        def dot(weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
            output = run_operation(node, operation, x, weight)
            mean = None if self.means is None else self.means(operation, weight)
            if mean is not None:
                output = output - operation.along_channels(mean, output.ndim)
            return (output * gradient).sum()

        return torch.func.vmap(torch.func.grad(dot), (None, 0, 0))(weight, x, gradient)
