"""The TensorFlow Lite file of a graph, operator by operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import SymInt, Tensor, fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from mixbit.core import UnsupportedModel
from mixbit.graph import Graph, bounds_of, ports_of
from mixbit.graph.functional import keeping_symbols
from mixbit.graph.graph import tensor_of
from mixbit.quantization.quantizer import Quantizer
from mixbit.targets._integers import check_no_recurrence, stored_weights
from mixbit.targets._layers import QUANTIZED
from mixbit.targets._tflite_between import requantized
from mixbit.targets._tflite_operators import OPERATORS
from mixbit.targets._tflite_table import Result
from mixbit.targets._tflite_values import TYPES, Extent, Factors, Order, Value, logical
from mixbit.targets._tflite_writer import Writer

#: Options of torch's operators that say nothing about what is computed, beside the type, which the output has.
_UNREAD = {"device", "dtype", "implicit", "layout", "memory_format", "non_blocking", "pin_memory", "stable"}
#: Between uint8, as quantizers have it, and int8.
_TO_INT8 = 128
#: Functions that operators can apply to what they return, by their bounds, as the schema numbers them.
_FUSED = {(0, np.inf): 1, (-1, 1): 2, (0, 6): 3}

Values = dict[Any, Any]


def converted(
    simulated: Graph, *, packs: bool = True, requantizes: bool = True, input_order: Callable[[int], Order] = logical
) -> bytes:
    """The file of a quantized graph: weights as integers, layers in int8 where their input and output are.

    Args:
        simulated: The quantized graph.
        packs: Whether integers of fewer than 8 bits share bytes.
        requantizes: Whether averages and concatenations between quantizers are made in integers, as XNNPACK rounds.
        input_order: Number of an input's dimensions -> the order in which the file has them.

    Raises:
        UnsupportedModel: An operator that is not in the table, or a form of it.
    """
    check_no_recurrence(simulated)
    module = simulated.module
    writer, values = Writer(packs=packs, requantizes=requantizes), Values()
    translation = _Translation(simulated, writer, values, *stored_weights(simulated), input_order)
    with keeping_symbols(module.graph):
        for node in module.graph.nodes:
            translation.translate(node)
    return writer.packed()


class _Translation:
    """A graph on its way into a file.

    Attributes:
        values: Node -> its value, values, or number.
    """

    def __init__(
        self,
        simulated: Graph,
        writer: Writer,
        values: Values,
        weights: Any,
        floats: Any,
        input_order: Callable[[int], Order],
    ) -> None:
        self.graph, self.module, self.writer, self.values = simulated, simulated.module, writer, values
        self.weights, self.floats, self.input_order = weights, floats, input_order
        self.layers = {layer.name for layer in simulated.layers}
        ports = ports_of(simulated)
        self.inputs = zip(ports.inputs, simulated.tensors(simulated.example), strict=True)
        self.outputs = iter(ports.outputs)

    def translate(self, node: fx.Node) -> None:
        """Write one node, unless another has done its work."""
        if node in self.values:
            return
        if node.op == "placeholder":
            self.values[node] = self._input(node)
        elif node.op == "get_attr":
            self.values[node] = self._stored(node)
        elif node.op == "output":
            self._return(node)
        elif node.op == "call_module":
            quantizer: Any = self.module.get_submodule(str(node.target))
            self.values[node] = self._quantized(quantizer, self.values[node.all_input_nodes[0]])
        else:
            self.values[node] = self._made(node)

    def _input(self, node: fx.Node) -> Any:
        """A tensor; other inputs were captured as constants."""
        given = node.meta["val"]
        if not isinstance(given, Tensor):
            return given
        shape = sizes(given)
        if given.dtype not in TYPES:
            raise UnsupportedModel(f"{node.name}: no input of {given.dtype} in a TensorFlow Lite file; take float32")
        value = Value(shape, given.dtype, self.input_order(len(shape)))
        port, example = next(self.inputs)
        index = self.writer.tensor(value.stored(value.order), TYPES[given.dtype], port.name)
        # LiteRT opens a file for the sizes that it gives: of one sample, and of those of any size the example's
        opened = [
            size if isinstance(size, int) else example.shape[axis] if axis else 1 for axis, size in enumerate(shape)
        ]
        self.writer.graph.tensors[index].shape = np.array([opened[axis] for axis in value.order], np.int32)
        self.writer.graph.inputs.append(index)
        value.tensors[value.order, False] = index
        self.writer.inputs.append(value)
        return value

    def _stored(self, node: fx.Node) -> Any:
        tensor, name = tensor_of(self.module, node), str(node.target)
        if not isinstance(tensor, Tensor):
            return tensor
        if tensor.dtype not in TYPES:
            raise UnsupportedModel(f"{name}: no {tensor.dtype} in a TensorFlow Lite file; take float32")
        array = tensor.detach().cpu()
        value = Value(tuple(tensor.shape), tensor.dtype, logical(tensor.ndim), array=array.numpy())
        if name in self.layers:
            value.layer, value.weight, value.narrow = name, self.weights.get(name), self.floats.get(name)
        return value

    def _quantized(self, quantizer: Quantizer, x: Value) -> Value:
        """The value with its integers; that of a weight has them already."""
        if quantizer.axis is not None:
            return x
        factors = factors_of(quantizer)
        if x.factors == factors:
            return x
        if x.factors is not None:
            made = requantized(self.writer, x, factors)
        else:
            made = self.writer.made("QUANTIZE", [self.writer.read(x)], x.shape, x.dtype, x.order, factors)
        self._name(made, f"{QUANTIZED}{quantizer.tensor}")
        return made

    def _made(self, node: fx.Node) -> Any:
        """What an operator returns; a constant where it reads nothing else."""
        known = self._computed(node)
        if known is not None:
            return known
        write = OPERATORS.get(node.target)
        if write is None:
            raise UnsupportedModel(
                f"{node.name}: target litert has no operator for {node.target}; write what it names otherwise, or take "
                "another target"
            )
        given: Any = map_arg((node.args, node.kwargs), lambda read: self.values[read])
        args, kwargs = given
        options = {name: value for name, value in kwargs.items() if name not in _UNREAD}
        result = self._result(node)
        layer = self.graph.operations.get(node.name)
        try:
            made = write(self.writer, result, *args, **options)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{node.name}: {error}") from error
        if made is None:
            raise UnsupportedModel(
                f"{node.name}: target litert cannot write this form of {node.target}; write it otherwise, or take "
                "another target"
            )
        if result.spared:
            self.values |= dict.fromkeys(result.behind, made)
            quantizer: Any = self.module.get_submodule(str(result.behind[-1].target))
            self._name(made, f"{QUANTIZED}{quantizer.tensor}")
        elif layer is not None and len(layer[0].operations) == 1 and isinstance(made, Value) and made.factors is None:
            self._name(made, layer[0].name)
        return made

    def _computed(self, node: fx.Node) -> Any:
        """A tensor that depends on neither inputs nor weights of layers, or a size; None elsewhere."""
        known = node.meta.get("val")
        if known is not None and not isinstance(known, Tensor | tuple | list):
            return known
        read = [self.values[each] for each in node.all_input_nodes]
        tags = getattr(node.target, "tags", ())
        constant = all(not isinstance(value, Value) or value.is_constant for value in read if not _is_size(value))
        if not constant or any(map(_is_size, read)) or torch.Tag.nondeterministic_seeded in tags:
            return None
        if not isinstance(known, Tensor) or not all(isinstance(size, int) for size in known.shape):
            return None
        given: Any = map_arg((node.args, node.kwargs), lambda each: _tensor(self.values[each]))
        args, kwargs = given
        made = node.target(*args, **kwargs)  # type: ignore[operator] an operator is callable
        return Value(tuple(made.shape), made.dtype, logical(made.ndim), array=made.detach().cpu().numpy())

    def _result(self, node: fx.Node) -> Result:
        given = node.meta["val"]
        if isinstance(given, tuple | list):
            return Result((), torch.float32, [Result(sizes(part), part.dtype) for part in given])
        result = Result(sizes(given), given.dtype)
        users, clipped = list(node.users), []
        bounds = bounds_of(users[0]) if len(users) == 1 else None
        if bounds is not None:
            clipped, users = [users[0]], list(users[0].users)
        if len(users) != 1 or users[0].op != "call_module":
            return result
        quantizer: Any = self.module.get_submodule(str(users[0].target))
        if not isinstance(quantizer, Quantizer) or quantizer.axis is not None:
            return result
        factors = factors_of(quantizer)
        result.activation, result.ends = _activation(bounds or (-np.inf, np.inf), factors)
        result.factors, result.behind = factors, [*clipped, users[0]]
        return result

    def _name(self, value: Value, name: str) -> None:
        """Name the tensor that holds the value in its own order, so that it is found again."""
        index = value.tensors[value.order, value.factors is not None]
        self.writer.graph.tensors[index].name = f"{name} {','.join(map(str, value.order))}".encode()

    def _return(self, node: fx.Node) -> None:
        """Make the tensors outputs; what is an input, a constant or returned twice is copied."""
        graph = self.writer.graph
        for leaf in pytree.tree_leaves(node.args):
            value = self.values[leaf] if isinstance(leaf, fx.Node) else None
            if not isinstance(value, Value):
                continue
            index = self.writer.read(value, logical(value.rank))
            if index in graph.inputs or index in graph.outputs or graph.tensors[index].buffer:
                copied = Value(value.shape, value.dtype, logical(value.rank))
                index = self._copied(index, copied)
            graph.tensors[index].name = next(self.outputs).name.encode()
            graph.outputs.append(index)
        self.writer.sign()

    def _copied(self, index: int, value: Value) -> int:
        made = self.writer.empty(value, value.order, in_int8=False)
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        self.writer.operator("RESHAPE", [index, self.writer.vector(shape)], [made])
        return made


def sizes(tensor: Tensor) -> tuple[Extent, ...]:
    """Of each dimension its size, or how torch writes it."""
    return tuple(size if isinstance(size, int) else str(size.node.expr) for size in tensor.shape)


def factors_of(quantizer: Quantizer) -> Factors:
    """Scale and zero point of an activation, for int8."""
    return Factors(float(quantizer.scale), int(quantizer.zero_point) - _TO_INT8)


def _is_size(value: Any) -> bool:
    return isinstance(value, SymInt)


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.array(value.array)) if isinstance(value, Value) else value


def _activation(bounds: tuple[float, float], factors: Factors) -> tuple[int, tuple[int, int] | None]:
    """The number of the function that clips there, 0 where it has none, and the integers between which it does.

    0 and None where int8 ends there anyway.
    """
    low, high = (
        int(np.clip(np.rint(bound / np.float32(factors.scale)) + factors.zero_point, -128, 127)) for bound in bounds
    )
    if (low, high) == (-128, 127):
        return 0, None
    return _FUSED.get(bounds, 0), (low, high)
