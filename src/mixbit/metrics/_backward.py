"""One forward and backward pass of the float graph that hands over the gradient at every layer and every input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.estimate import Question
from mixbit.layers import Layer
from mixbit.nodes import argument
from mixbit.operators import Operation
from mixbit.task import Inputs

#: (layer, operation, what it reads, gradient by its output) and (tensor's name, its value, gradient by it).
AtOperation = Callable[[Layer, Operation, Tensor, Tensor], None]
AtInput = Callable[[str, Tensor, Tensor], None]


class Backward(fx.Interpreter):
    """Calls back during backward, without gradients being recorded; parameters take none.

    Args:
        question: Its graph is run; its layers' operations and inputs are watched.
        at_operation: Called once for every operation that the loss depends on; None where nobody asks.
        at_input: Called once for every tensor that layers read and the loss depends on; None where nobody asks.
    """

    def __init__(self, question: Question, at_operation: AtOperation | None, at_input: AtInput | None) -> None:
        super().__init__(question.graph.module)
        self.graph_ = question.graph
        pairs = [(layer, operation) for layer in question.layers for operation in layer.operations]
        self.operations = {one.node: (layer, one) for layer, one in pairs} if at_operation else {}
        self.inputs = set(question.readers) if at_input else set()
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
        return super().get_attr(target, args, kwargs).detach()

    def run_node(self, n: fx.Node) -> Any:
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
