"""The program of a quantized graph that ExecuTorch lowers: quantizers and weights as XNNPACK recognizes them."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401 registers the operators of quantizers
from torch.export import Dim, ExportedProgram
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from mixbit.core import Scheme, UnsupportedModel
from mixbit.graph import Graph, Layer, Operation, argument, bounds_of
from mixbit.graph.graph import tensor_of
from mixbit.quantization.quantizer import Quantizer
from mixbit.targets._executorch_file import digest as digest_of
from mixbit.targets._integers import IntegerWeight, check_no_recurrence, plan_of, stored_weights

#: Samples that a file takes at most: its buffers have room for them.
MOST_SAMPLES = 64
#: Kinds of layers' operators that run in integers, those of them that are products of matrices, and of images.
PRODUCTS, CONVOLUTIONS = ("linear", "addmm", "matmul"), ("conv1d", "conv2d")
BITS_OF_PRODUCTS = 4
#: Between uint8, as quantizers have it, and int8.
_TO_INT8 = 128

_aten, _quantized = torch.ops.aten, torch.ops.quantized_decomposed
#: Operators that move numbers, or take the largest of some: on integers they do what they do on what these stand for.
_MOVES = {
    _aten.transpose.int, _aten.permute.default, _aten.reshape.default, _aten.view.default, _aten.flatten.using_ints,
    _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default, _aten.unsqueeze.default, _aten.slice.Tensor,
    _aten.t.default, _aten.max_pool2d.default, _aten.pad.default, _aten.constant_pad_nd.default,
}  # fmt: skip
_PADS = _aten.pad.default, _aten.constant_pad_nd.default


@dataclass(frozen=True)
class Factors:
    """Scale and zero point of an activation in int8."""

    scale: float
    zero_point: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of the operators that quantize and dequantize."""
        return self.scale, self.zero_point, -128, 127, torch.int8


@dataclass(frozen=True)
class Value:
    """A node of the program: numbers, which may be ranged at run time, or integers where it has factors."""

    node: fx.Node
    factors: Factors | None = None
    dynamic: bool = False


@dataclass(frozen=True)
class Weight:
    """A layer's weight, before it is known how it is read."""

    layer: str
    tensor: Tensor


def held_by_xnnpack(operation: Operation, layer: Layer, scheme: Scheme) -> bool:
    """Whether XNNPACK runs that operator of the layer in integers, and so holds its weight."""
    if operation.input is None or scheme.input is None or operation.axis != layer.axis:
        return False
    return operation.kind.name in (PRODUCTS if scheme.input.dynamic else (*PRODUCTS, *CONVOLUTIONS))


def places_of(layer: Layer, scheme: Scheme) -> tuple[int, int]:
    """How many times XNNPACK holds the layer's weight, and ExecuTorch's own operators, which share it.

    XNNPACK holds weights that it runs in integers, and in float32 those of products and convolutions.
    """
    if scheme.weight is None:
        packed = {each.axis for each in layer.operations if each.kind.name != "embedding"}
        return len(packed), int(any(each.kind.name == "embedding" for each in layer.operations))
    inside = [held_by_xnnpack(each, layer, scheme) for each in layer.operations]
    return int(any(inside)), int(not all(inside))


