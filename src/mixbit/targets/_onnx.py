"""The ONNX model of a graph: quantizers in standard operators, weights as they are stored."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mixbit.core import Format
from mixbit.graph import Graph, ports_of
from mixbit.quantization.affine import PLANES, pack
from mixbit.quantization.quantizer import Quantizer, quantizer_path, weight_quantizers
from mixbit.targets._integers import (
    BLOCK_BITS,
    BLOCK_SIZES,
    MASK,
    ROUNDS_INPUTS,
    SEPARATOR,
    IntegerWeight,
    stored_weight,
)
from mixbit.targets._onnx_graph import MATRIX, drop_unused, name_operators, name_ports, name_readers, readers
from mixbit.targets._onnx_translation import translated
from mixbit.targets._onnx_writer import UNROUNDED, Writer, constant, initializer

#: Operators that onnxruntime runs in integers when both inputs are; others read weights as float32.
INTEGER_OPERATORS = ("Conv", "Gemm", "MatMul")
#: Operators that move values or pick among them; they do not change the scale that the values were quantized with.
_MOVES = (
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Gather", "Slice", "Split", "Expand",
    "MaxPool",
)  # fmt: skip

PRODUCTS = ("Gemm", "MatMul")
#: Operators whose float weights onnxruntime quantizes itself, MatMul where it fuses the bias; functions that it skips.
QUANTIZED_UNASKED, SKIPPED = ("Conv", "ConvTranspose", *PRODUCTS), ("Relu", "Clip")
#: Domain of MatMulNBits.
MICROSOFT = "com.microsoft"


def converted(simulated: Graph) -> Any:
    """The onnx_ir model of a quantized graph, made so that onnxruntime runs operators in integers and fuses them."""
    model = translated(simulated, _quantized)
    _store_weights(model.graph, simulated)
    _requantize(model.graph)
    _keep_in_float(model.graph)
    for gemm in [node for node in model.graph if node.op_type == "Gemm"]:
        _quantize_bias(model.graph, gemm)
    drop_unused(model)
    name_ports(model.graph, ports_of(simulated))
    if any(node.domain == MICROSOFT for node in model.graph):
        model.opset_imports[MICROSOFT] = 1
    return model


def _quantized(writer: Writer, path: str, quantizer: Quantizer, x: Any) -> Any:
    """A quantizer as standard operators; `_store_weights` gives those of weights what is stored."""
    graph, fmt = writer.graph, quantizer.format
    if fmt.floating is not None:
        kind = ir.DataType.FLOAT16 if fmt.floating == "float16" else ir.DataType.BFLOAT16
        return writer.add("Cast", writer.add("Cast", x, to=kind), to=ir.DataType.FLOAT)
    if fmt.dynamic and fmt.symmetric:
        return _rounded_at_run_time(writer, x, fmt)
    if fmt.dynamic:
        return writer.add("DequantizeLinear", *writer.add_many(3, "DynamicQuantizeLinear", x))
    kind = np.int8 if fmt.integer_range[0] < 0 else np.uint8
    scale, zero = (tensor.detach().cpu().numpy() for tensor in (quantizer.scale, quantizer.zero_point))
    factors = initializer(graph, f"{path}.scale", scale), initializer(graph, f"{path}.zero_point", zero.astype(kind))
    return writer.add("DequantizeLinear", writer.add("QuantizeLinear", x, *factors), *factors)


def _rounded_at_run_time(writer: Writer, x: Any, fmt: Format) -> Any:
    """What `quantize_at_run_time` computes of rows or groups; MatMulNBits reads `x` itself, and rounds it likewise.

    It multiplies by 127 / largest, which may differ from the division by a bit: numbers that lie half between two
    integers, as many do that are read from a table of 4 bits, may then become the other one.
    """
    size = x.shape[-1]
    group = fmt.group if fmt.group is not None and size % fmt.group == 0 else size
    sizes = writer.sizes_of(x)
    parts = writer.reshape(x, [*sizes[:-1], size // group, group])
    largest = writer.add("ReduceMax", writer.add("Abs", parts), [-1], keepdims=1)
    scale = writer.add("Div", largest, np.float32(fmt.integer_range[1]))
    scale = writer.add("Where", writer.add("Equal", scale, np.float32(0)), np.float32(1), scale)
    rounded = writer.add("Mul", writer.add("Round", writer.add("Div", parts, scale)), scale)
    rounded.shape = parts.shape = ir.Shape([*x.shape[:-1], size // group, group])
    whole = writer.reshape(rounded, sizes)
    whole.meta[UNROUNDED] = parts.producer(), group
    return whole


def _store_weights(graph: Any, simulated: Graph) -> None:
    """Replace the quantizer of every weight by what is stored, and name the operators that read it.

    One weight after the other is in memory. A weight in a file is read, and so rounded, for each operator by itself.
    """
    quantizers, layers = weight_quantizers(simulated), {layer.name: layer for layer in simulated.layers}
    of_scales = {f"{quantizer_path(name, of_weight=True)}.scale": name for name in quantizers}
    floats = {name for name, quantizer in quantizers.items() if quantizer.format.floating is not None}
    for name in [name for name in layers if name not in quantizers]:
        value = graph.initializers[name]
        value.name = f"{name}{SEPARATOR}weight"
        name_readers(value, name)
    roundings: dict[str, list[Any]] = defaultdict(list)
    for node in graph:
        if node.op_type == "Cast" and node.inputs[0].name in floats:
            roundings[node.inputs[0].name].append(node)
        elif node.op_type == "QuantizeLinear" and node.inputs[1].name in of_scales:
            roundings[of_scales[node.inputs[1].name]].append(node)
    for name, nodes in roundings.items():
        weight = stored_weight(simulated, layers[name], quantizers[name])
        if isinstance(weight, IntegerWeight):
            _store_integers(graph, nodes, weight)
        else:
            _store_floats(graph, nodes, name, weight)


def _store_floats(graph: Any, casts: Sequence[Any], layer: str, weight: Tensor) -> None:
    """Replace the weight's roundings by the small floating-point numbers, before a cast that onnxruntime folds."""
    kind = np.float16 if weight.dtype == torch.float16 else ml_dtypes.bfloat16
    array, owners = weight.view(torch.int16).numpy().view(kind), []  # numpy has no bfloat16
    for cast in casts:
        (back,) = cast.outputs[0].consumers()
        back.replace_input_with(0, initializer(graph, f"{layer}{SEPARATOR}weight", array))
        owners += [node for node, _, _ in readers(back.outputs[0])]
    name_operators(owners, layer)


