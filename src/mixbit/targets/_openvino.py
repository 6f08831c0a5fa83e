"""The OpenVINO model of a graph: converted with its weights as inputs, which constants and their operators replace."""

import logging
import math
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino.frontend.pytorch import ConversionExtension
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
from openvino.passes import ConstantFolding, Manager
from openvino.tools.ovc import telemetry_stub
from torch import Tensor, fx
from torch.export import default_decompositions
from torch.fx.graph import CodeGen
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn import functional
from torch.utils import _pytree as pytree

from mixbit.core import UnsupportedModel, interrupts_later
from mixbit.graph import Graph, ports_of, returned_nodes, scratch, without_torchs_warnings
from mixbit.graph.functional import decomposed
from mixbit.graph.recurrent import join_recurrences
from mixbit.quantization.quantizer import quantizer_path, weight_quantizers
from mixbit.targets._integers import (
    QUANTIZER,
    IntegerWeight,
    counted_pools,
    operator_name,
    plan_of,
    reason_line,
    stored_weight,
)
from mixbit.targets._openvino_products import move_zero_points
from mixbit.targets._openvino_recurrences import recurrence

_ops: Any = ov.opset15
_aten = torch.ops.aten
#: Operators that move values or pick among them.
MOVES = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "StridedSlice", "Split", "VariadicSplit", "Gather",
    "Concat", "MaxPool", "Relu", "Clamp", "Pad", "Broadcast",
)  # fmt: skip
#: How a product reads a matrix: x @ W or x @ W.T.
AS_IT_IS, TURNED = "as it is", "turned"
#: Axis of a weight -> the ways of reading it that sum along this axis.
SUMS_ALONG = {0: (AS_IT_IS, "ConvolutionBackpropData", "GroupConvolutionBackpropData"), 1: (TURNED, "Convolution")}
#: What lies between the weights of a recurrence and its operator, to order its gates; and the first of the operator's
#: inputs that come after those of samples.
IN_RECURRENCES, FIRST_WEIGHT = ("Split", "Concat", "Unsqueeze"), 3
#: Parts of a layer, as its constants are named.
PARTS = ("integers", "offset", "zero_point", "scale", "weight")
#: Bytes in a row of AMX's tiles, and numbers of channels that it packs into them, see `_goes_wrong_in_integers`.
TILE, FEW_CHANNELS = 64, range(4, 32, 4)
#: Most bytes of a constant, as of a range or a shape, that several operators may share.
SMALL = 64
#: Of a network larger than memory, constants of so many bytes and more are left in a file until they are written.
LARGE = 2**16
#: Where constants begin in that file, in bytes.
ALIGNED = 64


@dataclass(frozen=True)
class Left:
    """Contents of a model's large constants, which hold zeros until `put_left` has written them.

    Attributes:
        contents: Name of a constant -> what reads its bytes.
        zeros: The memory of these constants: OpenVINO does not keep it, so this must live as long as the model is used.
    """

    contents: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    zeros: list[NDArray[np.uint8]] = field(default_factory=list)


def converted(simulated: Graph, types: Mapping[int, str]) -> tuple[Any, Left]:
    """The model, for a batch of any size, with every weight as it is stored; raises UnsupportedModel if that fails.

    The weights enter the conversion as inputs, so that nothing folds them, and are replaced by constants after it, one
    after the other. Of a network larger than memory, large constants hold zeros, and their contents are left in a file,
    see `put_left`. `types` are the element types of integers without zero points, by their width.
    """
    names = _weight_nodes(simulated)
    model = _convert(simulated, list(names))
    weights, num_readers, sums = _Weights(simulated, types), Counter[str](), dict[str, Callable[[], Any]]()
    axes = {layer.name: layer.axis for layer in simulated.layers}
    parameters = model.get_parameters()[len(simulated.example.tensors) :]
    for parameter, name in zip(parameters, names.values(), strict=True):
        for reader in _readers(parameter):
            _name_reader(reader, operator_name(name, num_readers[name]))
            num_readers[name] += 1
        ways = sorted(_ways(parameter), key=lambda way, axis=axes[name]: way in SUMS_ALONG[axis])
        wrong = _goes_wrong_in_integers(parameter)
        recurrent = any(_gates(reader) is not None for reader in _readers(parameter))
        for port in parameter.output(0).get_target_inputs():
            reader = port.get_node()
            if reader.get_type_name() == "ShapeOf":  # who reads a weight for its shape keeps the plugin from it
                sizes = parameter.get_output_shape(0)
                shape = _ops.constant(np.array(sizes), dtype=reader.get_output_element_type(0))
                reader.output(0).replace(shape.output(0))
            else:
                apart = len(ways) > 1 and bool(_ways_of(port)) and ways[0] not in _ways_of(port)
                whole = apart or wrong or recurrent
                read = weights.read_by(name, port, apart=apart, whole=whole)
                port.replace_source_output(read.output(0))
                if reader.get_type_name() == "MatMul" and port.get_index() == 1 and name in weights.reads:
                    axis = -1 if reader.get_transpose_b() else -2
                    sums[reader.get_friendly_name()] = partial(weights.sum, name, axis)
        model.remove_parameter(parameter)
    move_zero_points(model, sums)
    _part_extremes(model)
    _part_averages(model)
    _name_ports(model, simulated)
    return model, weights.left


