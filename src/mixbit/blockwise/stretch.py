"""Running a stretch of a graph alone, on cached tensors."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.blockwise.blocks import Block
from mixbit.graph import Graph


class Stretch:
    """One block of a float or simulated graph: the nodes to run, and the tensors it reads from outside.

    Attributes:
        inputs: Names of nodes outside whose tensors depend on the data.
        nodes: The nodes to run, parameters, constants and sizes among them.
        made: Names of the nodes whose tensors it makes.
    """

    def __init__(self, graph: Graph, own: frozenset[fx.Node], carried: frozenset[fx.Node]) -> None:
        self.graph, self.interpreter = graph, _Interpreter(graph.module)
        inputs: dict[str, None] = {}
        needed: set[fx.Node] = set()

        waiting = list(own)
        while waiting:
            node = waiting.pop()
            if node in carried and node not in own:
                inputs[node.name] = None
            elif node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        self.nodes = [node for node in graph.module.graph.nodes if node in needed]
        self.made = frozenset(node.name for node in own)
        self.inputs = tuple(node.name for node in graph.module.graph.nodes if node.name in inputs)

    def run(
        self,
        tensors: Mapping[str, Tensor],
        outputs: Iterable[str],
        replaced: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Name -> tensor for the wanted nodes.

        Args:
            tensors: Those of `inputs`, by name.
            outputs: Names of wanted nodes: of the block, or inputs that pass by.
            replaced: Path of a module in the graph -> what to call in its place.
        """
        self.interpreter.replaced = replaced or {}
        env = self.interpreter.env = {self.graph.node(name): tensors[name] for name in self.inputs}
        for node in self.nodes:
            env[node] = self.interpreter.run_node(node)
        self.interpreter.env = {}
        return {name: env[self.graph.node(name)] for name in outputs}


class _Interpreter(fx.Interpreter):
    replaced: Mapping[str, Callable[[Tensor], Tensor]]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        call = self.replaced.get(str(target))
        return super().call_module(target, args, kwargs) if call is None else call(*args)


def stretches(graph: Graph, blocks: tuple[Block, ...]) -> list[Stretch]:
    """The blocks as stretches of the graph they were found in, or of its simulation.

    Quantizers of activations run in the block that first reads what they return.
    """
    places = {name: number for number, block in enumerate(blocks) for name in block.nodes}
    own: list[set[fx.Node]] = [set() for _ in blocks]
    for node in reversed(graph.module.graph.nodes):
        if node.op == "call_module":
            places[node.name] = min((places[user.name] for user in node.users if user.name in places), default=-1)
        if places.get(node.name, -1) >= 0:
            own[places[node.name]].add(node)
    carried = _carried(graph.module)
    return [Stretch(graph, frozenset(nodes & carried), carried) for nodes in own]


def _carried(module: fx.GraphModule) -> frozenset[fx.Node]:
    """The nodes whose tensors depend on the inputs; sizes, which can be read again, are none."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            continue
        if node.op == "placeholder" or any(before in found for before in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def needed_later(parts: list[Stretch]) -> list[set[str]]:
    """For each stretch, the tensors that those after it read."""
    later: list[set[str]] = []
    wanted: set[str] = set()
    for part in reversed(parts):
        later.append(set(wanted))
        wanted |= set(part.inputs)
    return later[::-1]
