"""Gradients of the float graph at its layers and their inputs, from one forward and backward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from mixbit.core import Inputs
from mixbit.graph.graph import FEW_ELEMENTS, Graph, Layer, Operation, group_samples, sample_axis
from mixbit.graph.walk import Around, Walker, seen

#: (layer, operation, what it reads, gradient by its output) and (tensor's name, its value, gradient by it).
AtOperation = Callable[[Layer, Operation, Tensor, Tensor], None]
AtInput = Callable[[str, Tensor, Tensor], None]


def run_for_gradients(graph: Graph, inputs: Inputs, around: Mapping[str, Around]) -> Any:
    """What the graph returns, with gradients recorded for its inputs and its tensors but not for its parameters."""
    leaves = [
        leaf.detach().requires_grad_(leaf.is_floating_point()) if isinstance(leaf, Tensor) else leaf
        for leaf in graph.leaves(inputs)
    ]
    with torch.enable_grad():
        return Walker(graph.module, around, frozen=True).returned(leaves)


class Backward:
    """Runs the float graph forward and backward, and passes on the gradients at operations and at inputs of layers.

    `at_operation` is called once for every operation, and `at_input` once for every tensor that layers read, that the
    loss depends on; None where it is not needed.
    """

    def __init__(
        self, graph: Graph, layers: Sequence[Layer], at_operation: AtOperation | None, at_input: AtInput | None
    ) -> None:
        self.graph = graph
        pairs = [(layer, operation) for layer in layers for operation in layer.operations]
        self.operations = {operation.node: (layer, operation) for layer, operation in pairs} if at_operation else {}
        self.inputs = {name for layer in layers for name in layer.inputs} if at_input else set()
        self.at_operation, self.at_input = at_operation, at_input
        self.around = {name: seen(partial(self._watch, name)) for name in {*self.operations, *self.inputs}}

    def run_batch(self, inputs: Inputs, labels: Tensor | None, loss: Callable[[Any, Tensor | None], Tensor]) -> None:
        """Run forward, take the loss of what the model returns and the labels, run backward."""
        with torch.enable_grad():
            value = loss(run_for_gradients(self.graph, inputs, self.around), labels)
            if value.requires_grad:  # nothing does where nothing is watched
                value.backward()

    def _watch(self, name: str, value: Tensor, args: tuple[Any, ...]) -> None:
        if not value.requires_grad:
            value.requires_grad_(True)
        if name in self.operations:
            layer, operation = self.operations[name]
            x = args[operation.data].detach()
            value.register_hook(torch.no_grad()(lambda gradient: self.at_operation(layer, operation, x, gradient)))  # type: ignore[misc] watched only where it is given
        if name in self.inputs:
            held = value.detach()
            value.register_hook(torch.no_grad()(lambda gradient: self.at_input(name, held, gradient)))  # type: ignore[misc] as above


#: (layer, its samples' gradients [N, *weight], a few samples at a time; one for the batch where none can be told apart)
AtWeight = Callable[[Layer, Iterator[Tensor]], None]
#: (operator, weight) -> [channels] what is taken off its output, linear in the weight; None where nothing is.
Means = Callable[[Operation, Tensor], Tensor | None]


class SampleGradients:
    """Waits for every operator of a weight, and then gives the weight's gradients of all samples.

    A weight that several operators use takes the sum of their gradients. Where the samples of some operator cannot be
    told apart, as in a position embedding that all share, the batch's gradient stands for them. `at_weight` is called
    once a layer and batch. With `means`, what bias correction takes off each operator's output for a change of its
    weight, gradients are those of the corrected network.
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

    def finish_batch(self, layers: Sequence[Layer]) -> None:
        """Hand over the layers of which the loss does not depend on every operator."""
        for layer in layers:
            if layer.name in self.uses:
                self._hand_over(layer)

    @torch.no_grad()
    def _hand_over(self, layer: Layer) -> None:
        self.at_weight(layer, self._gradients(layer, self.uses.pop(layer.name)))

    def _gradients(self, layer: Layer, uses: list[tuple[Operation, Tensor, Tensor]]) -> Iterator[Tensor]:
        weight = self.graph.parameter(layer.name).detach()
        axes = [sample_axis(self.graph.node(operation.node)) for operation, _, _ in uses]
        if None in axes:
            axes = [None] * len(axes)
        grouped = [
            (operation, group_samples(axis, x), group_samples(axis, gradient))
            for axis, (operation, x, gradient) in zip(axes, uses, strict=True)
        ]
        size = max(1, FEW_ELEMENTS // weight.numel())
        for start in range(0, len(grouped[0][2]), size):
            some = slice(start, start + size)
            parts = (self._sample_gradients(each, weight, x[some], gradient[some]) for each, x, gradient in grouped)
            yield reduce(torch.add, parts)

    def _sample_gradients(self, operation: Operation, weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """[N, *weight] of each sample's gradient, for x and the gradient by the output, both [N, rows, ...]."""

        def dot(weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
            output = self.graph.run(operation, x, weight)
            mean = None if self.means is None else self.means(operation, weight)
            if mean is not None:
                output = output - operation.along_channels(mean, output.ndim)
            return (output * gradient).sum()

        return torch.func.vmap(torch.func.grad(dot), (None, 0, 0))(weight, x, gradient)
