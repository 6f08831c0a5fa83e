"""Layers, which are the operators linear in a parameter, and the tensors that flow between them."""

import math
import operator
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.graph.graph import (
    DILATION,
    GROUPS,
    TRANSPOSES,
    Graph,
    Layer,
    Operation,
    OperatorKind,
    argument,
    is_parameter,
    packet,
)
from mixbit.graph.recurrent import is_recurrent

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
#: Elementwise functions that follow layers.
NONLINEARITIES = frozenset({
    _aten.relu, _aten.relu6, _aten.leaky_relu, _aten.elu, _aten.selu, _aten.silu, _aten.gelu, _aten.mish,
    _aten.sigmoid, _aten.tanh, _aten.softplus, _aten.hardtanh, _aten.hardswish, _aten.hardsigmoid, _aten.clamp,
    _aten.clamp_min, _aten.clamp_max,
})  # fmt: skip
#: Elementwise operators on two tensors.
ARITHMETIC = frozenset({_aten.add, _aten.sub, _aten.mul, _aten.div})
# Operators that move values without changing them, or pick among them: what they return needs no quantizer of its own.
_MOVES = {
    _aten.view, _aten.reshape, _aten.flatten, _aten.permute, _aten.transpose, _aten.t, _aten.numpy_T, _aten.squeeze,
    _aten.unsqueeze, _aten.slice, _aten.select, _aten.contiguous, _aten.clone, _aten.expand, _aten.alias, _aten.detach,
    _aten.unflatten, _aten.split, _aten.split_with_sizes, _aten.chunk, _aten.unbind, _aten.max_pool1d, _aten.max_pool2d,
    _aten.max_pool3d, _aten.pixel_shuffle, _aten.channel_shuffle, _aten.roll, _aten.flip,
}  # fmt: skip
#: Operators that read the shape of a tensor and nothing else.
_FILLS = {
    _aten.new_empty, _aten.new_zeros, _aten.new_ones, _aten.new_full, _aten.empty_like, _aten.zeros_like,
    _aten.ones_like, _aten.full_like,
}  # fmt: skip
#: Functions that clip from below at least, which quantization does as well, and their bounds where none are given.
_CLIPS: dict[Any, tuple[Any, Any]] = {
    _aten.relu: (0, None), _aten.relu6: (0, 6), _aten.hardtanh: (-1, 1), _aten.clamp: (None, None),
    _aten.clamp_min: (None, None),
}  # fmt: skip
_POOLS = (
    _aten.avg_pool1d, _aten.avg_pool2d, _aten.avg_pool3d, _aten.adaptive_avg_pool1d, _aten.adaptive_avg_pool2d,
    _aten.adaptive_avg_pool3d, _aten.mean,
)  # fmt: skip
_BETWEEN = {_aten.add: "add", _aten.cat: "cat", _aten.matmul: "matmul", _aten.bmm: "matmul"}
_BETWEEN |= dict.fromkeys(_POOLS, "average_pool")
#: Kinds of operators between layers that some target runs in integers.
BETWEEN_KINDS = frozenset(_BETWEEN.values())
#: Kinds of layers' operators that some target runs in integers only where their output is quantized too.
QUANTIZED_KINDS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "addmm", "matmul"})
#: Kinds of operators that read a matrix either way.
PRODUCTS = ("matmul", "addmm")


def with_layers(graph: Graph) -> Graph:
    """The graph with its layers: every operator linear in a parameter, grouped by the parameter, in execution order.

    Covered: linear, conv1d/2d/3d, transposed convolutions, embedding, and addmm, mm, matmul with a two-dimensional
    parameter on the right, transposed or not. A parameter used several times is one layer with several operators.
    """
    readers: dict[str, list[Operation]] = defaultdict(list)
    data = activations(graph)
    for node in graph.module.graph.nodes:
        located = _locate(graph, node, data)
        if located is not None:
            readers[located[0]].append(located[1])
    layers = [
        Layer(name, tuple(graph.parameter(name).shape), operations[0].axis, tuple(operations))
        for name, operations in readers.items()
    ]
    return replace(graph, layers=tuple(layers))


def shared_inputs(layers: tuple[Layer, ...]) -> tuple[tuple[int, ...], ...]:
    """Groups of layers that read a common tensor, directly or through one another; each group has two or more."""
    groups: list[tuple[set[int], set[str]]] = []
    for index, layer in enumerate(layers):
        members, tensors = {index}, set(layer.inputs)
        for group in [group for group in groups if group[1] & tensors]:
            groups.remove(group)
            members, tensors = members | group[0], tensors | group[1]
        groups.append((members, tensors))
    return tuple(sorted(tuple(sorted(members)) for members, _ in groups if len(members) > 1))