class Program:
    """A quantized graph on its way into a program.

    Attributes:
        keys: Layer -> digest of each array that the file may hold of its weight -> the type of its numbers.
    """

    def __init__(self, simulated: Graph) -> None:
        self.simulated, self.module = simulated, simulated.module
        self.weights, self.floats = stored_weights(simulated)
        self.layers = {layer.name for layer in simulated.layers}
        self.graph, self.tensors = fx.Graph(), dict[str, Tensor]()
        self.values: dict[fx.Node, Any] = {}
        self.keys: dict[str, dict[str, str]] = {}
        self.unpacked: dict[str, fx.Node] = {}
        self.kept: dict[tuple[Any, ...], fx.Node] = {}

    def exported(self) -> ExportedProgram:
        """The program; takes as many samples as MOST_SAMPLES at most."""
        for node in self.module.graph.nodes:
            if node not in self.values:
                self.values[node] = self._made(node)
        graph = self.simulated
        leaves = [leaf for leaf in graph.ordered(graph.example) if isinstance(leaf, Tensor)]
        batch = Dim("batch", min=1, max=MOST_SAMPLES)
        shapes = tuple({0: batch} if leaf.ndim else {} for leaf in leaves)
        module = fx.GraphModule(self.tensors, self.graph)
        # of fewer samples the converter would conclude, where torch's convolutions of 16 and more differ, that there
        # are never more
        some = tuple(leaf.cpu()[_places(len(leaf))] if leaf.ndim else leaf.cpu() for leaf in leaves)
        with torch.no_grad():
            return torch.export.export(module, some, dynamic_shapes=shapes, strict=False)

    def _made(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            given = node.meta["val"]
            return Value(self.graph.placeholder(node.name)) if isinstance(given, Tensor) else given
        if node.op == "get_attr":
            return self._stored(node)
        if node.op == "output":
            return self._returned(node)
        if node.op == "call_module":
            return self._quantized(self.module.get_submodule(str(node.target)), self.values[node.all_input_nodes[0]])
        if node.name in self.simulated.operations:
            made = self._layer(node)
            if made is not None:
                return made
        return self._called(node)

    def _stored(self, node: fx.Node) -> Any:
        tensor, name = tensor_of(self.module, node), str(node.target)
        if not isinstance(tensor, Tensor):
            return tensor
        if name in self.layers:
            return Weight(name, tensor.detach().cpu())
        return Value(self._constant(tensor))

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"tensor_{len(self.tensors)}"
        self.tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return self.graph.get_attr(name)

    def _call(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        return self.graph.call_function(target, args, options)

    def _returned(self, node: fx.Node) -> None:
        """Return the tensors, each one made by an operator of its own."""
        leaves = [self.values[leaf] for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node)]
        nodes = [self._read(value) for value in leaves if isinstance(value, Value | Weight)]
        own = [
            self._call(_aten.clone.default, made) if made.op != "call_function" or made in nodes[:place] else made
            for place, made in enumerate(nodes)
        ]
        self.graph.output(tuple(own))

    def _quantized(self, quantizer: Any, value: Any) -> Any:
        if isinstance(value, Weight):
            return value
        if quantizer.format.dynamic:
            return Value(self._read(value), dynamic=True)
        factors = factors_of(quantizer)
        return value if value.factors == factors else self._in_int8(self._read(value), factors)

    def _in_int8(self, node: fx.Node, factors: Factors) -> Value:
        return Value(self._call(_quantized.quantize_per_tensor.default, node, *factors.arguments), factors)

    def _read(self, value: Any) -> Any:
        """The node in float: dequantized for this reader alone, so that XNNPACK may take it into the reader."""
        if isinstance(value, Value) and value.dynamic:
            return self._ranged(value.node)
        if isinstance(value, Weight):
            return self._unpacked(value)
        if not isinstance(value, Value) or value.factors is None:
            return value.node if isinstance(value, Value) else value
        return self._call(_quantized.dequantize_per_tensor.default, value.node, *value.factors.arguments)

    def _ranged(self, node: fx.Node) -> fx.Node:
        """Each row in int8, with a scale and a zero point of its own, and dequantized."""
        factors = self._call(_quantized.choose_qparams_per_token_asymmetric.default, node, torch.int8)
        read = [self._call(operator.getitem, factors, place) for place in range(2)]
        integers = self._call(_quantized.quantize_per_token.default, node, *read, -128, 127, torch.int8)
        arguments = integers, *read, -128, 127, torch.int8, torch.float32
        return self._call(_quantized.dequantize_per_token.default, *arguments)

    def _called(self, node: fx.Node) -> Any:
        """The node's own operator on numbers, or on integers where it moves them."""
        if node.target is _aten.embedding.default and (gathered := self._gathered(node)) is not None:
            return gathered
        given: Any = map_arg((node.args, node.kwargs), lambda read: self._read(self.values[read]))
        args, kwargs = given
        made = self._call(node.target, *args, **kwargs)
        read = self.values.get(argument(node, 0)) if moves(node) else None
        if isinstance(read, Value) and read.factors is not None:
            return self._in_int8(made, read.factors)
        return Value(made) if isinstance(node.meta.get("val"), Tensor | tuple | list | None) else made

    def _gathered(self, node: fx.Node) -> Value | None:
        """Rows of a table of integers: gathered first, then unpacked; None where they are not those of its scales."""
        table = self.values[argument(node, 0)]
        weight = self.weights.get(table.layer) if isinstance(table, Weight) else None
        if weight is None or weight.axis != 0 or weight.grouped:
            return None
        places = self._read(self.values[argument(node, 1)])
        parts, shared = self._parts(weight), weight.scale.size == 1
        rows = [self._call(_aten.embedding.default, each, places) for each in (parts[:1] if shared else parts)]
        return Value(self._scaled(*rows, *(parts[1:] if shared else ())))

    def _parts(self, weight: IntegerWeight) -> list[fx.Node]:
        """Integers, scales and zero points, if any, to unpack in every run; shaped to act on one another."""
        arrays = {weight.laid_out.dtype.name: weight.laid_out, "float32 scale": weight.column(weight.scale)}
        if weight.zero_point is not None:
            arrays["uint8 zero_point"] = weight.column(weight.zero_point)
        return [self._kept(weight.name, torch.from_numpy(np.array(array)), kind) for kind, array in arrays.items()]

    def _scaled(self, integers: fx.Node, scale: fx.Node, zero_point: fx.Node | None = None) -> fx.Node:
        numbers = self._call(_aten.to.dtype, integers, torch.float32)
        if zero_point is not None:
            numbers = self._call(_aten.sub.Tensor, numbers, self._call(_aten.to.dtype, zero_point, torch.float32))
        return self._call(_aten.mul.Tensor, numbers, scale)

    def _unpacked(self, value: Weight) -> fx.Node:
        """A weight whose input stays in float, unpacked once in every run; as it is where it is in float32."""
        if value.layer not in self.unpacked:
            self.unpacked[value.layer] = self._in_float(value)
        return self.unpacked[value.layer]

    def _in_float(self, value: Weight) -> fx.Node:
        weight, small = self.weights.get(value.layer), self.floats.get(value.layer)
        if small is not None:
            kept = self._kept(value.layer, small, str(small.dtype).removeprefix("torch."))
            return self._call(_aten.to.dtype, kept, torch.float32)
        if weight is None:
            for packed in packings(value.tensor):
                self.keys.setdefault(value.layer, {})[digest(packed)] = "float32"
            return self._constant(value.tensor)
        numbers = self._scaled(*self._parts(weight))
        if not weight.grouped:
            return numbers
        first = self._call(_aten.reshape.default, numbers, list(weight.channels_first))
        return self._call(_aten.permute.default, first, weight.from_channels_first)

    def _kept(self, layer: str, tensor: Tensor, kind: str, packed: Tensor | None = None) -> fx.Node:
        """A constant of the layer's weight, which XNNPACK holds packed, if it is the one that holds it."""
        key = digest(tensor if packed is None else packed)
        self.keys.setdefault(layer, {})[key] = kind
        place = key, tuple(tensor.shape), packed is not None
        if place not in self.kept:
            self.kept[place] = self._constant(tensor)
        return self.kept[place]

    def _layer(self, node: fx.Node) -> Value | None:
        """A layer's operator on integers, with all up to the quantizer behind it; None where it is not one."""
        layer, operation = self.simulated.operations[node.name]
        weight, x = self.weights.get(layer.name), self.values.get(argument(node, operation.data))
        scheme = plan_of(self.simulated).scheme(layer.name)
        if weight is None or not isinstance(x, Value) or not held_by_xnnpack(operation, layer, scheme):
            return None
        if x.dynamic:
            return Value(self._product(node, operation, weight, self._read(x)))
        if x.factors is None:
            return None
        behind = quantized_behind(self.module, node)
        if behind is None:
            return None
        clipped, quantizer = behind
        made = self._product(node, operation, weight, self._read(x))
        if clipped is not None:
            made = self._clipped(made, bounds_of(clipped))
        value = self._in_int8(made, factors_of(self.module.get_submodule(str(quantizer.target))))
        self.values |= dict.fromkeys([each for each in (clipped, quantizer) if each is not None], value)
        return value

    def _clipped(self, node: fx.Node, bounds: Any) -> fx.Node:
        low, high = bounds
        if (low, high) == (0, math.inf):
            return self._call(_aten.relu.default, node)
        largest = torch.finfo(torch.float32).max
        return self._call(_aten.hardtanh.default, node, max(low, -largest), min(high, largest))

    def _product(self, node: fx.Node, operation: Operation, weight: IntegerWeight, x: fx.Node) -> fx.Node:
        integers, bias = torch.from_numpy(weight.integers), argument(node, operation.kind.bias)
        bias = None if bias is None else self._read(self.values[bias])
        if operation.kind.name in PRODUCTS:
            integers = integers if weight.axis == 0 else integers.t()
            return self._call(_aten.linear.default, x, self._channels(weight, integers.contiguous()), bias)
        arguments = list(node.args)
        arguments[:2] = x, self._channels(weight, integers)
        if bias is not None:
            arguments[2] = bias
        return self._call(node.target, *arguments, **node.kwargs)

    def _channels(self, weight: IntegerWeight, integers: Tensor) -> fx.Node:
        """Integers with the output channels first, dequantized."""
        narrow = is_narrow(integers.shape, 0, weight.bits)
        scale = np.broadcast_to(weight.scale, (len(integers),)).astype(np.float32)
        scales, zeros = torch.from_numpy(scale), torch.zeros(len(scale), dtype=torch.int64)
        packed = in_pairs(integers) if narrow else as_xnnpack_packs(integers)
        read = [
            self._kept(weight.name, integers, "int4" if narrow else "int8", packed),
            self._kept(weight.name, scales, "float32 scale", scales),
            self._constant(zeros),
        ]
        limits = (-8, 7) if narrow else (-128, 127)
        return self._call(_quantized.dequantize_per_channel.default, *read, 0, *limits, torch.int8)


def _places(count: int) -> Tensor:
    """Of so many samples MOST_SAMPLES, in turn."""
    return torch.arange(MOST_SAMPLES) % count


def moves(node: fx.Node) -> bool:
    """Whether the operator moves numbers alone: it may put zeros around them, but nothing else."""
    others = [each for each in (*node.args[2:], *node.kwargs.values()) if each not in ("constant", None, 0)]
    return node.target in _MOVES and not (node.target in _PADS and others)


def quantized_behind(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, fx.Node] | None:
    """What clips the operator's output, if anything does, and its quantizer; None where nothing quantizes it alone."""
    users, clipped = list(node.users), None
    if len(users) == 1 and bounds_of(users[0]) is not None:
        clipped, users = users[0], list(users[0].users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    quantizer = module.get_submodule(str(users[0].target))
    static = isinstance(quantizer, Quantizer) and quantizer.axis is None and not quantizer.format.dynamic
    return (clipped, users[0]) if static else None


def factors_of(quantizer: Any) -> Factors:
    """Of the activation that it quantizes."""
    return Factors(float(quantizer.scale), int(quantizer.zero_point) - _TO_INT8)


def is_narrow(shape: Sequence[int], axis: int, bits: int) -> bool:
    """Whether XNNPACK holds the weight in 4 bits: a matrix of so few, in rows that end with a byte.

    With AVX512-VNNI it computes wrong products of rows that end within one (ExecuTorch 1.5.1).
    """
    return len(shape) == 2 and bits <= BITS_OF_PRODUCTS and shape[1 - axis] % 2 == 0


def in_pairs(integers: Tensor) -> Tensor:
    """[rows, half of the columns] two integers of 4 bits in a byte, each plus 8, as ExecuTorch keeps them."""
    shifted = integers.to(torch.uint8) + 8
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def as_xnnpack_packs(weight: Tensor) -> Tensor:
    """A matrix as it is; a kernel with the channels last, in depthwise ones those of the output."""
    if weight.ndim == 2:
        return weight
    kernel = weight.unsqueeze(2) if weight.ndim == 3 else weight
    kernel = kernel.transpose(0, 1) if kernel.shape[1] == 1 else kernel
    return kernel.movedim(1, -1)


def packings(weight: Tensor) -> list[Tensor]:
    """What the file may hold of a weight in float32: operators of ExecuTorch read it as it is, XNNPACK packed."""
    turned = weight.transpose(0, 1)
    return [weight, turned, *(as_xnnpack_packs(each) for each in (weight, turned))]


def digest(tensor: Tensor) -> str:
    """That of its numbers, see `mixbit.targets._executorch_file.digest`."""
    return digest_of(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def program_of(simulated: Graph) -> tuple[ExportedProgram, dict[str, dict[str, str]]]:
    """The program of a quantized graph, and `Program.keys`; raises UnsupportedModel where there is none."""
    if any(simulated.dynamic):
        raise UnsupportedModel(
            "inputs of several sizes: a file of target executorch has one size beside the batch; give all batches the "
            "same sizes"
        )
    check_no_recurrence(simulated)
    program = Program(simulated)
    return program.exported(), program.keys
