"""Layers: the operators that are linear in a parameter, the tensors they read, and what they cost."""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.errors import InvalidInput
from mixbit.graph import Graph
from mixbit.nodes import argument, get_tensor, is_parameter, packet
from mixbit.operators import OPERATOR_KINDS, Operation, OperatorKind
from mixbit.plan import fingerprint

_aten = torch.ops.aten

# Operators that move values without changing them, or pick among them: what they return needs no quantizer of its own.
_MOVES = {
    _aten.view, _aten.reshape, _aten.flatten, _aten.permute, _aten.transpose, _aten.t, _aten.numpy_T, _aten.squeeze,
    _aten.unsqueeze, _aten.slice, _aten.select, _aten.contiguous, _aten.clone, _aten.expand, _aten.alias, _aten.detach,
    _aten.split, _aten.split_with_sizes, _aten.chunk, _aten.unbind, _aten.max_pool1d, _aten.max_pool2d,
    _aten.max_pool3d, _aten.pixel_shuffle, _aten.channel_shuffle, _aten.roll, _aten.flip,
}  # fmt: skip
_TRANSPOSES = {_aten.t, _aten.numpy_T, _aten.transpose, _aten.permute}
#: Operators that read the shape of a tensor and nothing else.
_FILLS = {
    _aten.new_empty, _aten.new_zeros, _aten.new_ones, _aten.new_full, _aten.empty_like, _aten.zeros_like,
    _aten.ones_like, _aten.full_like,
}  # fmt: skip
#: Functions that clip from below at least, which quantization does as well.
_CLIPS = {_aten.relu, _aten.relu6, _aten.hardtanh, _aten.clamp, _aten.clamp_min}
#: Operators that multiply two activations or hold weights that mixbit does not reach.
_UNCOVERED = {
    _aten.matmul, _aten.mm, _aten.bmm, _aten.baddbmm, _aten.addmm, _aten.einsum, _aten.scaled_dot_product_attention,
    _aten.lstm, _aten.gru, _aten.rnn_tanh, _aten.rnn_relu, _aten.bilinear, _aten.convolution,
}  # fmt: skip

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


@dataclass(frozen=True)
class Layer:
    """One stored weight and the operators that use it; named by the parameter.

    Attributes:
        name: Full name of the parameter.
        shape: Shape of the weight.
        axis: Its output-channel axis, along which scales differ.
        operations: The operators, in execution order; more than one where the weight is shared.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    operations: tuple[Operation, ...]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, over all its operators."""
        return sum(operation.macs for operation in self.operations)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors it reads, each once."""
        return tuple(dict.fromkeys(operation.input for operation in self.operations if operation.input is not None))


@dataclass(frozen=True)
class Uncovered:
    """Work or storage that stays in float whatever the plan.

    Attributes:
        name: Graph node or parameter.
        kind: The operator, or `parameter`.
        macs: Multiply-accumulates of one sample, None where they are not counted.
        weight_bytes: Bytes of its parameters in float32.
    """

    name: str
    kind: str
    macs: int | None
    weight_bytes: int


def find_layers(graph: Graph) -> tuple[Layer, ...]:
    """Every operator linear in a parameter, grouped by the parameter, in execution order.

    Covered: linear, conv1d/2d/3d, transposed convolutions, embedding, and addmm, mm, matmul with a two-dimensional
    parameter on the right, transposed or not. A parameter used several times is one layer with several operators.

    Raises:
        InvalidInput: the model has no such operator.
    """
    found: dict[str, tuple[int, list[Operation]]] = {}
    data = activations(graph)
    for node in graph.module.graph.nodes:
        located = _locate(graph, node, data)
        if located is None:
            continue
        name, axis, operation = located
        found.setdefault(name, (axis, []))[1].append(operation)
    if not found:
        raise InvalidInput("the model has no layer: no linear, convolution, embedding or matmul with a parameter")
    return tuple(
        Layer(name, tuple(get_tensor(graph.module, name).shape), axis, tuple(operations))
        for name, (axis, operations) in found.items()
    )


def find_uncovered(graph: Graph) -> tuple[Uncovered, ...]:
    """Operators and parameters that no layer covers: recurrent cells, products of activations, loose parameters."""
    layers, data = find_layers(graph), activations(graph)
    covered = {operation.node for layer in layers for operation in layer.operations}
    rows = [
        Uncovered(node.name, str(packet(node)).removeprefix("aten."), _uncovered_macs(graph, node), 0)
        for node in graph.module.graph.nodes
        if (packet(node) in _UNCOVERED or packet(node) in OPERATOR_KINDS) and node.name not in covered
        if any(before in data for before in node.all_input_nodes)
    ]
    names = {layer.name for layer in layers}
    used = {node.target for node in graph.module.graph.find_nodes(op="get_attr")}
    rows += [
        Uncovered(name, "parameter", None, parameter.numel() * parameter.element_size())
        for name, parameter in graph.module.named_parameters()
        if name not in names and name in used
    ]
    return tuple(rows)


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


def model_fingerprint(layers: tuple[Layer, ...]) -> str:
    """Which model: a short hash of the layers' names and shapes."""
    return fingerprint({layer.name: layer.shape for layer in layers})


def source_of(node: fx.Node) -> fx.Node:
    """The node that made the values that `node` moves: the place of the quantizer."""
    while _moves(node):
        node = argument(node, 0)
    return node


def activations(graph: Graph) -> frozenset[Any]:
    """The nodes whose tensors are floating-point and depend on the values of the inputs, not on their shapes alone."""
    depend: set[fx.Node] = set()
    found = []
    for node in graph.module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int) or packet(node) in _FILLS:
            continue
        if node.op == "placeholder" or any(before in depend for before in node.all_input_nodes):
            depend.add(node)
            if isinstance(value, Tensor) and value.is_floating_point():
                found.append(node)
    return frozenset(found)


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


def _locate(graph: Graph, node: fx.Node, data: frozenset[Any]) -> tuple[str, int, Operation] | None:
    """Name of the parameter, its output axis, and the operation, where the node is linear in a parameter."""
    kind = OPERATOR_KINDS.get(packet(node))
    if kind is None:
        return None
    parameter, transposed = _parameter(argument(node, kind.weight))
    if parameter is None:
        return None
    weight = get_tensor(graph.module, parameter)
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
    macs = _macs(graph, node, kind, tuple(weight.shape), axis)
    return parameter, axis, Operation(node.name, kind, read, macs, transposed)


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


def _macs(graph: Graph, node: fx.Node, kind: OperatorKind, shape: tuple[int, ...], axis: int) -> int:
    """Weights that touch one output (or, transposed, one input) position, times the positions of one sample."""
    if kind.name == "embedding":
        return 0
    per_channel = math.prod(shape) // shape[axis]
    if kind.name.startswith("conv_transpose"):
        x = argument(node, 0)
        source = graph.shapes[(argument(x, 0) if _quantizes(x) else x).name]
        return math.prod(source) // graph.batch_size * (math.prod(shape) // shape[0])
    return math.prod(graph.shapes[node.name]) // graph.batch_size * per_channel


def _uncovered_macs(graph: Graph, node: fx.Node) -> int | None:
    kind = OPERATOR_KINDS.get(packet(node))
    if kind is not None and kind.name not in ("matmul", "addmm"):
        weight = graph.shapes.get(getattr(argument(node, kind.weight), "name", ""))
        return None if weight is None else _macs(graph, node, kind, weight, kind.output_axis)
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
