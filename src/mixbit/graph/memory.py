"""Which activations are alive at once: what the resource `activation_bytes` counts."""

import math

import numpy as np
import torch
from torch import fx

from mixbit.core import FloatArray, Target
from mixbit.graph.graph import Graph, packet
from mixbit.graph.layers import ARITHMETIC, NONLINEARITIES, activations, inputs_between, source_of

_aten = torch.ops.aten

#: Operators that can overwrite what they are the last to read.
_IN_PLACE = NONLINEARITIES | ARITHMETIC | {_aten.softmax, _aten.layer_norm, _aten.batch_norm}


def live_activations(graph: Graph, target: Target) -> FloatArray:
    """[S, 1 + L]: for each moment of one sample's run, what is alive.

    The first column is in bytes: tensors whose format no layer decides, 1 byte a number where the target's operators
    between layers read them in integers, else 4. The others are numbers in the tensors that each layer reads, which
    take the bytes of its input's format; of layers that read one tensor, the first has it.

    A tensor lives from the operator that makes it to the last that reads it; what only moves values shares its memory;
    an element-wise operator works in place of a tensor that no other operator reads later. Moments at which no more is
    alive than at another are left out. Runtimes that plan their memory worse need more.
    """
    nodes = list(graph.module.graph.nodes)
    data = activations(graph)
    made = {node: place for place, node in enumerate(nodes) if node in data and source_of(node) is node}
    last = dict(made)
    for place, node in enumerate(nodes):
        for read in node.all_input_nodes:
            if read in data:
                last[source_of(read)] = place
    columns: dict[str, int] = {}
    for column, layer in enumerate(graph.layers, 1):
        for name in layer.inputs:
            columns.setdefault(name, column)
    integer = set(inputs_between(graph, target.integer_operators, inside=target.adds_into_layers))
    moments = []
    for place, node in enumerate(nodes):
        row = np.zeros(1 + len(graph.layers))
        replaced = _replaced(graph, node, place, last) if node in made else None
        for tensor, begin in made.items():
            if begin <= place <= last[tensor] and tensor is not replaced:
                size = 1 if tensor.name in columns or tensor.name in integer else 4
                row[columns.get(tensor.name, 0)] += size * _numbers(graph, tensor)
        moments.append(row)
    return _undominated(np.unique(np.array(moments), axis=0))


def _replaced(graph: Graph, node: fx.Node, place: int, last: dict[fx.Node, int]) -> fx.Node | None:
    """The tensor in whose memory the node puts its result, if any."""
    if packet(node) not in _IN_PLACE:
        return None
    read = [source for source in map(source_of, node.all_input_nodes) if last.get(source) == place]
    return next((source for source in read if _numbers(graph, source) == _numbers(graph, node)), None)


def _numbers(graph: Graph, node: fx.Node) -> int:
    """In the node's tensor, of one sample."""
    return math.prod(graph.shapes[node.name]) // graph.batch_size


def _undominated(moments: FloatArray) -> FloatArray:
    """The moments at which another is not at least as full in every column; there is always one."""
    fullest = [
        row
        for number, row in enumerate(moments)
        if not any((other >= row).all() for place, other in enumerate(moments) if place != number)
    ]
    return np.array(fullest)