def _store_integers(graph: Any, quantizes: Sequence[Any], weight: IntegerWeight) -> None:
    """Replace the weight's quantizers by its stored integers and the operators that unpack them.

    An operator that runs in integers reads them through a DequantizeLinear, a product whose other factor is
    quantized at run time as they are, and one with a matrix in groups packed as they are stored: MatMulNBits. Anything
    else reads their product with the scales: onnxruntime computes that when it loads the file, a DequantizeLinear in
    every run. So does an operator that sums along the scales, which has no integer form.
    """
    dequantizes = [dequantize for each in quantizes for dequantize in each.outputs[0].consumers()]
    places, owners = [place for each in dequantizes for place in readers(each.outputs[0])], []
    in_blocks = weight.grouped and weight.integers.ndim == MATRIX and weight.zero_point is None
    in_blocks = in_blocks and weight.bits in BLOCK_BITS and weight.laid_out.shape[-1] in BLOCK_SIZES
    if in_blocks and all(_is_table(weight, *place) or _is_product(weight, *place) for place in places):
        for node, _, _ in places:
            made = _rows_of_blocks if node.op_type == "Gather" else _product_of_blocks
            operators = made(graph, node, weight)
            _replace(graph, node, operators)
            owners.append(operators[-1])
        name_operators(owners, weight.name)
        return
    unpacked = _Unpacking(graph, weight, dequantizes[0])
    forms: dict[tuple[bool, bool], Any] = {}
    for node, index, transposed in places:
        fits = _scaled_by_output(weight, node, index, transposed)
        if fits and _run_time_factors(node) is not None:
            owners.append(_replace(graph, node, _integer_product(node, unpacked, transposed)))
            continue
        in_integers = fits and weight.read is not None and not weight.grouped and node.op_type in INTEGER_OPERATORS
        form = transposed, in_integers
        if form not in forms:
            forms[form] = unpacked.integers(transposed) if form[1] else unpacked.floats(transposed)
        node.replace_input_with(index, forms[form])
        owners.append(node)
    name_operators(owners, weight.name)


def _is_table(weight: IntegerWeight, node: Any, index: int, transposed: bool) -> bool:
    """Whether the operator picks rows of the weight, which are its channels."""
    along = node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0
    return along and index == 0 and not transposed and weight.axis == 0


def _is_product(weight: IntegerWeight, node: Any, index: int, transposed: bool) -> bool:
    return node.op_type in PRODUCTS and _scaled_by_output(weight, node, index, transposed)


