"""The simulated network, run level by level while its layers are rounded one after the other."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import fx

from mixbit.core.batches import Inputs
from mixbit.graph.graph import Graph
from mixbit.graph.walk import ActivationCache

#: Bytes of tensors between two levels that stay in memory; what goes beyond lies in files.
MOST_BYTES = 2**30


class Prefix:
    """Every batch, run as far as the operators that are rounded already.

    A node's level is the number of those operators before it, itself included, on the longest way from the inputs.
    Operators of one level do not depend on one another, and all they read is there once the levels below have run. So
    all levels of all batches together cost one run of the network; between two levels, the tensors that are still to
    be read are kept for all batches, in memory up to MOST_BYTES, in temporary files beyond.

    Args:
        graph: The simulated graph; its tensors may change between two levels.
        operators: Names of the nodes that start a new level.
        batches: Inputs of the network.

    Attributes:
        levels: Node -> level, for all nodes that depend on the inputs.
        num_batches: As many as were given.
    """

    def __init__(self, graph: Graph, operators: Collection[str], batches: Iterable[Inputs]) -> None:
        self.graph = graph
        self.levels = node_levels(graph.module.graph, operators)
        self._interpreter = fx.Interpreter(graph.module)
        self._constants: dict[fx.Node, Any] = {}
        self._kept = ActivationCache(MOST_BYTES, graph.device)
        self.num_batches = 0
        placeholders = graph.module.graph.find_nodes(op="placeholder")
        for number, inputs in enumerate(batches):
            leaves = graph.leaves(inputs, f"batch {number}")
            for node, leaf in zip(placeholders, leaves, strict=True):
                self._kept.put(number, node.name, leaf)
            self.num_batches += 1

    def advance(self, batch: int, level: int) -> dict[fx.Node, Any]:
        """Run that level of the batch, the ones below having run; returns the tensors that higher levels read."""
        held = {self.graph.node(name): value for name, value in self._kept.take(batch).items()}
        values = self.run(level, held)
        for node, value in values.items():
            self._kept.put(batch, node.name, value)
        return values

    def run(self, level: int, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """As `advance`, from the given tensors, and keeps nothing."""
        reached = dict(values)
        for node in (node for node, its in self.levels.items() if its == level and node.op != "placeholder"):
            reached |= {before: self._constant(before) for before in node.all_input_nodes if before not in self.levels}
            self._interpreter.env = reached
            reached[node] = self._interpreter.run_node(node)
        return {
            node: value
            for node, value in reached.items()
            if node in self.levels and any(self.levels.get(user, 0) > level for user in node.users)
        }

    def close(self) -> None:
        """Drop all tensors."""
        self._kept.close()

    def forget_weights(self) -> None:
        """Read weights again, since some have changed."""
        self._constants.clear()

    def _constant(self, node: fx.Node) -> Any:
        """The value of a node that depends on no input: a weight, or what is made of one."""
        if node not in self._constants:
            reached = {before: self._constant(before) for before in node.all_input_nodes}
            self._interpreter.env = reached
            self._constants[node] = self._interpreter.run_node(node)
        return self._constants[node]


def node_levels(graph: fx.Graph, operators: Collection[str]) -> dict[fx.Node, int]:
    """Node -> how many of the operators there are before it, itself included; for all that depend on the inputs."""
    levels: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = [levels[one] for one in node.all_input_nodes if one in levels]
        if node.op == "placeholder" or (before and node.op != "output"):
            levels[node] = max(before, default=0) + (node.name in operators)
    return levels
