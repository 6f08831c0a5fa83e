"""Layers: the operators that are linear in a parameter, what they read and cost, and runs with several weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.graph.dataflow import _quantizes, activations, source_of
from mixbit.graph.graph import GROUPS, Graph, Layer, Operation, OperatorKind, argument, is_parameter, packet

_aten = torch.ops.aten
OPERATOR_KINDS = {
    _aten.linear: OperatorKind("linear", 0, 1, 2, 0),
    _aten.conv1d: OperatorKind("conv1d", 0, 1, 2, 0),
    _aten.conv2d: OperatorKind("conv2d", 0, 1, 2, 0),
    _aten.conv3d: OperatorKind("conv3d", 0, 1, 2, 0),
    _aten.conv_transpose1d: OperatorKind("conv_transpose1d", 0, 1, 2, 1),
    _aten.conv_transpose2d: OperatorKind("conv_transpose2d", 0, 1, 2, 1),
    _aten.conv_transpose3d: OperatorKind("conv_transpose3d", 0, 1, 2, 1),
    _aten.embedding: OperatorKind("embedding", None, 0, None, 0),
    _aten.addmm: OperatorKind("addmm", 1, 2, 0, 1),
    _aten.mm: OperatorKind("matmul", 0, 1, None, 1),
    _aten.matmul: OperatorKind("matmul", 0, 1, None, 1),
}
#: Functions of each number alone, as they stand behind layers.
NONLINEARITIES = frozenset({
    _aten.relu, _aten.relu6, _aten.leaky_relu, _aten.elu, _aten.selu, _aten.silu, _aten.gelu, _aten.mish,
    _aten.sigmoid, _aten.tanh, _aten.softplus, _aten.hardtanh, _aten.hardswish, _aten.hardsigmoid, _aten.clamp,
    _aten.clamp_min, _aten.clamp_max,
})  # fmt: skip
#: Operators on two tensors, number by number.
ARITHMETIC = frozenset({_aten.add, _aten.sub, _aten.mul, _aten.div})
#: Numbers that one run on several weights should return, where that can be chosen (4 MB of float32): more leave the
#: caches, and memory fresh from the system costs more than the arithmetic.
FEW_ELEMENTS = 2**20
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


def stack_weights(operation: Operation, weights: Sequence[Tensor]) -> Tensor:
    """Weights of one shape, for `run_stacked`: side by side along the output channels, or one by one with groups."""
    if operation.groups > 1:
        return torch.stack(tuple(weights))
    axis = 1 if operation.kind.name == "embedding" else operation.kind.output_axis
    return torch.cat(tuple(weights), 1 - axis if operation.transposed else axis)


def run_stacked(graph: Graph, operation: Operation, x: Tensor, stacked: Tensor, count: int) -> Tensor:
    """[count, *output]: the operator's outputs for that many weights, in one run where it has no groups; no bias."""
    if operation.groups > 1:  # with several channels a group, depthwise convolutions are many times slower
        return torch.stack([graph.run(operation, x, weight) for weight in stacked])
    output = graph.run(operation, x, stacked)
    if operation.channels_last:
        return output.unflatten(-1, (count, -1)).movedim(-2, 0)
    return output.unflatten(1, (count, -1)).movedim(1, 0)