def _scaled_by_output(weight: IntegerWeight, node: Any, index: int, transposed: bool) -> bool:
    """Whether the weight has one scale, or one for each channel that the operator returns.

    onnxruntime 1.31 takes that for granted and does not read the axis of scales.
    """
    if index != 1 or (node.op_type in PRODUCTS and weight.integers.ndim != MATRIX):
        return False
    turned = node.op_type not in PRODUCTS or transposed ^ bool(node.attributes.get_int("transB", 0))
    return weight.axis == (0 if turned else 1) or weight.scale.shape == (1,)


def _run_time_factors(node: Any) -> Any:
    """The DynamicQuantizeLinear of a product's first factor; None where it is not quantized at run time."""
    dequantize = _producer(node.inputs[0], "DequantizeLinear") if node.op_type in PRODUCTS else None
    return None if dequantize is None else _producer(dequantize.inputs[0], "DynamicQuantizeLinear")


def _integer_product(node: Any, unpacked: "_Unpacking", transposed: bool) -> list[Any]:
    """The operators of x @ W in integers: the product first, and last the one whose output replaces the node's.

    In this order onnxruntime fuses all into one DynamicQuantizeMatMul or MatMulIntegerToFloat.
    """
    turned = transposed ^ bool(node.attributes.get_int("transB", 0))
    matrix = unpacked.add("Transpose", unpacked.stored, perm=[1, 0]) if turned else unpacked.stored
    integers, scale, zero_point = _run_time_factors(node).outputs
    product = ir.node("MatMulInteger", [integers, matrix, zero_point])
    wide = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT})
    both = ir.node("Mul", [scale, unpacked.scale])
    return [product, wide, both, ir.node("Mul", [wide.outputs[0], both.outputs[0]])]


def _product_of_blocks(graph: Any, node: Any, weight: IntegerWeight) -> list[Any]:
    """A product as MatMulNBits.

    Where the input is rounded in the same groups at run time, the operator does that itself, and computes in integers.
    """
    x, attributes = node.inputs[0], _size_of_blocks(weight)
    cut, group = x.meta.get(UNROUNDED, (None, None))
    if cut is not None and group == attributes["block_size"]:
        x, attributes["accuracy_level"] = cut.inputs[0], ROUNDS_INPUTS
    channels, inputs = weight.channels_first
    attributes |= {"K": inputs, "N": channels}
    return [ir.node("MatMulNBits", [x, *_blocks(graph, weight)], attributes, domain=MICROSOFT)]