def _locate(graph: Graph, node: fx.Node, data: frozenset[Any]) -> tuple[str, Operation] | None:
    """Name of the parameter and the operation, where the node is linear in a parameter."""
    kind = OPERATOR_KINDS.get(packet(node))
    if kind is None:
        return None
    parameter, transposed = parameter_behind(argument(node, kind.weight))
    if parameter is None:
        return None
    weight = graph.parameter(parameter)
    is_product = kind.name in PRODUCTS
    if not weight.is_floating_point() or (is_product and weight.ndim != 2) or (transposed and not is_product):
        return None
    if kind.name == "addmm" and any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return None
    x, bias = argument(node, kind.input), argument(node, kind.bias)
    if x is not None and (x not in data or x.meta["val"].ndim < 2):
        return None
    axis = 1 - kind.output_axis if transposed else kind.output_axis
    return parameter, Operation(
        node.name,
        kind,
        input=None if x is None or is_recurrent(node) else source_of(x).name,
        macs=count_macs(graph, node, kind, tuple(weight.shape), axis),
        groups=argument(node, GROUPS, 1) if kind.name.startswith("conv") else 1,
        takes_bias=kind.bias is not None and (bias is None or is_parameter(bias)),
        transposed=transposed,
        dilation=_dilation(node, weight.ndim - 2) if kind.name.startswith("conv") else (),
    )


def _dilation(node: fx.Node, dimensions: int) -> tuple[int, ...]:
    """How far apart a convolution's taps are."""
    given = argument(node, DILATION["transpose" in str(node.target)], 1)
    every = (given,) if isinstance(given, int) else tuple(given)
    return every * dimensions if len(every) == 1 else every


def parameter_behind(node: Any) -> tuple[str | None, bool]:
    """Name of the parameter or buffer that the node is, and whether it comes transposed; None for another tensor."""
    transposed = False
    while isinstance(node, fx.Node) and packet(node) in TRANSPOSES:
        if node.meta["val"].ndim != 2:
            return None, False
        if packet(node) is _aten.permute:
            transposed ^= argument(node, 1)[0] % 2 == 1
        else:
            transposed ^= packet(node) is not _aten.transpose or (argument(node, 1) - argument(node, 2)) % 2 == 1
        node = argument(node, 0)
    return (str(node.target), transposed) if is_parameter(node) else (None, False)


def count_macs(graph: Graph, node: fx.Node, kind: OperatorKind, shape: tuple[int, ...], axis: int) -> int:
    """Weights that touch one output (or, transposed, one input) position, times the positions of one sample."""
    if kind.name == "embedding":
        return 0
    if kind.name.startswith("conv_transpose"):
        return math.prod(graph.shapes[argument(node, 0).name]) // graph.batch_size * (math.prod(shape) // shape[0])
    return math.prod(graph.shapes[node.name]) // graph.batch_size * (math.prod(shape) // shape[axis])


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


def after(graph: Graph, sources: Collection[fx.Node], apart: Collection[Any] = frozenset()) -> frozenset[fx.Node]:
    """The sources, and the nodes that depend on their values; without sizes, which can be read again.

    The operators `apart`, and what depends on the sources through them alone, are left out too.
    """
    reached: set[fx.Node] = set()
    for node in graph.module.graph.nodes:
        is_size = isinstance(node.meta.get("val"), torch.SymInt | int) or packet(node) in apart
        if not is_size and (node in sources or any(before in reached for before in node.all_input_nodes)):
            reached.add(node)
    return frozenset(reached)


def source_of(node: fx.Node) -> fx.Node:
    """The node that made the values that `node` moves; its tensor is quantized."""
    while _moves(node):
        node = argument(node, 0)
    return node


def activations(graph: Graph) -> frozenset[fx.Node]:
    """The nodes whose tensors are floating-point and depend on the values of the inputs, not on their shapes alone."""
    placeholders = graph.module.graph.find_nodes(op="placeholder")
    return frozenset(filter(is_float, after(graph, placeholders, _FILLS)))


