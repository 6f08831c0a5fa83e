"""What a graph takes whatever its layers' formats: activations that are alive at once, and what no layer covers."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from mixbit.core import FloatArray, Target
from mixbit.graph.graph import Graph, argument, packet
from mixbit.graph.layers import (
    ARITHMETIC,
    NONLINEARITIES,
    OPERATOR_KINDS,
    activations,
    count_macs,
    inputs_between,
    source_of,
)
from mixbit.graph.recurrent import MOST_STEPS, is_simulated

_aten = torch.ops.aten

#: Weights that a note names one by one.
LISTED = 5
_RECURRENT = f"read by an LSTM with projections over more than {MOST_STEPS} steps, or by one over packed sequences"
#: Operator -> why a parameter that it reads is no layer; any other is no product.
_REASONS: dict[str, str] = dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _RECURRENT)
#: Operators that can overwrite what they are the last to read.
_IN_PLACE = NONLINEARITIES | ARITHMETIC | {_aten.softmax, _aten.layer_norm, _aten.batch_norm}
#: Operators that multiply two activations or hold weights that mixbit does not reach.
_UNCOVERED = {
    _aten.matmul, _aten.mm, _aten.bmm, _aten.baddbmm, _aten.addmm, _aten.einsum, _aten.scaled_dot_product_attention,
    _aten.lstm, _aten.gru, _aten.rnn_tanh, _aten.rnn_relu, _aten.bilinear, _aten.convolution,
}  # fmt: skip


def live_activations(graph: Graph, target: Target) -> FloatArray:
    """[S, 1 + L]: for each moment of one sample's run, what is alive.

    The first column is in bytes: tensors whose format no layer decides, 1 byte a number where the target's operators
    between layers read them in integers, else 4. The others are numbers in the tensors that each layer reads, which
    take the bytes of its input's format; of layers that read one tensor, the first has it.

    A tensor lives from the operator that makes it to the last that reads it. What only moves values shares its memory.
    An element-wise operator overwrites a tensor that no later operator reads. Moments at which no more is alive than at
    another are left out. Runtimes that plan their memory worse need more.
    """
    nodes = list(graph.module.graph.nodes)
    data = activations(graph)
    made = {
        node: place
        for place, node in enumerate(nodes)
        if node in data and source_of(node) is node and not is_simulated(node)
    }
    last = dict(made)
    for place, node in enumerate(nodes):
        for read in node.all_input_nodes:
            if read in data:
                last[source_of(read)] = place
    numbered = reversed(list(enumerate(graph.layers, 1)))
    columns = {name: column for column, layer in numbered for name in layer.inputs}  # the first layer comes last
    inside = target.adds_into_layers
    integer = frozenset(inputs_between(graph, target.integer_operators, inside=inside, rounded=columns))
    moments = []
    for place, node in enumerate(nodes):
        row, replaced = np.zeros(1 + len(graph.layers)), None
        if node in made and packet(node) in _IN_PLACE:  # it overwrites such a tensor with its result
            read = [source for source in map(source_of, node.all_input_nodes) if last.get(source) == place]
            replaced = next((source for source in read if _numbers(graph, source) == _numbers(graph, node)), None)
        for tensor, begin in made.items():
            if begin <= place <= last[tensor] and tensor is not replaced:
                size = 1 if tensor.name in columns or tensor.name in integer else 4
                row[columns.get(tensor.name, 0)] += size * _numbers(graph, tensor)
        moments.append(row)
    rows = np.unique(np.array(moments), axis=0)
    # no other row is at least as full in every column
    return np.array([row for row in rows if (rows >= row).all(axis=1).sum() == 1])


def _numbers(graph: Graph, node: fx.Node) -> int:
    """How many numbers the node's tensor has of one sample."""
    return math.prod(graph.shapes[node.name]) // graph.batch_size


@dataclass(frozen=True)
class Uncovered:
    """Work or storage that stays in float whatever the plan.

    Attributes:
        name: Graph node or parameter; `biases` for all the biases of layers together.
        kind: The operator, or `parameter`.
        macs: Multiply-accumulates of one sample, None where they are not counted.
        weight_bytes: Bytes of its parameters in float32.
        macs_share: Of all multiply-accumulates that are counted, None as above.
        weight_share: Of the bytes of all parameters in float32.
        num_weights: Numbers in it that count as weights; 0 for vectors, which are biases and scales, and for work.
        reason: Why no layer covers it.
    """

    name: str
    kind: str
    macs: int | None
    weight_bytes: int
    macs_share: float | None
    weight_share: float
    num_weights: int = 0
    reason: str = ""


