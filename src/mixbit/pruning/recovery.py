"""What a network without some of its channels learns, block by block, from the network that had them."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from mixbit.core.io.store import Store
from mixbit.graph.blocks import Block, find_blocks
from mixbit.graph.graph import Graph, tensor_of
from mixbit.graph.walk import Stretch
from mixbit.pruning.channels import find_channels
from mixbit.roundings._input import RoundingInput, question_digest
from mixbit.training.blockwise import Parts, Passes, Schedule, TensorSlice, learn_blocks

#: Steps of Adam: of weights, in their own root mean squares; of biases, in root mean square errors of the block.
RATE, BIAS_RATE = 0.01, 0.05
#: Samples of a step, GiB of activations held in memory.
BATCH_SIZE, CACHE_GIB = 32, 2.0


def recovered(inputs: RoundingInput, keep: Tensor, iterations: int) -> Graph:
    """The smaller graph with weights and biases learned from the whole one, one block after the other.

    For each block, min mean (z - z')^2 over all parameters that it alone reads, with z the whole network's output of
    the block, as far as its channels are kept, and z' that of the smaller network, which reads what the blocks before
    it return: errors of earlier blocks are made up for by later ones. A block that learns nothing stays as it was.

    Args:
        inputs: The whole network, and the smaller one of the same nodes as `simulated`.
        keep: [units] of the whole network's channels that the smaller one has.
        iterations: Steps of Adam for each block, the rate falling along half a cosine.

    Source: the blocks and their loss are those of Y. Li et al., "BRECQ", arXiv 2102.05426, in float.
    """
    slices = {
        name: TensorSlice(held.dim, keep[held.units].nonzero().flatten().to(inputs.graph.device))
        for name, held in find_channels(inputs.graph).tensors.items()
        if not keep[held.units].all()
    }
    return learn_blocks(
        inputs.case,
        inputs.simulated,
        find_blocks(inputs.graph) if iterations else (),
        _Parameters,
        Schedule(iterations, BATCH_SIZE, CACHE_GIB),
        label="learn blocks",
        parts=Parts(Store(inputs.folder), "recovered", question_digest(inputs, "recovery", iterations=iterations)),
        slices=slices,
    )


class _Parameters:
    """The parameters of one block in float; a `Learner`."""

    def __init__(self, learning: Graph, block: Block, part: Stretch) -> None:
        self.block, self.part, self.parameters = block, part, _own_parameters(learning.module, part)

    def tensors(self) -> dict[str, Tensor]:
        """Full name -> copy of each parameter."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters."""
        for name, tensor in tensors.items():
            self.parameters[name].copy_(tensor)

    def begin(self, error: float) -> list[dict[str, Any]]:
        """Matrices learn at a rate relative to their size, vectors at one relative to the error."""
        groups = []
        for parameter in self.parameters.values():
            size = float(parameter.detach().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": RATE * size if parameter.ndim > 1 else BIAS_RATE * error})
            parameter.requires_grad_(True)
        return groups

    def rate(self, progress: float) -> float:
        """Half a cosine, from 1 to 0."""
        return (1 + math.cos(math.pi * progress)) / 2

    def outputs(self, passes: Passes, batch: int, rows: Tensor | None, _: torch.Generator) -> Mapping[str, Tensor]:
        """What the block returns."""
        return self.part.run(passes.inputs(self.part, batch, rows), self.block.outputs)

    def penalty(self, _: float) -> float:
        """None."""
        return 0.0

    def settle(self) -> None:
        """Take no gradients any more."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)


def _own_parameters(module: fx.GraphModule, part: Stretch) -> dict[str, nn.Parameter]:
    """Full name -> parameter of floating-point numbers that no node outside the block reads."""
    places = Counter(id(tensor_of(module, node)) for node in module.graph.find_nodes(op="get_attr"))
    inside = [node for node in part.nodes if node.op == "get_attr"]
    within = Counter(id(tensor_of(module, node)) for node in inside)
    tensors = {str(node.target): tensor_of(module, node) for node in inside}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and within[id(tensor)] == places[id(tensor)]
    }
