"""What is learned of one block: roundings of weights, biases, and steps of coarse activations."""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from mixbit.biases import biases_of, settle_biases
from mixbit.blockwise.blocks import Block
from mixbit.blockwise.stretch import Stretch
from mixbit.graph import Graph
from mixbit.layers import find_layers
from mixbit.nodes import argument, get_tensor, tensor_of
from mixbit.quantizer import Quantizer
from mixbit.reconstruction import Reconstruction
from mixbit.rounding._soft import hard_weight, penalty, soft_weight, start
from mixbit.simulate import quantizer_path

#: Activations of fewer bits have their steps learned, and are left in float at random (QDrop).
FINE_BITS = 8


class SoftWeight:
    """A weight between the integers; its masked part is zero."""

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        self.quantizer, self.axis = quantizer, quantizer.axis or 0
        self.weight = weight.detach().clone() if quantizer.mask is None else weight.detach() * quantizer.mask
        self.v = start(self.weight, quantizer.scale, self.axis).requires_grad_()

    def soft(self, weight: Tensor) -> Tensor:  # noqa: ARG002 called in place of the quantizer
        """For learning."""
        return self._of(soft_weight)

    def hard(self) -> Tensor:
        """At the end."""
        return self._of(hard_weight).detach()

    def _of(self, form: Callable[..., Tensor]) -> Tensor:
        one = self.quantizer
        found = form(self.weight, self.v, (one.scale, one.zero_point), self.axis, one.format.integer_range)
        return found if one.mask is None else found * one.mask


class Learned:
    """The learned tensors of one block of the simulated graph.

    Attributes:
        weights: Path of a quantizer -> its weight.
        biases: Names of biases.
        steps: Quantizers of coarse activations.
    """

    def __init__(self, asked: Reconstruction, simulated: Graph, block: Block, part: Stretch) -> None:
        graph = asked.graph
        self.simulated, self.module = simulated, simulated.module
        layers = {layer.name: layer for layer in find_layers(graph)}
        self.weights: dict[str, SoftWeight] = {}
        for name in block.layers:
            quantizer = _weight_quantizer(simulated, name)
            operations = layers[name].operations
            looked_up = any(one.input is None for one in operations)  # by indices: it has no output but itself
            if quantizer is not None and not looked_up:
                weight = SoftWeight(quantizer, get_tensor(self.module, name))
                self.weights[quantizer_path(name, of_weight=True)] = weight
        rounded = {one.quantizer.tensor for one in self.weights.values()}
        self.biases = {
            name: _float_bias(graph, graph.node(operation.node), operation.kind.bias)
            for layer, operation, name in biases_of(simulated)
            if layer.name in rounded and operation.node in block.nodes and asked.bias_correction
        }
        found = [self.module.get_submodule(str(node.target)) for node in part.nodes if node.op == "call_module"]
        self.steps = [
            one
            for one in found
            if isinstance(one, Quantizer) and one.axis is None and one.format.bits < FINE_BITS
            if not one.format.dynamic
        ]

    def begin(self) -> None:
        """Put biases as they are in the float network, and make the steps parameters."""
        for name, bias in self.biases.items():
            parameter = get_tensor(self.module, name)
            with torch.no_grad():
                parameter.copy_(bias)
            parameter.requires_grad_(True)
        for quantizer in self.steps:
            quantizer.learn_scale()

    def state(self) -> dict[str, Tensor]:
        """Full name -> copy of each tensor that learning changes."""
        names = [*(one.quantizer.tensor for one in self.weights.values()), *self.biases]
        names += [f"{quantizer_path(one.tensor, of_weight=False)}.scale" for one in self.steps]
        return {name: get_tensor(self.module, name).detach().clone() for name in names}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the tensors of a state."""
        for quantizer in self.steps:
            quantizer.settle_scale()
        for name, tensor in state.items():
            held = get_tensor(self.module, name)
            held.requires_grad_(False)
            held.copy_(tensor)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the hard weights, the steps, and the biases rounded to them."""
        self.restore(self.state() | {one.quantizer.tensor: one.hard() for one in self.weights.values()})
        settle_biases(self.simulated, list(self.biases))

    def undecided(self, beta: float) -> Tensor:
        """The penalty, a mean over all weights of the block."""
        count = sum(one.v.numel() for one in self.weights.values())
        return torch.stack([penalty(one.v, beta) * (one.v.numel() / count) for one in self.weights.values()]).sum()

    def replaced(self, drop: float, generator: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
        """Path of a quantizer -> what to call in its place while learning."""
        calls: dict[str, Callable[[Tensor], Tensor]] = {path: one.soft for path, one in self.weights.items()}
        if drop > 0:
            for quantizer in self.steps:
                calls[quantizer_path(quantizer.tensor, of_weight=False)] = _dropping(quantizer, drop, generator)
        return calls


def mixed(rounded: Tensor, other: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The first tensor, with that share of its numbers, drawn at random, from the other."""
    return torch.where((torch.rand(rounded.shape, generator=generator) < share).to(rounded.device), other, rounded)


def _dropping(quantizer: Quantizer, drop: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda x: mixed(quantizer(x), x, drop, generator)


def _weight_quantizer(simulated: Graph, name: str) -> Quantizer | None:
    """The quantizer of a weight that is rounded to integers."""
    try:
        found = simulated.module.get_submodule(quantizer_path(name, of_weight=True))
    except AttributeError:
        return None
    return found if isinstance(found, Quantizer) and found.format.floating is None else None


def _float_bias(graph: Graph, node: fx.Node, position: int | None) -> Tensor:
    bias = argument(node, position)
    return torch.zeros(()) if bias is None else tensor_of(graph.module, bias).detach()
