"""Blocks learned side by side: each reads what the float network returns, so that none waits for another."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mixbit.graph import Case, Graph
from mixbit.training.blockwise import (
    FLOAT,
    LEARNING,
    Block,
    Learner,
    Passes,
    Schedule,
    Stretch,
    learn_block,
    needed_later,
    squared_gradients,
    stretches,
)


class SideBySide:
    """Learns any block of a graph by its number, for itself: the graph's other blocks stay as they are given.

    For each block, min mean (z - z')^2, with z the float network's output of the block and z' that of the graph, which
    reads the float network's activations, through the graph's quantizers. A block stays as it was unless learning makes
    it better. Blocks asked for in the order of the network cost one run of the float network together.
    """

    def __init__(
        self,
        case: Case,
        graph: Graph,
        blocks: tuple[Block, ...],
        learner_of: Callable[[Graph, Block, Stretch], Learner],
        schedule: Schedule,
    ) -> None:
        self.case, self.blocks, self.learner_of, self.schedule = case, blocks, learner_of, schedule
        self.learning = graph.copy()
        for parameter in self.learning.module.parameters():
            parameter.requires_grad_(False)
        self.in_float, self.own = stretches(case.graph, blocks), stretches(self.learning, blocks)
        self.parts = [_with_quantizers(part, case.graph) for part in self.own]
        self.later = [
            set.union(*needed) for needed in zip(*map(needed_later, (self.in_float, self.parts)), strict=True)
        ]
        self.passes, self.reached = Passes(case, schedule.cache_gib, {}), 0

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Full name -> tensor, on the CPU, of all that learning changes in the block."""
        block, passes = self.blocks[number], self.passes
        self._reach(number)
        passes.advance(FLOAT, self.in_float[number], self.later[number] | set(block.outputs))
        self.reached += 1
        if self.schedule.fisher:
            passes.weights = squared_gradients(self.case, block.outputs)
        learner = self.learner_of(self.learning, block, self.own[number])
        fixed, learner.part = self.parts[number].divided(learner.varies, block.outputs)
        passes.advance(LEARNING, fixed, set(learner.part.inputs))
        before = learner.tensors()
        iterations, generator = self.schedule.iterations, torch.Generator().manual_seed(self.case.seed + number)
        steps = (step / iterations for step in range(iterations))
        learn_block(learner, block, passes, self.schedule, steps=steps, generator=generator)
        learned = {name: tensor.cpu().contiguous() for name, tensor in learner.tensors().items()}
        learner.put(before)
        self._forget()
        return learned

    def _reach(self, number: int) -> None:
        """Run the float network up to the block, from its inputs where it is further already."""
        if number < self.reached:
            self.passes.cache.close()
            self.reached = 0
        for place in range(self.reached, number):
            self.passes.advance(FLOAT, self.in_float[place], self.later[place])
            self.reached += 1
            self._forget()

    def _forget(self) -> None:
        """Drop what no later block reads."""
        self.passes.cache.keep_only({FLOAT + name for name in self.later[self.reached - 1]})


def _with_quantizers(part: Stretch, in_float: Graph) -> Stretch:
    """The stretch with those quantizers of others that it reads: what it reads then is in the float graph too."""
    known = {node.name for node in in_float.module.graph.nodes}
    while missing := [name for name in part.inputs if name not in known]:
        part = Stretch(part.graph, part.own.union(map(part.graph.node, missing)), part.carried)
    return part


@torch.no_grad()
def joined(graph: Graph, learned: Sequence[Mapping[str, Tensor]]) -> Graph:
    """A copy of the graph with what its blocks have learned."""
    copied = graph.copy()
    for tensors in learned:
        for name, tensor in tensors.items():
            copied.parameter(name).copy_(tensor)
    return copied