def _name_ports(model: Any, simulated: Graph) -> None:
    """Return what the graph returns, and let inputs and outputs alone have names: those that users know.

    The plugin gives tensors one name that are the same, as one that is returned twice.
    """
    ports, nodes = ports_of(simulated), list(returned_nodes(simulated).values())
    sources = dict(zip(dict.fromkeys(nodes), [result.input_value(0) for result in model.get_results()], strict=True))
    for result in model.get_results():
        model.remove_result(result)
    for place, node in enumerate(nodes):
        source = sources[node]
        if node in nodes[:place] or source.get_node().get_type_name() == "Parameter":
            source = _ops.convert(source, source.get_element_type().to_string())
        model.add_results([_ops.result(source)])
    for tensor in (output for node in model.get_ops() for output in node.outputs()):
        tensor.get_tensor().set_names(set())
    for tensor, port in zip((*model.inputs, *model.outputs), (*ports.inputs, *ports.outputs), strict=True):
        tensor.get_tensor().set_names({port.name})


def _weight_nodes(graph: Graph) -> dict[fx.Node, str]:
    """Node through which operators read a layer's weight, a quantizer or the parameter itself -> the layer's name."""
    names = {layer.name for layer in graph.layers}
    nodes = {}
    for node in graph.module.graph.find_nodes(op="get_attr"):
        if node.target in names:
            quantizers = [user for user in node.users if user.op == "call_module"]
            nodes[(quantizers or [node])[0]] = str(node.target)
    return nodes


