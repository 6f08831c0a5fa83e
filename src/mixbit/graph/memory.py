"""Which activations are alive at once: what the resource `activation_bytes` counts."""

import math

import numpy as np
import torch
from torch import fx

from mixbit.core import FloatArray, Target
from mixbit.graph.dataflow import activations, inputs_between, source_of
from mixbit.graph.graph import Graph, packet
from mixbit.graph.operators import ARITHMETIC, NONLINEARITIES

_aten = torch.ops.aten

#: Operators that can put their result in the place of what they read last.
_IN_PLACE = NONLINEARITIES | ARITHMETIC | {_aten.softmax, _aten.layer_norm, _aten.batch_norm}


def live_activations(graph: Graph, target: Target) -> FloatArray:
    """[S, 1 + L]: for each moment of one sample's run, what is alive.

    The first column is in bytes: tensors whose format no layer decides, 1 byte a number where the target's operators
    between layers read them in integers, else 4. The others are numbers in the tensors that each layer reads, which
    take the bytes of its input's format; of layers that read one tensor, the first has it.

    A tensor lives from the operator that makes it to the last that reads it; what only moves values shares its memory;
    an element-wise operator works in place of a tensor that nobody reads after it. Moments at which no more is alive
    than at another are left out. Runtimes that plan their memory worse need more.
    """
    nodes = list(graph.module.graph.nodes)
    data = activations(graph)
    made = {node: place for place, node in enumerate(nodes) if node in data and source_of(node) is node}
    last = dict(made)
    for place, node in enumerate(nodes):
        for read in node.all_input_nodes:
            if read in data:
                last[source_of(read)] = place
    columns, owner, integer = _columns(graph, target)
    moments = []
    for place, node in enumerate(nodes):
        row = np.zeros(1 + len(graph.layers))
        replaced = _replaced(graph, node, place, last) if node in made else None
        for tensor, begin in made.items():
            if begin <= place <= last[tensor] and tensor is not replaced:
                size = _numbers(graph, tensor)
                if tensor.name in owner:
                    row[columns[owner[tensor.name]]] += size
                else:
                    row[0] += size * (1 if tensor.name in integer else 4)
        moments.append(row)
    return _undominated(np.unique(np.array(moments), axis=0))


def _columns(graph: Graph, target: Target) -> tuple[dict[str, int], dict[str, str], set[str]]:
    """Layer -> its column; tensor -> the first layer that reads it; tensors read in integers between layers."""
    owner: dict[str, str] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            owner.setdefault(name, layer.name)
    between = inputs_between(graph, target.integer_operators, inside=target.adds_into_layers)
    return {layer.name: 1 + row for row, layer in enumerate(graph.layers)}, owner, set(between)


def _replaced(graph: Graph, node: fx.Node, place: int, last: dict[fx.Node, int]) -> fx.Node | None:
    """The tensor in whose memory the node puts its result, if any."""
    if packet(node) not in _IN_PLACE:
        return None
    read = [source_of(one) for one in node.all_input_nodes if source_of(one) in last]
    return next((one for one in read if last[one] == place and _numbers(graph, one) == _numbers(graph, node)), None)


def _numbers(graph: Graph, node: fx.Node) -> int:
    """In the node's tensor, of one sample."""
    return math.prod(graph.shapes[node.name]) // graph.batch_size


def _undominated(moments: FloatArray) -> FloatArray:
    """The moments at which another is not at least as full in every column; there is always one."""
    kept = [
        row
        for number, row in enumerate(moments)
        if not any((other >= row).all() for place, other in enumerate(moments) if place != number)
    ]
    return np.array(kept)
