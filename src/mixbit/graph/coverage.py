"""What no layer covers, and its share of the work and the storage."""

import math
from dataclasses import dataclass

import torch
from torch import fx

from mixbit.graph.graph import Graph, argument, packet
from mixbit.graph.layers import OPERATOR_KINDS, activations, count_macs

_aten = torch.ops.aten

#: Operators that multiply two activations or hold weights that mixbit does not reach.
_UNCOVERED = {
    _aten.matmul, _aten.mm, _aten.bmm, _aten.baddbmm, _aten.addmm, _aten.einsum, _aten.scaled_dot_product_attention,
    _aten.lstm, _aten.gru, _aten.rnn_tanh, _aten.rnn_relu, _aten.bilinear, _aten.convolution,
}  # fmt: skip


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
    """

    name: str
    kind: str
    macs: int | None
    weight_bytes: int
    macs_share: float | None
    weight_share: float


def find_uncovered(graph: Graph) -> tuple[Uncovered, ...]:
    """Operators and parameters that no layer covers: recurrent cells, products of activations, loose parameters."""
    layers = graph.layers
    macs, sizes = _uncovered_operators(graph), _uncovered_bytes(graph)
    all_macs = sum(layer.macs for layer in layers) + sum(count for _, count in macs.values() if count is not None)
    all_bytes = sum(4 * layer.numel for layer in layers) + sum(sizes.values())
    rows = [
        Uncovered(name, kind, count, 0, None if count is None else count / max(1, all_macs), 0.0)
        for name, (kind, count) in macs.items()
    ]
    rows += [Uncovered(name, "parameter", None, size, None, size / all_bytes) for name, size in sizes.items()]
    return tuple(rows)


def _uncovered_operators(graph: Graph) -> dict[str, tuple[str, int | None]]:
    """Node -> operator and multiply-accumulates."""
    data, covered = activations(graph), {operation.node for layer in graph.layers for operation in layer.operations}
    return {
        node.name: (str(packet(node)).removeprefix("aten."), _count(graph, node))
        for node in graph.module.graph.nodes
        if (packet(node) in _UNCOVERED or packet(node) in OPERATOR_KINDS) and node.name not in covered
        if any(before in data for before in node.all_input_nodes)
    }


def _uncovered_bytes(graph: Graph) -> dict[str, int]:
    """Parameter -> bytes, the biases of layers summed up."""
    names = {layer.name for layer in graph.layers}
    used = {node.target for node in graph.module.graph.find_nodes(op="get_attr")}
    biases = {graph.bias(operation) for layer in graph.layers for operation in layer.operations}
    sizes: dict[str, int] = {}
    for name, parameter in graph.module.named_parameters():
        if name not in names and name in used:
            row = "biases" if name in biases else name
            sizes[row] = sizes.get(row, 0) + parameter.numel() * parameter.element_size()
    return sizes


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
