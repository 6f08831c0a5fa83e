"""Blocks: stretches of a graph between tensors through which everything flows, as residual blocks are."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from mixbit.graph.dataflow import activations, after
from mixbit.graph.graph import Graph, packet
from mixbit.graph.operators import NONLINEARITIES


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: Their names, in execution order.
        outputs: Names of its nodes whose tensors it is there to make: what later nodes read of it.
        layers: Names of the layers whose weight is first read in it.
    """

    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """The shortest stretches with a layer that end in a single tensor, through which all that follows goes.

    Tensors that depend on no layer, as masks do, may pass by. A function of each number (ReLU, GELU) right behind a
    block belongs to it; where no single tensor ends the last block, it has several outputs.
    """
    nodes = _calls(graph)
    made = {node: place for place, node in enumerate(nodes)}
    operators = {graph.node(operation.node) for layer in graph.layers for operation in layer.operations}
    later = after(graph.module.graph, operators) & set(nodes)
    later &= activations(graph) | {node for node in later if not _is_float(node)}
    last = {node: max((made.get(user, len(nodes)) for user in node.users), default=0) for node in later}
    ends, alive = set(), set()
    dying = defaultdict(set)
    for node in later:
        dying[last[node]].add(node)
    for place, node in enumerate(nodes):
        alive -= dying[place]
        if node in later and last[node] > place:
            alive.add(node)
        if alive == {node} and _is_float(node):
            ends.add(place)
    return _stretches(graph, nodes, ends)


def single_layers(graph: Graph) -> tuple[Block, ...]:
    """A stretch for each operator of a layer, which ends with it or with a function of each number right behind it."""
    nodes = _calls(graph)
    data = activations(graph)
    operators = {graph.node(operation.node) for layer in graph.layers for operation in layer.operations} & data
    return _stretches(graph, nodes, {place for place, node in enumerate(nodes) if node in operators})


def _stretches(graph: Graph, nodes: list[fx.Node], ends: set[int]) -> tuple[Block, ...]:
    """The nodes parted behind these places, so that each part holds a layer."""
    first = {graph.node(layer.operations[0].node): layer.name for layer in graph.layers}
    parts: list[list[fx.Node]] = [[]]
    for place, node in enumerate(nodes):
        if not parts[-1] and len(parts) > 1 and _follows(node, nodes[place - 1]):
            parts[-2].append(node)
            continue
        parts[-1].append(node)
        if place in ends and any(one in first for one in parts[-1]):
            parts.append([])
    if not any(node in first for node in parts[-1]) and len(parts) > 1:
        parts.pop()  # what follows the last layer, to the outputs
    data = activations(graph)
    return tuple(_block(part, first, data) for part in parts)


def _follows(node: fx.Node, before: fx.Node) -> bool:
    """Whether the node is a function of each number of the one before it, which nobody else reads."""
    return packet(node) in NONLINEARITIES and node.all_input_nodes == [before] and len(before.users) == 1


def _block(part: list[fx.Node], first: dict[fx.Node, str], data: frozenset[fx.Node]) -> Block:
    held = set(part)
    later = after(part[0].graph, held & first.keys())
    outputs = [node for node in part if node in data and any(user not in held for user in node.users)]
    return Block(
        tuple(node.name for node in part),
        tuple(node.name for node in outputs if node in later),
        tuple(first[node] for node in part if node in first),
    )


def _calls(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


def _is_float(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
