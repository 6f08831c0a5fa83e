"""Blocks: stretches of a graph between tensors through which everything flows, as residual blocks are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from mixbit.graph.graph import Graph, packet
from mixbit.graph.layers import NONLINEARITIES, activations, after, is_float
from mixbit.graph.walk import Walker


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: Their names, in execution order.
        outputs: Names of its nodes whose tensors depend on its layers and are read by later nodes.
        layers: Names of the layers whose weight is first read in it.
    """

    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """The shortest stretches with a layer that end in a single tensor, through which all that follows goes.

    Tensors that depend on no layer, such as masks, may pass by. An elementwise function (ReLU, GELU) right behind a
    block belongs to it. Where no single tensor ends the last block, it has several outputs.
    """
    nodes, data = _calls(graph), activations(graph)
    places = {node: place for place, node in enumerate(nodes)}
    later = after(graph.module.graph, {graph.node(name) for name in graph.operations})
    ends, reach = set(), 0  # reach: the last place that reads a tensor made before
    for place, node in enumerate(nodes):
        if node in later and (node in data or not is_float(node)):
            last = max((places.get(user, len(nodes)) for user in node.users), default=0)
            if is_float(node) and reach <= place < last:
                ends.add(place)
            reach = max(reach, last)
    return _stretches(graph, nodes, ends)


def single_layers(graph: Graph) -> tuple[Block, ...]:
    """A stretch for each operator of a layer, up to it or to a function of each number right behind it."""
    nodes, data = _calls(graph), activations(graph)
    ends = {place for place, node in enumerate(nodes) if node.name in graph.operations and node in data}
    return _stretches(graph, nodes, ends)


def _stretches(graph: Graph, nodes: list[fx.Node], ends: set[int]) -> tuple[Block, ...]:
    """The nodes cut behind these places, so that each part holds a layer."""
    first = {graph.node(layer.operations[0].node): layer.name for layer in graph.layers}
    parts: list[list[fx.Node]] = [[]]
    for place, node in enumerate(nodes):
        if not parts[-1] and len(parts) > 1 and packet(node) in NONLINEARITIES:
            before = nodes[place - 1]
            if node.all_input_nodes == [before] and len(before.users) == 1:
                parts[-2].append(node)
                continue
        parts[-1].append(node)
        if place in ends and not first.keys().isdisjoint(parts[-1]):
            parts.append([])
    if first.keys().isdisjoint(parts[-1]) and len(parts) > 1:
        parts.pop()  # what follows the last layer, to the outputs
    data, blocks = activations(graph), []
    for part in parts:
        later = data & after(graph.module.graph, set(part) & first.keys())
        outputs = [node for node in part if node in later and not node.users.keys() <= set(part)]
        layers = [first[node] for node in part if node in first]
        blocks.append(Block(tuple(node.name for node in part), tuple(node.name for node in outputs), tuple(layers)))
    return tuple(blocks)


def _calls(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


class Stretch:
    """One block of a float or simulated graph.

    Attributes:
        inputs: Names of nodes outside that it reads and whose tensors depend on the data.
        nodes: The nodes to run, including parameters, constants and sizes.
        made: Names of the nodes whose tensors it makes.
    """

    def __init__(self, graph: Graph, own: frozenset[fx.Node], carried: frozenset[fx.Node]) -> None:
        self.graph = graph
        inputs: set[fx.Node] = set()
        needed: set[fx.Node] = set()
        waiting = list(own)
        while waiting:
            node = waiting.pop()
            if node in carried and node not in own:
                inputs.add(node)
            elif node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        self.nodes = [node for node in graph.module.graph.nodes if node in needed]
        self.made = frozenset(node.name for node in own)
        self.inputs = tuple(node.name for node in graph.module.graph.nodes if node in inputs)

    def run(
        self,
        tensors: Mapping[str, Tensor],
        outputs: Iterable[str],
        replaced: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Name -> tensor for the outputs: nodes or inputs; `replaced` holds what to call by the path of a module."""
        calls = {
            node.name: lambda _, args, call=replaced[str(node.target)]: call(*args)
            for node in self.nodes
            if replaced and node.op == "call_module" and str(node.target) in replaced
        }
        walker = Walker(self.graph.module, calls)
        env = walker.env = {self.graph.node(name): tensors[name] for name in self.inputs}
        for node in self.nodes:
            env[node] = walker.run_node(node)
        return {name: env[self.graph.node(name)] for name in outputs}


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
    carried = after(graph.module.graph, graph.module.graph.find_nodes(op="placeholder"))
    return [Stretch(graph, frozenset(nodes & carried), carried) for nodes in own]


def needed_later(parts: list[Stretch]) -> list[set[str]]:
    """For each stretch, the tensors that those after it read."""
    return [set().union(*(part.inputs for part in parts[number:])) for number in range(1, len(parts) + 1)]
