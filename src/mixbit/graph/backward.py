"""One forward and backward pass of the float graph that hands over the gradient at every layer and every input."""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import track
from mixbit.core.batches import Inputs
from mixbit.graph.case import Case
from mixbit.graph.graph import Graph, Layer, Operation, argument
from mixbit.graph.operators import FEW_ELEMENTS
from mixbit.graph.sample_axis import group_samples, sample_axis

#: (layer, operation, what it reads, gradient by its output) and (tensor's name, its value, gradient by it).
AtOperation = Callable[[Layer, Operation, Tensor, Tensor], None]
AtInput = Callable[[str, Tensor, Tensor], None]


class Backward(fx.Interpreter):
    """Calls back during backward, without gradients being recorded; parameters take none.

    Args:
        graph: The float graph.
        layers: Their operations and inputs are watched.
        at_operation: Called once for every operation that the loss depends on; None where nobody asks.
        at_input: Called once for every tensor that layers read and the loss depends on; None where nobody asks.
    """

    def __init__(
        self, graph: Graph, layers: Sequence[Layer], at_operation: AtOperation | None, at_input: AtInput | None
    ) -> None:
        super().__init__(graph.module)
        self.graph_ = graph
        pairs = [(layer, operation) for layer in layers for operation in layer.operations]
        self.operations = {one.node: (layer, one) for layer, one in pairs} if at_operation else {}
        self.inputs = {name for layer in layers for name in layer.inputs} if at_input else set()
        self.at_operation, self.at_input = at_operation, at_input

    def run_batch(self, inputs: Inputs, labels: Tensor | None, loss: Callable[[Any, Tensor | None], Tensor]) -> None:
        """Run forward, take the loss of what the model returns and the labels, run backward."""
        leaves = [
            leaf.detach().requires_grad_(leaf.is_floating_point()) if isinstance(leaf, Tensor) else leaf
            for leaf in self.graph_.leaves(inputs)
        ]
        with torch.enable_grad():
            value = loss(self.run(*leaves, enable_io_processing=False), labels)
            if value.requires_grad:  # nothing does where nothing is watched
                value.backward()

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter, without its gradient."""
        return super().get_attr(target, args, kwargs).detach()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and wait for the gradient by its output where it is watched."""
        value = super().run_node(n)
        if n.name not in self.operations and n.name not in self.inputs:
            return value
        if not value.requires_grad:
            value.requires_grad_(True)
        if n.name in self.operations:
            layer, operation = self.operations[n.name]
            x = self.env[argument(n, operation.data)].detach()
            value.register_hook(self._operation_hook(layer, operation, x))
        if n.name in self.inputs:
            value.register_hook(self._input_hook(n.name, value.detach()))
        return value

    def _operation_hook(self, layer: Layer, operation: Operation, x: Tensor) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def hook(gradient: Tensor) -> None:
            self.at_operation(layer, operation, x, gradient)  # type: ignore[misc] watched only where it is given

        return hook

    def _input_hook(self, name: str, x: Tensor) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def hook(gradient: Tensor) -> None:
            self.at_input(name, x, gradient)  # type: ignore[misc] as above

        return hook


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
        weight = self.graph.parameter(layer.name).detach()
        axes = [sample_axis(self.graph.node(operation.node)) for operation, _, _ in uses]
        if None in axes:
            axes = [None] * len(axes)
        reads = [group_samples(axis, x) for axis, (_, x, _) in zip(axes, uses, strict=True)]
        slopes = [group_samples(axis, gradient) for axis, (_, _, gradient) in zip(axes, uses, strict=True)]
        size = max(1, FEW_ELEMENTS // weight.numel())
        for start in range(0, len(slopes[0]), size):
            some = slice(start, start + size)
            parts = (
                self._sample_gradients(operation, weight, x[some], gradient[some])
                for (operation, _, _), x, gradient in zip(uses, reads, slopes, strict=True)
            )
            yield reduce(torch.add, parts)

    def _sample_gradients(self, operation: Operation, weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """[N, *weight] of each sample's gradient, for what the operator reads and the gradient by its output.

        Both are [N, rows, ...].
        """

        def dot(weight: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
            output = self.graph.run(operation, x, weight)
            mean = None if self.means is None else self.means(operation, weight)
            if mean is not None:
                output = output - operation.along_channels(mean, output.ndim)
            return (output * gradient).sum()

        return torch.func.vmap(torch.func.grad(dot), (None, 0, 0))(weight, x, gradient)


def squared_gradients(case: Case, names: tuple[str, ...]) -> dict[tuple[int, str], Tensor]:
    """(batch, node) -> g^2, over its mean, with g the gradient of the network's information by the node's tensor.

    E[g^2] is the diagonal of the Fisher information, which weighs a small error's square in the KL divergence of the
    float network's output (Li et al. 2021, BRECQ, equation 10); one draw for each sample.
    """
    generator = torch.Generator().manual_seed(case.seed)
    found = {}
    for number, (inputs, _) in enumerate(track(case.batches, "weigh errors")):
        watching = _Watching(case.graph.module, names)
        with torch.enable_grad():
            returned = watching.run(*case.graph.leaves(inputs), enable_io_processing=False)
            value = case.task.draw(case.task.outputs(returned), generator)
            wanted = list(watching.watched.values())
            gradients = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
        found |= {(number, name): one.square() for name, one in zip(watching.watched, gradients, strict=True)}
    for name in names:
        mean = torch.stack([one.mean() for (_, other), one in found.items() if other == name]).mean()
        if mean > 0:
            found |= {key: one / mean for key, one in found.items() if key[1] == name}
    return found


class _Watching(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: tuple[str, ...]) -> None:
        super().__init__(module)
        self.names = names
        self.watched: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.names:
            if not value.requires_grad:
                value.requires_grad_()
            self.watched[n.name] = value
        return value
