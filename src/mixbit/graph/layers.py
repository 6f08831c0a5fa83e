"""Layers: the operators that are linear in a parameter, the tensors they read, and what they cost."""

import math
from typing import Any

import torch
from torch import fx

from mixbit.graph.dataflow import _quantizes, activations, source_of
from mixbit.graph.graph import GROUPS, Graph, Layer, Operation, OperatorKind, argument, is_parameter, packet
from mixbit.graph.operators import OPERATOR_KINDS

_aten = torch.ops.aten
_TRANSPOSES = {_aten.t, _aten.numpy_T, _aten.transpose, _aten.permute}


def find_layers(graph: Graph) -> tuple[Layer, ...]:
    """Every operator linear in a parameter, grouped by the parameter, in execution order: what `Graph.layers` holds.

    Covered: linear, conv1d/2d/3d, transposed convolutions, embedding, and addmm, mm, matmul with a two-dimensional
    parameter on the right, transposed or not. A parameter used several times is one layer with several operators.
    """
    operations: dict[str, list[Operation]] = {}
    data = activations(graph)
    for node in graph.module.graph.nodes:
        located = _locate(graph, node, data)
        if located is not None:
            operations.setdefault(located[0], []).append(located[1])
    return tuple(
        Layer(name, tuple(graph.parameter(name).shape), readers[0].axis, tuple(readers))
        for name, readers in operations.items()
    )


def shared_inputs(layers: tuple[Layer, ...]) -> tuple[tuple[int, ...], ...]:
    """Groups of layers that read a common tensor, directly or through one another; each group has two or more."""
    groups: list[tuple[set[int], set[str]]] = []
    for index, layer in enumerate(layers):
        members, tensors = {index}, set(layer.inputs)
        apart = []
        for other_members, other_tensors in groups:
            if other_tensors & tensors:
                members, tensors = members | other_members, tensors | other_tensors
            else:
                apart.append((other_members, other_tensors))
        groups = [*apart, (members, tensors)]
    return tuple(sorted(tuple(sorted(members)) for members, _ in groups if len(members) > 1))


def _locate(graph: Graph, node: fx.Node, data: frozenset[Any]) -> tuple[str, Operation] | None:
    """Name of the parameter and the operation, where the node is linear in a parameter."""
    kind = OPERATOR_KINDS.get(packet(node))
    if kind is None:
        return None
    parameter, transposed = _parameter(argument(node, kind.weight))
    if parameter is None:
        return None
    weight = graph.parameter(parameter)
    is_product = kind.name in ("matmul", "addmm")
    if not weight.is_floating_point() or (is_product and weight.ndim != 2) or (transposed and not is_product):
        return None
    if kind.name == "addmm" and any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return None
    axis = 1 - kind.output_axis if transposed else kind.output_axis
    read = None
    if kind.input is not None:
        x = argument(node, kind.input)
        if x not in data or x.meta["val"].ndim < 2:
            return None
        read = source_of(x).name
    groups = argument(node, GROUPS, 1) if kind.name.startswith("conv") else 1
    bias = argument(node, kind.bias)
    takes_bias = kind.bias is not None and (bias is None or is_parameter(bias))
    macs = count_macs(graph, node, kind, tuple(weight.shape), axis)
    return parameter, Operation(node.name, kind, read, macs, groups, takes_bias, transposed)


def _parameter(node: Any) -> tuple[str | None, bool]:
    """Name of the parameter behind the node, and whether it comes transposed."""
    transposed = False
    while isinstance(node, fx.Node) and (packet(node) in _TRANSPOSES or _quantizes(node)):
        if packet(node) in _TRANSPOSES:
            if node.meta["val"].ndim != 2:
                return None, False
            transposed ^= _swaps(node)
        node = argument(node, 0)
    return (str(node.target), transposed) if is_parameter(node) else (None, False)


def _swaps(node: fx.Node) -> bool:
    """Whether a transpose or permutation of a matrix exchanges its dimensions, rather than naming them in order."""
    if packet(node) is _aten.permute:
        return argument(node, 1)[0] % 2 == 1
    return packet(node) is not _aten.transpose or (argument(node, 1) - argument(node, 2)) % 2 == 1


def count_macs(graph: Graph, node: fx.Node, kind: OperatorKind, shape: tuple[int, ...], axis: int) -> int:
    """Weights that touch one output (or, transposed, one input) position, times the positions of one sample."""
    if kind.name == "embedding":
        return 0
    per_channel = math.prod(shape) // shape[axis]
    if kind.name.startswith("conv_transpose"):
        x = argument(node, 0)
        source = graph.shapes[(argument(x, 0) if _quantizes(x) else x).name]
        return math.prod(source) // graph.batch_size * (math.prod(shape) // shape[0])
    return math.prod(graph.shapes[node.name]) // graph.batch_size * per_channel