def find_uncovered(graph: Graph) -> tuple[Uncovered, ...]:
    """Operators and parameters that no layer covers: some recurrences, products of activations, loose parameters."""
    data = activations(graph)
    macs = {
        node.name: (str(packet(node)).removeprefix("aten."), _count(graph, node))
        for node in graph.module.graph.nodes
        if (packet(node) in _UNCOVERED or packet(node) in OPERATOR_KINDS) and node.name not in graph.operations
        if any(before in data for before in node.all_input_nodes)
    }
    biases = {graph.bias(operation) for _, operation in graph.operations.values()}
    loose, sizes = _loose(graph), Counter[str]()
    for name, parameter in loose.items():
        sizes["biases" if name in biases else name] += parameter.nbytes
    all_macs = sum(layer.macs for layer in graph.layers) + sum(count or 0 for _, count in macs.values())
    all_bytes = sum(4 * layer.numel for layer in graph.layers) + sum(sizes.values())
    rows = [
        Uncovered(name, kind, count, 0, None if count is None else count / max(1, all_macs), 0.0)
        for name, (kind, count) in macs.items()
    ]
    for name, size in sizes.items():
        numbers = 0 if name in biases | {"biases"} else _num_weights(loose[name])
        reason = "added by layers" if name == "biases" else _reason(graph, name)
        rows.append(Uncovered(name, "parameter", None, size, None, size / all_bytes, numbers, reason))
    return tuple(rows)


def num_uncovered(graph: Graph) -> int:
    """Weights that no layer covers: numbers in parameters that operators read, of two dimensions or more above 1.

    Vectors do not count: they are biases and scales, a thousandth of a network.
    """
    return sum(row.num_weights for row in find_uncovered(graph))


def note_on_uncovered(graph: Graph) -> str | None:
    """A sentence that names the weights that no layer covers, the largest first, with their shares and why; or None."""
    rows = [row for row in find_uncovered(graph) if row.num_weights > 0]
    if not rows:
        return None
    every = sum(layer.numel for layer in graph.layers) + sum(row.num_weights for row in rows)
    rows.sort(key=lambda row: -row.num_weights)
    named = [f"{row.name} ({row.num_weights / every:.1%}, {row.reason})" for row in rows[:LISTED]]
    more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    share = sum(row.num_weights for row in rows) / every
    return f"{share:.1%} of the weights stay in float, 32 bits each: {', '.join(named)}{more}"


def _loose(graph: Graph) -> dict[str, Tensor]:
    """The parameters that some node reads and that are no layers, by name."""
    used = {node.target for node in graph.module.graph.find_nodes(op="get_attr")}
    layers = {layer.name for layer in graph.layers}
    return {name: value for name, value in graph.module.named_parameters() if name in used and name not in layers}


def _num_weights(parameter: Tensor) -> int:
    return parameter.numel() if sum(size > 1 for size in parameter.shape) > 1 else 0


def _reason(graph: Graph, name: str) -> str:
    """Which operator reads the parameter, itself or through others that only move it."""
    readers = [
        user for node in graph.module.graph.find_nodes(op="get_attr") if node.target == name for user in node.users
    ]
    while readers and (moved := readers[0]).users and source_of(moved) is not moved:
        readers = list(moved.users)
    kind = str(packet(readers[0])).removeprefix("aten.") if readers else "nothing"
    return _REASONS.get(kind, f"read by {kind}")


def _count(graph: Graph, node: fx.Node) -> int | None:
    kind = OPERATOR_KINDS.get(packet(node))
    if kind is not None and kind.name not in ("matmul", "addmm"):
        weight = graph.shapes.get(getattr(argument(node, kind.weight), "name", ""))
        return None if weight is None else count_macs(graph, node, kind, weight, kind.output_axis)
    shapes = [graph.shapes.get(before.name) for before in node.args if isinstance(before, fx.Node)]
    if node.name not in graph.shapes or not shapes or shapes[0] is None:
        return None
    products = math.prod(graph.shapes[node.name]) // graph.batch_size
    if packet(node) is _aten.scaled_dot_product_attention:
        keys = shapes[1] or (1, 1)
        return products * keys[-2] * 2
    if packet(node) in (_aten.matmul, _aten.mm, _aten.bmm):
        return products * shapes[0][-1]
    return None
