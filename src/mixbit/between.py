"""What is quantized between layers: the inputs of additions, concatenations, poolings and products of activations."""

import torch
from torch import fx

from mixbit.graph import Graph
from mixbit.layers import Layer, activations, source_of
from mixbit.nodes import argument, packet

_aten = torch.ops.aten

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


def inputs_between(graph: Graph, layers: tuple[Layer, ...], kinds: frozenset[str], *, inside: bool) -> list[str]:
    """Names of the nodes whose tensors operators of those kinds read, each once, in execution order.

    Only operators whose inputs all depend on the data count, and of additions those that `_added` says.
    """
    operations = {operation.node: operation for layer in layers for operation in layer.operations}
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
    With `inside`, an addition runs inside a convolution whose output nobody else reads: that output is left out,
    since its runtime would not round it either.
    """
    if not any(one.name in convolutions for source in sources for one in (source, *source.all_input_nodes)):
        return []
    own = next((one for one in sources if one.name in convolutions and len(one.users) == 1), None)
    return [one for one in sources if not (inside and one is own and len(set(sources)) > 1)]


def convolved(graph: Graph, layer: Layer) -> tuple[str, ...]:
    """Names of the nodes that hold what the layer's convolutions return, clipped where they are read only to clip."""
    names = []
    for operation in layer.operations:
        if operation.kind.name in ("conv1d", "conv2d", "conv3d"):
            node = graph.node(operation.node)
            clipped = [user for user in node.users if packet(user) in _CLIPS]
            names.append(clipped[0].name if len(node.users) == len(clipped) == 1 else node.name)
    return tuple(names)


def observable(graph: Graph, layers: tuple[Layer, ...]) -> frozenset[str]:
    """Names of all the nodes whose tensors some plan for some target may quantize."""
    touched = {name for layer in layers for name in (*layer.inputs, *convolved(graph, layer))}
    return frozenset(touched | set(inputs_between(graph, layers, BETWEEN_KINDS, inside=False)))