def is_float(node: fx.Node) -> bool:
    """Whether the node makes a tensor of floating-point numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _moves(node: fx.Node) -> bool:
    before, kind = argument(node, 0), packet(node)
    if not isinstance(before, fx.Node):
        return False
    if node.target is operator.getitem:
        return packet(before) in _MOVES
    if kind is _aten.constant_pad_nd:
        return argument(node, 2, 0) == 0
    if kind is _aten.pad:
        return argument(node, 2, "constant") != "constant" or not argument(node, 3)
    return kind in _MOVES


def inputs_between(
    graph: Graph, kinds: frozenset[str], *, inside: bool, rounded: Collection[str]
) -> dict[str, frozenset[str]]:
    """Name of a node whose tensor operators of those kinds read -> the rounded tensors for whose sake it is rounded.

    Only operators whose inputs all depend on the data count, and whose result is rounded in turn: its tensor, or what
    one function makes of it, is among the `rounded` or is read by another operator that counts. Else they would be
    rounded for nothing, as what a network returns. Runtimes return products in float, so that these count if anything
    behind them is rounded. Of what additions read, `_added` chooses. Names are in execution order.
    """
    convolutions = frozenset(name for name, (_, operation) in graph.operations.items() if not operation.channels_last)
    data = activations(graph)
    reasons = {name: frozenset({name}) for name in rounded}
    behind: dict[fx.Node, frozenset[str]] = {}
    nothing, groups = frozenset[str](), list[list[str]]()
    for node in reversed(graph.module.graph.nodes):
        own = reasons.get(node.name, nothing)
        behind[node] = own or nothing.union(*(behind[user] for user in node.users))
        kind = _BETWEEN.get(packet(node))
        if kind not in kinds or node.name in graph.operations:
            continue
        functions = [user.name for user in node.users if packet(user) in NONLINEARITIES]
        near = own.union(*(reasons.get(name, nothing) for name in functions))
        needed = behind[node] if kind == "matmul" else near
        read = argument(node, 0) if kind == "cat" else node.args[: 2 if kind in ("add", "matmul") else 1]
        if not needed or not all(value in data for value in read):
            continue
        sources = [source_of(value) for value in read]
        groups.append([source.name for source in (_added(sources, convolutions, inside) if kind == "add" else sources)])
        reasons |= {name: reasons.get(name, frozenset()) | needed for name in groups[-1]}
    return {name: reasons[name] for group in reversed(groups) for name in group}


def _added(sources: list[fx.Node], convolutions: frozenset[str], inside: bool) -> list[fx.Node]:
    """Of the tensors that an addition reads, those to quantize.

    None where no convolution feeds it, itself or through one function: the residual stream of a transformer is not
    added faster in integers, and quantizing it makes the network's error several times larger (measured in OpenVINO).
    With `inside`, an addition runs inside a convolution whose output it alone reads, which then is not rounded.
    """
    if not any(node.name in convolutions for source in sources for node in (source, *source.all_input_nodes)):
        return []
    own = next((source for source in sources if source.name in convolutions and len(source.users) == 1), None)
    return [source for source in sources if not (inside and source is own and len(set(sources)) > 1)]


def result_of(graph: Graph, operation: Operation) -> str:
    """Name of the node that holds what a layer's operator returns, clipped where it is read only to clip."""
    node = graph.node(operation.node)
    users = list(node.users)
    return users[0].name if len(users) == 1 and packet(users[0]) in _CLIPS else node.name


def bounds_of(node: fx.Node) -> tuple[float, float] | None:
    """The numbers between which the node clips what it reads first; None where it does something else."""
    kind = packet(node)
    if kind not in _CLIPS:
        return None
    low, high = _CLIPS[kind]
    if kind in (_aten.hardtanh, _aten.clamp, _aten.clamp_min):
        low, high = (argument(node, place, default) for place, default in ((1, low), (2, high)))
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else None


def observable(
    graph: Graph, kinds: frozenset[str] = QUANTIZED_KINDS, between: frozenset[str] = BETWEEN_KINDS
) -> frozenset[str]:
    """Names of all the nodes whose tensors some plan may quantize.

    Args:
        graph: In float.
        kinds: Those of layers' operators whose results may be, of QUANTIZED_KINDS.
        between: Those of operators between layers whose inputs may be, of BETWEEN_KINDS.
    """
    touched = {name for layer in graph.layers for name in layer.inputs}
    returned = {
        result_of(graph, operation) for _, operation in graph.operations.values() if operation.kind.name in kinds
    }
    every = [node.name for node in graph.module.graph.nodes]
    return frozenset(touched | returned | set(inputs_between(graph, between, inside=False, rounded=every)))