def _convert(simulated: Graph, nodes: Sequence[fx.Node]) -> Any:
    """The graph with these nodes as further inputs."""
    shapes = [
        [-1 if axis in free else size for axis, size in enumerate(leaf.shape)]
        for leaf, free in zip(simulated.ordered(simulated.example), simulated.free, strict=True)
        if isinstance(leaf, Tensor)
    ]
    names = [node.name for node in nodes]
    shapes += [list(node.meta["val"].shape) for node in nodes]
    translations = [
        ConversionExtension("mixbit.quantize_dequantize.default", _fake_quantize),
        # the plugin takes such ranges itself
        ConversionExtension("mixbit.whole_recurrence.default", recurrence),
        ConversionExtension("mixbit.quantize_at_run_time.default", lambda context: [context.get_input(0)]),
    ]
    try:
        with without_torchs_warnings(), interrupts_later(), _without_telemetry(), _same_root_logger():
            decoder = TorchFXPythonDecoder(_operators(_without_counted_padding(simulated), names), dynamic_shapes=True)
            model = ov.convert_model(decoder, extension=translations)
        model.reshape({port: ov.PartialShape(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
        folding = Manager()
        folding.register_pass(ConstantFolding())  # what is made of the weights' shapes, not of the weights
        folding.run_passes(model)
    except (RuntimeError, ov.frontend.OpConversionFailure) as error:
        raise UnsupportedModel(
            f"OpenVINO cannot convert the model: {reason_line(error)}; write what it names otherwise, "
            "or take another target"
        ) from error
    return model


def _operators(copied: Graph, names: Sequence[str]) -> fx.GraphModule:
    """The module, changed in place, in operators that the frontend takes; these nodes become further inputs.

    OpenVINO decomposes exported programs by the same table, but traces every operator for that.
    """
    module, graph = copied.module, copied.module.graph
    join_recurrences(module)
    graph.set_codegen(CodeGen())
    (output,) = graph.find_nodes(op="output")  # the frontend takes no tensor twice
    output.args = (tuple(dict.fromkeys(leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node))),)
    for name in names:
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            lifted = graph.placeholder(f"lifted_{name}")
        lifted.meta["val"] = copied.node(name).meta["val"]
        copied.node(name).replace_all_uses_with(lifted)
    graph.eliminate_dead_code()
    for node in graph.find_nodes(op="call_module"):
        _spell_out(module, node)
    graph.eliminate_dead_code()
    for node in graph.find_nodes(op="call_function", target=_aten.reshape.default):
        node.target = _aten.view.default  # OpenVINO's tensors lie in memory one way
    _round_down(graph)
    module.graph = decomposed(graph, _decompositions())
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["tensor_meta"] = TensorMetadata(value.shape, value.dtype, False, value.stride(), None, False, {})
    return module


def _round_down(graph: fx.Graph) -> None:
    """Write divisions of negative sizes by positive ones: OpenVINO 2026.4 rounds them up, as in -(-size // 2)."""
    for node in graph.find_nodes(op="call_function", target=operator.floordiv):
        size, by = node.args
        value = size.meta["val"] if isinstance(size, fx.Node) else size
        if not isinstance(value, torch.SymInt):
            continue
        bounds = value.node.shape_env.bound_sympy(value.node.expr)
        if bounds.lower >= 0:
            continue
        if bounds.upper > 0 or not isinstance(by, int) or by <= 0:
            raise UnsupportedModel(
                f"{node.name}: divides a size that may be negative, {value}, by {by}, which OpenVINO rounds otherwise; "
                "divide positive sizes alone"
            )
        with graph.inserting_before(node):  # floor(a / b) = -floor((-a + b - 1) / b)
            positive = graph.call_function(operator.neg, (size,))
            more = graph.call_function(operator.add, (positive, by - 1))
            quotient = graph.call_function(operator.floordiv, (more, by))
            made = graph.call_function(operator.neg, (quotient,))
        for new, result in (
            (positive, -value), (more, -value + by - 1), (quotient, (-value + by - 1) // by), (made, node.meta["val"]),
        ):  # fmt: skip
            new.meta["val"] = result
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _spell_out(module: fx.GraphModule, node: fx.Node) -> None:
    """Put its operators in the place of a quantizer."""
    graph, path, x = module.graph, str(node.target), node.args[0]
    quantizer: Any = module.get_submodule(path)
    with graph.inserting_before(node):
        if quantizer.mask is not None:
            x = graph.call_function(_aten.mul.Tensor, (x, graph.get_attr(f"{path}.mask")))
        target, arguments = quantizer.operator(graph.get_attr(f"{path}.scale"), graph.get_attr(f"{path}.zero_point"))
        spelt = graph.call_function(target, (x, *arguments))
    spelt.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(spelt)
    graph.erase_node(node)


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Operator -> what it is made of, for those that OpenVINO's frontend does not take."""
    table = default_decompositions()
    for target in ops_to_not_decompose():
        if target in table:
            table.pop(target)
    return table.materialize()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let the converter report to nobody, also where OpenVINO was imported by the user, with its telemetry."""
    converter = [module for name, module in sys.modules.items() if name.startswith("openvino.tools.ovc")]
    telling = {module: module.tm for module in converter if getattr(module, "tm", telemetry_stub) is not telemetry_stub}
    for module in telling:
        setattr(module, "tm", telemetry_stub)  # noqa: B010 a module has no such attribute to a type checker
    try:
        yield
    finally:
        for module, telemetry in telling.items():
            setattr(module, "tm", telemetry)  # noqa: B010


@contextmanager
def _same_root_logger() -> Iterator[None]:
    """Give the root logger back as it was: a conversion that fails sets its level, and adds a handler and a filter."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers[:], root.filters[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


def _without_counted_padding(simulated: Graph) -> Graph:
    """The graph whose padded average pools are convolutions of each channel by 1 / elements, which run in float32.

    OpenVINO 2026.4 fills the padding of a tensor of integers with the integer 0, whatever the zero point; and where it
    leaves the padding out, what is multiplied behind the pool is rounded to 8 bits.
    """
    copied = simulated.copy()
    graph = copied.module.graph
    for pool in [pool for pool in counted_pools(copied) if any(pool.padding)]:
        weight = torch.full((pool.channels, 1, *pool.kernel), 1 / math.prod(pool.kernel), device=simulated.device)
        convolve, flat = getattr(torch.ops.aten, f"conv{len(pool.kernel)}d").default, [0] * len(pool.kernel)
        ends = pool.padding
        if pool.shares is not None:
            dimensions = zip(pool.shares.shape[1:], pool.stride, pool.kernel, pool.sizes, pool.padding, strict=True)
            ends = [max(0, (count - 1) * step + width - size - first) for count, step, width, size, first in dimensions]
        around = [value for pair in zip(reversed(pool.padding), reversed(ends), strict=True) for value in pair]
        copied.module.register_buffer(f"{pool.node.name}_weight", weight)
        with graph.inserting_before(pool.node):
            x = graph.call_function(torch.ops.aten.pad.default, (pool.node.args[0], around))
            kernel = graph.get_attr(f"{pool.node.name}_weight")
            mean = graph.call_function(convolve, (x, kernel, None, pool.stride, flat, [1] * len(flat), pool.channels))
            if pool.rounded_up and pool.shares is not None:  # windows that reach beyond the padding are divided by less
                padded_ones = functional.pad(weight.new_ones(1, 1, *pool.sizes), around)
                factors = pool.shares / convolve(padded_ones, weight[:1], None, pool.stride)[0]
                copied.module.register_buffer(f"{pool.node.name}_factors", factors)
                mean = graph.call_function(
                    torch.ops.aten.mul.Tensor, (mean, graph.get_attr(f"{pool.node.name}_factors"))
                )
        pool.node.replace_all_uses_with(mean)
        graph.erase_node(pool.node)
    copied.module.recompile()
    return copied


def _fake_quantize(context: Any) -> list[Any]:
    scale, zero_point = (context.get_input(index).get_node().data.astype(np.float32) for index in (1, 2))
    low, high = (context.get_values_from_const_input(index) for index in (4, 5))
    first, last = (_ops.constant((end - zero_point) * scale) for end in (low, high))
    quantize = _ops.fake_quantize(context.get_input(0), first, last, first, last, high - low + 1)
    path = quantizer_path("", of_weight=False).replace(".", "_")
    for name in context.get_input(1).get_names():  # of the scale, a buffer of the quantizer
        if name.startswith(path):
            quantize.set_friendly_name(QUANTIZER + name.removeprefix(path).rpartition("_scale")[0])
    return quantize.outputs()


def _part_extremes(model: Any) -> None:
    """Put the change of rank of every maximum and minimum into a separate operator.

    The CPU plugin fuses a quantizer right behind them and then returns other values (OpenVINO 2026.4).
    """
    for node in [node for node in model.get_ops() if node.get_type_name() in {"ReduceMax", "ReduceMin"}]:
        reduce = _ops.reduce_max if node.get_type_name() == "ReduceMax" else _ops.reduce_min
        change = _ops.unsqueeze if node.get_keep_dims() else _ops.squeeze
        x, axes = node.input_values()
        node.output(0).replace(change(reduce(x, axes, keep_dims=not node.get_keep_dims()), axes).output(0))


def _part_averages(model: Any) -> None:
    """Put a function that changes nothing before every average pool that something reads as it is, not quantized.

    The CPU plugin would pool integers, and round what it hands on to 8 bits (OpenVINO 2026.4).
    """
    nodes = model.get_ops()
    quantizes = any(node.get_type_name() == "FakeQuantize" for node in nodes)
    for pool in [node for node in nodes if quantizes and node.get_type_name() == "AvgPool"]:
        if not _is_quantized(pool):
            port = pool.input(0)
            port.replace_source_output(
                _ops.maximum(port.get_source_output(), np.float32(np.finfo(np.float32).min)).output(0)
            )


def _is_quantized(node: Any) -> bool:
    """Whether all readers of what the node returns quantize it, which others may move before."""
    readers = [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]
    kinds = [(reader, reader.get_type_name()) for reader in readers if reader.get_type_name() != "ShapeOf"]
    return all(kind == "FakeQuantize" or (kind in MOVES and _is_quantized(reader)) for reader, kind in kinds)


def _name_reader(reader: Any, name: str) -> None:
    """Name an operator after its layer, and the addition of its bias too: a fused pair keeps one name of the two.

    A recurrence has two layers: it is named after the second, and what it reads of each after that one.
    """
    gates = _gates(reader)
    if gates is not None:
        gates.set_friendly_name(f"{name}/gates")
        next(_readers(gates)).set_friendly_name(f"{name}/recurrence")
        return
    reader.set_friendly_name(name)
    for port in reader.output(0).get_target_inputs():
        after = port.get_node()
        if after.get_type_name() == "Add" and any(_is_constant(value.get_node()) for value in after.input_values()):
            after.set_friendly_name(f"{name}/bias")


def _gates(node: Any) -> Any:
    """What a recurrence takes as a weight that the node is or is put together to; None where there is none."""
    if node.get_type_name() not in IN_RECURRENCES:
        return None
    for port in (port for output in node.outputs() for port in output.get_target_inputs()):
        after = port.get_node()
        if after.get_type_name().endswith("Sequence"):
            return node if port.get_index() >= FIRST_WEIGHT else None
        gates = _gates(after)
        if gates is not None:
            return gates
    return None


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Reshape", "Convert"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _readers(node: Any) -> Iterator[Any]:
    """The operators that read the weight, through reshapes and transposes."""
    nodes = [port.get_node() for port in node.output(0).get_target_inputs()]
    for reader in sorted(nodes, key=lambda node: node.get_friendly_name()):
        if reader.get_type_name() in ("Reshape", "Transpose", "Convert"):
            yield from _readers(reader)
        elif reader.get_type_name() != "ShapeOf":
            yield reader


def _ways(node: Any) -> set[str]:
    """How products and convolutions read the weight of the node: one text for each way, a matrix as it is or turned."""
    return set[str]().union(*(_ways_of(port) for port in node.output(0).get_target_inputs()))


def _ways_of(port: Any) -> set[str]:
    """As `_ways`, of the operators behind one port."""
    reader = port.get_node()
    kind = reader.get_type_name()
    if kind == "MatMul":
        second = port.get_index() == 1
        return {AS_IT_IS if reader.get_attributes()["transpose_b" if second else "transpose_a"] != second else TURNED}
    if kind not in ("Reshape", "Transpose", "Convert"):
        return set() if kind in ("ShapeOf", "Gather") else {kind}
    swapped = {AS_IT_IS: TURNED, TURNED: AS_IT_IS} if kind == "Transpose" else {}
    return {swapped.get(way, way) for way in _ways(reader)}


def _goes_wrong_in_integers(weight: Any) -> bool:
    """Whether a convolution of the kind reads the weight that the plugin computes wrongly in integers.

    With AMX, and 4, 8, ... or 28 input channels, or as many in each group, the numbers have nothing to do with the
    right ones where channels times the last dimension of the kernel are 128, 192, 256, ... (OpenVINO 2026.4).
    """
    for reader in _readers(weight):
        if reader.get_type_name() in ("Convolution", "GroupConvolution"):
            shape, dimensions = reader.input_value(1).get_shape(), reader.input_value(0).get_partial_shape().rank
            channels = shape[1 - dimensions.get_length()]
            row = channels * shape[-1]
            if channels in FEW_CHANNELS and row > TILE and row % TILE == 0:
                return True
    return False


def _rewritten(weight: Any) -> Any:
    """The same tensor, which the plugin holds a second time: turned, behind a transpose."""
    rows, columns, *rest = weight.shape
    turns = [1, 0, *range(2, 2 + len(rest))]
    orders = (_ops.constant(np.array(order)) for order in ([0, *(1 + turn for turn in turns)], turns))
    shapes = (_ops.constant(np.array(shape)) for shape in ((1, rows, columns, *rest), (columns, rows, *rest)))
    turned = _ops.transpose(_ops.reshape(weight, next(shapes), False), next(orders))
    return _ops.transpose(_ops.reshape(turned, next(shapes), False), next(orders))


class _Weights:
    """The constants of all layers, and the operators that make of them what an operator reads."""

    def __init__(self, simulated: Graph, types: Mapping[int, str]) -> None:
        self.simulated, self.types, plan = simulated, types, plan_of(simulated)
        self.layers = {layer.name: layer for layer in simulated.layers}
        self.quantizers = weight_quantizers(simulated)
        #: Layer in integers -> format of what it reads.
        self.reads = {
            name: plan.scheme(name).input
            for name, quantizer in self.quantizers.items()
            if quantizer.format.floating is None
        }
        self.ranged = {name for name, read in self.reads.items() if read is not None and read.dynamic}
        self.multiplied = {layer.name for layer in simulated.layers if layer.inputs}
        self.constants: dict[tuple[str, str], Any] = {}
        self.spill = None if simulated.room is None else scratch(simulated.room)
        self.left = Left()

    def sum(self, name: str, axis: int) -> NDArray[Any]:
        """The sums of the layer's weight after rounding along an axis, in float64."""
        return self.quantizers[name](self._value(name)).cpu().double().numpy().sum(axis)

    def read_by(self, name: str, port: Any, *, apart: bool, whole: bool) -> Any:
        """The layer's weight in float32, computed from what is stored, for what reads it there.

        Read as a `whole`, it is float32 in the compiled model, and the operator computes in float32. An operator
        `apart` gets a copy of its own: the plugin packs a weight for one way of reading it, and takes the result for
        other ways too (OpenVINO 2026.4).
        """
        weight = self._read_by(name, port, whole=whole)
        return _rewritten(weight) if apart else weight

    def _read_by(self, name: str, port: Any, *, whole: bool) -> Any:
        if name not in self.quantizers:
            return self._constant(name, "weight", self._value(name).cpu().numpy())
        weight = stored_weight(self.simulated, self.layers[name], self.quantizers[name])
        if isinstance(weight, Tensor):
            kind = ov.Type.f16 if weight.dtype == torch.float16 else ov.Type.bf16
            return _ops.convert(self._constant(name, "weight", weight.float().numpy(), kind), "f32")
        ranged = name in self.ranged and port.get_node().get_type_name() != "Gather"
        whole |= bool(self.ranged) and name in self.multiplied and not ranged
        return self._unpacked(weight, whole=whole)

    def _value(self, name: str) -> Tensor:
        return self.simulated.parameter(name).detach()

    def _unpacked(self, weight: IntegerWeight, *, whole: bool) -> Any:
        """Constant at the plan's width -> less the offset or the zero points -> float32 -> times the scales.

        Unpacked as a `whole`, it is float32 in the compiled model. Where the plugin takes ranges at run time, it would
        otherwise quantize the inputs of all layers, and not those of a table that is a matrix too.
        """
        symmetric = weight.zero_point is None
        kind = self.types[weight.bits] if symmetric else f"u{weight.bits}"
        unsigned = kind.startswith("u")
        integers = weight.unsigned if unsigned else weight.laid_out
        node = self._constant(weight.name, "integers", integers, getattr(ov.Type, kind))
        if symmetric and kind != "i8" and not (weight.grouped and kind == "i4"):
            node = _ops.convert(node, "i8")
        if symmetric and unsigned:
            node = _ops.subtract(node, self._constant(weight.name, "offset", np.array(weight.offset, dtype=np.int8)))
        if not symmetric and weight.bits not in (4, 8):  # else the plugin multiplies by them as they are
            node = _ops.convert(node, "u8")
        node = _ops.convert(_ops.convert(node, "i32") if whole else node, "f32")
        if weight.zero_point is not None:
            zero = self._constant(weight.name, "zero_point", weight.column(weight.zero_point))
            node = _ops.subtract(node, _ops.convert(_ops.convert(zero, "i32") if whole else zero, "f32"))
        node = _ops.multiply(node, self._constant(weight.name, "scale", weight.column(weight.scale)))
        if not weight.grouped:
            return node
        node = _ops.reshape(node, _ops.constant(np.array(weight.channels_first)), False)
        return node if weight.axis == 0 else _ops.transpose(node, _ops.constant(np.array(weight.from_channels_first)))

    def _constant(self, layer: str, part: str, array: NDArray[Any], kind: Any = None) -> Any:
        """The constant of that part of a layer, made where there is none."""
        if (layer, part) not in self.constants:
            constant = _ops.constant(array) if kind is None else _ops.constant(array, dtype=kind)
            if self.spill is not None and constant.get_byte_size() >= LARGE:
                content = torch.tensor(constant.data.reshape(-1).view(np.uint8))
                self.left.contents[f"{layer}/{part}"] = self.spill.held(content)
                self.left.zeros.append(np.zeros(len(content), dtype=np.uint8))
                constant = _over(self.left.zeros[-1], constant)
            constant.set_friendly_name(f"{layer}/{part}")
            self.constants[layer, part] = constant
        return self.constants[layer, part]


def _over(memory: NDArray[np.uint8], constant: Any) -> Any:
    """A constant like this one over memory that it does not keep; zeros that nothing has written need none."""
    tensor = ov.Tensor(memory, constant.get_output_shape(0), constant.get_element_type())
    return ov.op.Constant(tensor, shared_memory=True)


def put_left(path: Path, weights: Path, left: Left) -> None:
    """Write the contents of constants that were left in a file, and what the other constants hold, in one file."""
    tree, beside, places = ET.parse(path), weights.with_name(f"{weights.name}.new"), dict[tuple[str, str], int]()
    with weights.open("rb") as before, beside.open("wb") as file:
        for layer in tree.iter("layer"):
            data, name = layer.find("data"), layer.get("name", "")
            if layer.get("type") != "Const" or data is None:
                continue
            offset, size = data.get("offset", ""), data.get("size", "")
            if name in left.contents or (offset, size) not in places:
                file.write(bytes(-file.tell() % ALIGNED))
                if name in left.contents:
                    data.set("offset", str(file.tell()))
                    left.contents[name]().numpy().tofile(file)
                    continue
                places[offset, size] = file.tell()
                before.seek(int(offset))
                file.write(before.read(int(size)))
            data.set("offset", str(places[offset, size]))
    beside.replace(weights)
    tree.write(path)


def shorten(path: Path) -> None:
    """Drop from the description what its reader infers and what nobody reads, more than half of the file.

    The reader infers the shapes of tensors and the types of what operators read. Nobody reads indentation, the history
    of fused names, and the names of constants that belong to no layer and of tensors inside the network. Small
    constants of one value become one.
    """
    tree = ET.parse(path)
    (layers,) = tree.iter("layers")
    _merge_small(layers, list(tree.iter("edge")))
    ends = {layer.get("id") for layer in layers if layer.get("type") in ("Parameter", "Result")}
    ends |= {edge.get("from-layer") for edge in tree.iter("edge") if edge.get("to-layer") in ends}
    for layer in layers:
        if _belongs_to_no_layer(layer):
            layer.set("name", layer.get("id", ""))
        for port in layer.iterfind("input/port"):
            port.attrib.pop("precision", None)
        for port in layer.iterfind("output/port") if layer.get("id") not in ends else ():
            port.attrib.pop("names", None)
    for element in tree.iter():
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
        if element.get("auto_broadcast") == "numpy":  # the default
            element.attrib.pop("auto_broadcast")
        for child in [child for child in element if child.tag == "dim" or child.get("name") == "fused_names"]:
            element.remove(child)
    for layer in layers:
        for child in [child for child in layer if len(child) == len(child.attrib) == 0]:
            layer.remove(child)
    path.write_bytes(ET.tostring(tree.getroot(), xml_declaration=True).replace(b" />", b"/>"))


def _merge_small(layers: ET.Element, edges: list[ET.Element]) -> None:
    """Let operators read one constant where several hold the same bytes; a large one read in two ways can go wrong."""
    kept: dict[tuple[tuple[str, str], ...], str] = {}
    merged: dict[str, str] = {}
    for layer in [layer for layer in layers if _belongs_to_no_layer(layer)]:
        data, number = layer.find("data"), layer.get("id", "")
        if data is not None and int(data.get("size", 0)) <= SMALL:
            merged[number] = kept.setdefault(tuple(sorted(data.items())), number)
            if merged[number] != number:
                layers.remove(layer)
    for edge in edges:
        number = edge.get("from-layer", "")
        edge.set("from-layer", merged.get(number, number))


def _belongs_to_no_layer(layer: ET.Element) -> bool:
    """Whether it is a constant that is no part of a layer of the network."""
    return layer.get("type") == "Const" and layer.get("name", "").rpartition("/")[2] not in PARTS
