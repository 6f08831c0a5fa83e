"""What is quantized between layers: the inputs of additions, concatenations, poolings and products of activations."""

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.graph.graph import Graph, Layer, argument, packet

_aten = torch.ops.aten
# Operators that move values without changing them, or pick among them: what they return needs no quantizer of its own.
_MOVES = {
    _aten.view, _aten.reshape, _aten.flatten, _aten.permute, _aten.transpose, _aten.t, _aten.numpy_T, _aten.squeeze,
    _aten.unsqueeze, _aten.slice, _aten.select, _aten.contiguous, _aten.clone, _aten.expand, _aten.alias, _aten.detach,
    _aten.split, _aten.split_with_sizes, _aten.chunk, _aten.unbind, _aten.max_pool1d, _aten.max_pool2d,
    _aten.max_pool3d, _aten.pixel_shuffle, _aten.channel_shuffle, _aten.roll, _aten.flip,
}  # fmt: skip
#: Operators that read the shape of a tensor and nothing else.
_FILLS = {
    _aten.new_empty, _aten.new_zeros, _aten.new_ones, _aten.new_full, _aten.empty_like, _aten.zeros_like,
    _aten.ones_like, _aten.full_like,
}  # fmt: skip


def after(graph: fx.Graph, sources: Collection[fx.Node], apart: Collection[Any] = frozenset()) -> frozenset[fx.Node]:
    """The sources, and the nodes that depend on their values; sizes, which can be read again, are none.

    Neither are the operators `apart`, nor what depends on the sources through them alone.
    """
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        is_size = isinstance(node.meta.get("val"), torch.SymInt | int) or packet(node) in apart
        if not is_size and (node in sources or any(before in reached for before in node.all_input_nodes)):
            reached.add(node)
    return frozenset(reached)


def source_of(node: fx.Node) -> fx.Node:
    """The node that made the values that `node` moves: the place of the quantizer."""
    while _moves(node):
        node = argument(node, 0)
    return node


def activations(graph: Graph) -> frozenset[fx.Node]:
    """The nodes whose tensors are floating-point and depend on the values of the inputs, not on their shapes alone."""
    nodes = graph.module.graph
    return frozenset(filter(is_float, after(nodes, nodes.find_nodes(op="placeholder"), _FILLS)))


def is_float(node: fx.Node) -> bool:
    """Whether the node makes a tensor of floating-point numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _moves(node: fx.Node) -> bool:
    before = argument(node, 0)
    if not isinstance(before, fx.Node):
        return False
    if node.target is operator.getitem:
        return packet(before) in _MOVES
    return packet(node) in _MOVES or _is_zero_padding(node) or _quantizes(node)


def _quantizes(node: fx.Node) -> bool:
    return node.op == "call_module"


def _is_zero_padding(node: fx.Node) -> bool:
    if packet(node) is _aten.constant_pad_nd:
        return argument(node, 2, 0) == 0
    if packet(node) is _aten.pad:
        return argument(node, 2, "constant") != "constant" or not argument(node, 3)
    return False


#: Functions that clip from below at least, which quantization does as well.
_CLIPS = {_aten.relu, _aten.relu6, _aten.hardtanh, _aten.clamp, _aten.clamp_min}
_BETWEEN = {
    _aten.add: "add",
    _aten.cat: "cat",
    _aten.avg_pool1d: "average_pool",
    _aten.avg_pool2d: "average_pool",
    _aten.avg_pool3d: "average_pool",
    _aten.adaptive_avg_pool1d: "average_pool",
    _aten.adaptive_avg_pool2d: "average_pool",
    _aten.adaptive_avg_pool3d: "average_pool",
    _aten.mean: "average_pool",
    _aten.matmul: "matmul",
    _aten.bmm: "matmul",
}
#: Kinds of operators between layers that some target runs in integers.
BETWEEN_KINDS = frozenset(_BETWEEN.values())


def inputs_between(graph: Graph, kinds: frozenset[str], *, inside: bool) -> list[str]:
    """Names of the nodes whose tensors operators of those kinds read, each once, in execution order.

    Only operators whose inputs all depend on the data count, and of additions those that `_added` says.
    """
    operations = {operation.node: operation for layer in graph.layers for operation in layer.operations}
    convolutions = frozenset(name for name, operation in operations.items() if not operation.channels_last)
    data = activations(graph)
    names: list[str] = []
    for node in graph.module.graph.nodes:
        kind = _BETWEEN.get(packet(node))
        if kind not in kinds or node.name in operations:
            continue
        read = argument(node, 0) if kind == "cat" else node.args[: 2 if kind in ("add", "matmul") else 1]
        if not all(value in data for value in read):
            continue
        sources = [source_of(value) for value in read]
        names.extend(source.name for source in (_added(sources, convolutions, inside) if kind == "add" else sources))
    return list(dict.fromkeys(names))


def _added(sources: list[fx.Node], convolutions: frozenset[str], inside: bool) -> list[fx.Node]:
    """Of the tensors that an addition reads, those to quantize.

    None where no convolution feeds it, itself or through one function: the residual stream of a transformer is not
    added faster in integers, and quantizing it makes the network's error several times larger (measured in OpenVINO).
    With `inside`, an addition runs inside a convolution whose output it alone reads: that output is left out,
    since its runtime would not round it either.
    """
    if not any(node.name in convolutions for source in sources for node in (source, *source.all_input_nodes)):
        return []
    own = next((source for source in sources if source.name in convolutions and len(source.users) == 1), None)
    return [source for source in sources if not (inside and source is own and len(set(sources)) > 1)]


def convolved(graph: Graph, layer: Layer) -> tuple[str, ...]:
    """Names of the nodes that hold what the layer's convolutions return, clipped where they are read only to clip."""
    names = []
    for operation in layer.operations:
        if operation.kind.name in ("conv1d", "conv2d", "conv3d"):
            node = graph.node(operation.node)
            clipped = [user for user in node.users if packet(user) in _CLIPS]
            names.append(clipped[0].name if len(node.users) == len(clipped) == 1 else node.name)
    return tuple(names)


def observable(graph: Graph) -> frozenset[str]:
    """Names of all the nodes whose tensors some plan for some target may quantize."""
    touched = {name for layer in graph.layers for name in (*layer.inputs, *convolved(graph, layer))}
    return frozenset(touched | set(inputs_between(graph, BETWEEN_KINDS, inside=False)))