def _rows_of_blocks(graph: Any, node: Any, weight: IntegerWeight) -> list[Any]:
    """Rows of a table, as GatherBlockQuantized, which unpacks those alone; products may read the same integers."""
    words, scale = _blocks(graph, weight)
    channels, inputs = weight.channels_first
    shape = constant(graph, np.array([channels, inputs * weight.bits // 8]))
    rows = ir.node("Reshape", [words, shape])
    attributes = _size_of_blocks(weight) | {"gather_axis": 0, "quantize_axis": 1}
    read = [rows.outputs[0], node.inputs[1], scale]
    return [rows, ir.node("GatherBlockQuantized", read, attributes, domain=MICROSOFT)]


def _size_of_blocks(weight: IntegerWeight) -> dict[str, int]:
    return {"bits": weight.bits, "block_size": weight.laid_out.shape[-1]}


def _blocks(graph: Any, weight: IntegerWeight) -> tuple[Any, Any]:
    """The integers as [channels, groups, bytes], lowest bits first, and the scales."""
    per_byte, size = 8 // weight.bits, weight.laid_out.shape[-1]
    words = np.zeros((*weight.scale.shape, size // per_byte), dtype=np.uint8)
    for index in range(per_byte):
        words |= weight.unsigned[..., index::per_byte] << (index * weight.bits)
    name = f"{weight.name}{SEPARATOR}"
    return initializer(graph, f"{name}blocks", words), initializer(graph, f"{name}scale", weight.scale)


def _replace(graph: Any, node: Any, operators: list[Any]) -> Any:
    """Replace a product by the operators, and an addition of the bias where there is one; returns the first of them."""
    if len(node.inputs) > MATRIX:
        operators = [*operators, ir.node("Add", [operators[-1].outputs[0], node.inputs[2]])]
    graph.insert_before(node, operators)
    ir.convenience.replace_all_uses_with(node.outputs[0], operators[-1].outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return operators[0]


def _requantize(graph: Any) -> None:
    """Repeat the quantizer of an activation right before each operator that reads it through others.

    The second rounding changes nothing, and onnxruntime runs an operator in integers only where it stands.
    """
    for node in [node for node in graph if node.op_type in INTEGER_OPERATORS]:
        for index, value in enumerate(node.inputs[:2]):
            moved = _before(value, *_MOVES)
            dequantize = _producer(moved, "DequantizeLinear")
            if moved is value or dequantize is None or _producer(dequantize.inputs[0], "QuantizeLinear") is None:
                continue
            factors = list(dequantize.inputs[1:])
            rounded = ir.node("QuantizeLinear", [value, *factors])
            restored = ir.node("DequantizeLinear", [rounded.outputs[0], *factors])
            graph.insert_before(node, (rounded, restored))
            node.replace_input_with(index, restored.outputs[0])


def _keep_in_float(graph: Any) -> None:
    """Put a function that changes nothing behind each operator of float weights between quantized tensors.

    Otherwise onnxruntime 1.31 quantizes such weights, with one scale for the tensor (`WeightBiasQuantization`). A
    LeakyRelu of slope 1 is exact; it is fused into convolutions and Gemms.
    """
    for node in [node for node in graph if node.op_type in QUANTIZED_UNASKED]:
        if _producer(_before(node.inputs[1], "Transpose"), "DequantizeLinear") is not None:
            continue
        output = node.outputs[0]
        if node.op_type == "MatMul":
            if [reader.op_type for reader in output.consumers()] != ["Add"]:
                continue
            output = output.consumers()[0].outputs[0]
        read = _producer(_before(node.inputs[0], *_MOVES), "DequantizeLinear")
        if read is not None and _leads_to_quantizer(output):
            same = ir.node("LeakyRelu", [output], {"alpha": 1.0})
            ir.convenience.replace_all_uses_with(output, same.outputs[0])
            same.replace_input_with(0, output)
            graph.insert_after(output.producer(), same)


def _leads_to_quantizer(value: Any) -> bool:
    """Whether some reader quantizes the value, itself or through functions that clip or move it."""
    return any(
        node.op_type == "QuantizeLinear"
        or (node.op_type in (*SKIPPED, *_MOVES) and any(map(_leads_to_quantizer, node.outputs)))
        for node in value.consumers()
    )


def _before(value: Any, *kinds: str) -> Any:
    """The value that operators of these kinds make this one of."""
    while (node := _producer(value, *kinds)) is not None:
        value = node.inputs[0]
    return value


def _quantize_bias(graph: Any, gemm: Any) -> None:
    """Store a Gemm's bias in int32 at the scale of its products: onnxruntime runs it in integers only then."""
    sources = [_producer(value, "DequantizeLinear") for value in gemm.inputs[:2]]
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if None in sources or bias is None or not bias.is_initializer() or len(bias.uses()) > 1:
        return
    x_scale, w_scale = (node.inputs[1].const_value.numpy().astype(np.float64) for node in sources)
    scale = (x_scale * w_scale).astype(np.float32)
    integers = np.rint(bias.const_value.numpy().astype(np.float64) / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
    stored = initializer(graph, f"{bias.name}.int32", integers), initializer(graph, f"{bias.name}.scale", scale)
    node = ir.node("DequantizeLinear", list(stored), {"axis": 0})
    graph.insert_before(gemm, node)
    gemm.replace_input_with(2, node.outputs[0])


def _producer(value: Any, *kinds: str) -> Any:
    """The operator that computes the value, where it is of one of these kinds; else None."""
    node = value.producer()
    return node if node is not None and node.op_type in kinds else None


class _Unpacking:
    """The stored parts of one weight and the operators that make tensors of them, inserted before a node."""

    def __init__(self, graph: Any, weight: IntegerWeight, before: Any) -> None:
        self.graph, self.weight, self.before = graph, weight, before
        self.scale = self.part("scale", weight.scale)
        self.zero_point = None if weight.zero_point is None else self.part("zero_point", weight.zero_point)
        self.stored = self._unpack()
        if weight.mask is not None:
            self.stored = self._expand(self.stored)

    def integers(self, transposed: bool) -> Any:
        """Through a DequantizeLinear, for operators that run in integers."""
        axis, value = self.weight.axis, self.stored
        if transposed:
            axis, value = 1 - axis, self.add("Transpose", value, perm=[1, 0])
        inputs = [value, self.scale]
        if self.zero_point is not None:
            inputs.append(self.zero_point)
        # QLinearConv does without a zero point; QGemm does not, nor exact sums of 8 bits where the layer stays in float
        elif self.weight.integers.ndim == MATRIX or self.weight.bits == 8:
            # of two layers that shared their zero points, onnxruntime (1.31) would change these twice, and fail
            sizes = np.array(self.weight.scale.shape, dtype=np.int64)
            size, zero = initializer(self.graph, f"{self.weight.name}/size", sizes), np.zeros(1, dtype=np.int8)
            inputs.append(self.add("ConstantOfShape", size, value=ir.tensor(zero)))
        return self.add("DequantizeLinear", *inputs, axis=axis)

    def floats(self, transposed: bool) -> Any:
        """As float32."""
        weight = self.weight
        column = self.add("Reshape", self.scale, self.shape(weight.column(weight.scale).shape))
        value = self.add("Cast", self.stored, to=ir.DataType.FLOAT)
        if self.zero_point is not None:
            zero = self.add("Cast", self.zero_point, to=ir.DataType.FLOAT)
            value = self.add("Sub", value, self.add("Reshape", zero, self.shape(weight.column(weight.scale).shape)))
        product = self.add("Mul", value, column)
        if weight.grouped:
            product = self.add("Reshape", product, self.shape(weight.channels_first))
            if weight.axis > 0:
                product = self.add("Transpose", product, perm=weight.from_channels_first)
        return self.add("Transpose", product, perm=[1, 0]) if transposed else product

    def _unpack(self) -> Any:
        """The weight's integers, laid out as in the file: int8, or uint8 where they have zero points."""
        weight = self.weight
        bits, integers, symmetric = weight.bits, weight.laid_out, weight.zero_point is None
        if bits == 8:
            return self.part("integers", integers)
        if bits == 4:
            kind = ml_dtypes.int4 if symmetric else ml_dtypes.uint4
            four = ir.tensor(np.array(integers, order="C").astype(kind))
            wide = ir.DataType.INT8 if symmetric else ir.DataType.UINT8
            return self.add("Cast", self.part("integers", four), to=wide)
        whole, shift = None, 0
        for index, (plane, words) in enumerate(zip(PLANES[bits], pack(weight.unsigned, bits), strict=True)):
            values = self._unpack_plane(self.part(f"plane{index}", words), plane, integers.size)
            if whole is not None:
                values = self.add("BitShift", values, self.number(shift, np.uint8), direction="LEFT")
                values = self.add("BitwiseOr", whole, values)
            whole, shift = values, shift + plane
        shaped = self.add("Reshape", whole, self.shape(integers.shape))
        if not symmetric:
            return shaped
        wide = self.add("Cast", shaped, to=ir.DataType.INT32)
        return self.add("Cast", self.add("Sub", wide, self.number(weight.offset, np.int32)), to=ir.DataType.INT8)

    def _expand(self, values: Any) -> Any:
        """The integers that stay, put where the mask's bits stand; 0 elsewhere.

        With 0 in front of the values, the index of a weight is its number among those that stay, or 0.
        """
        bits = self._unpack_plane(self.part(MASK, self.weight.packed_mask), 1, self.weight.integers.size)
        bits = self.add("Cast", bits, to=ir.DataType.INT32)
        index = self.add("Mul", self.add("CumSum", bits, self.number(0, np.int32)), bits)
        zero = constant(self.graph, np.zeros(1, dtype=np.int8))
        placed = self.add("Gather", self.add("Concat", zero, values, axis=0), index)
        return self.add("Reshape", placed, self.shape(self.weight.integers.shape))

    def _unpack_plane(self, words: Any, plane: int, count: int) -> Any:
        """The values of one plane, in order: those in the lowest bits of every word, then in the next, and so on."""
        shifts = np.arange(0, 8, plane, dtype=np.uint8)[:, None]
        rows = self.add("BitShift", words, constant(self.graph, shifts), direction="RIGHT")
        rows = self.add("BitwiseAnd", rows, self.number(2**plane - 1, np.uint8))
        values = self.add("Reshape", rows, self.shape((-1,)))
        if words.shape.numpy()[0] * (8 // plane) == count:
            return values
        return self.add("Slice", values, self.shape((0,)), self.shape((count,)))

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        node = ir.node(kind, list(inputs), attributes)
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def part(self, name: str, array: Any) -> Any:
        return initializer(self.graph, f"{self.weight.name}{SEPARATOR}{name}", array)

    def number(self, value: int, kind: type) -> Any:
        return constant(self.graph, np.array(value, dtype=kind))

    def shape(self, sizes: tuple[int, ...]) -> Any:
        return constant(self.graph, np.array(sizes, dtype=np.int64))
