"""Weights in the ONNX graph that torch exported: what is stored, and the operators that unpack it."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mixbit.graph.graph import Graph
from mixbit.quantization.affine import PLANES, pack
from mixbit.quantization.quantizer import quantizer_path
from mixbit.targets._integers import MASK, SEPARATOR, IntegerWeight, stored_weights
from mixbit.targets._onnx import INTEGER_OPERATORS, finish_activation, initializer, name_readers, producer, readers

#: Dimensions of a weight that Gemm and MatMul read.
MATRIX = 2
PRODUCTS = ("Gemm", "MatMul")
#: Domain, widths and lengths of groups of MatMulNBits.
MICROSOFT, BLOCK_BITS, BLOCK_SIZES = "com.microsoft", (2, 4, 8), (16, 32, 64, 128, 256)


def finish_quantizers(graph: Any, simulated: Graph) -> None:
    """Replace the quantizer of every weight by what is stored, and name the operators that read it."""
    weights, floats = stored_weights(simulated)
    for name in [layer.name for layer in simulated.layers if layer.name not in weights | floats]:
        value = graph.initializers[name]
        value.name = f"{name}{SEPARATOR}weight"
        name_readers([node for node, _, _ in readers(value)], name)
    of_scales = {f"{quantizer_path(name, of_weight=True)}.scale": weight for name, weight in weights.items()}
    for node in list(graph):
        if node.op_type == "Cast" and node.inputs[0].name in floats:
            _store_float(graph, node, node.inputs[0].name, floats[node.inputs[0].name])
        elif node.op_type == "QuantizeLinear":
            weight = of_scales.get(node.inputs[1].name)  # between a sparse weight and its quantizer is its mask
            if weight is None:
                finish_activation(graph, node)
            else:
                _store_integers(graph, node, weight)


def _store_float(graph: Any, cast: Any, name: str, value: Tensor) -> None:
    """Store a weight in a small floating-point type before its cast to float32, which onnxruntime folds at loading."""
    bits = value.view(torch.int16).numpy()  # numpy has no bfloat16
    array = bits.view(np.float16 if value.dtype == torch.float16 else ml_dtypes.bfloat16)
    (back,) = cast.outputs[0].consumers()
    back.replace_input_with(0, initializer(graph, f"{name}{SEPARATOR}weight", array))
    name_readers([node for node, _, _ in readers(back.outputs[0])], name)


def _store_integers(graph: Any, quantize: Any, weight: IntegerWeight) -> None:
    """Replace the weight's quantizer by its stored integers and the operators that unpack them.

    An operator that runs in integers reads them through a DequantizeLinear of its own, a product whose other factor is
    quantized at run time as they are, and one with a matrix in groups packed as they are stored. Anything else reads
    their product with the scales: onnxruntime computes that when it loads the file, a DequantizeLinear in every run.
    """
    (dequantize,) = quantize.outputs[0].consumers()
    places, owners = list(readers(dequantize.outputs[0])), []
    if _in_blocks(weight) and all(node.op_type in PRODUCTS and index == 1 for node, index, _ in places):
        owners = [_replace(graph, node, _product_of_blocks(graph, node, weight)) for node, _, _ in places]
        name_readers(owners, weight.name)
        return
    unpacked = _Unpacking(graph, weight, dequantize)
    forms: dict[tuple[bool, bool], Any] = {}
    for node, index, transposed in places:
        if _run_time_factors(node) is not None:
            owners.append(_replace(graph, node, _integer_product(node, unpacked, transposed)))
            continue
        form = transposed, weight.read is not None and node.op_type in INTEGER_OPERATORS
        if form not in forms:
            forms[form] = unpacked.integers(transposed) if form[1] else unpacked.floats(transposed)
        node.replace_input_with(index, forms[form])
        owners.append(node)
    name_readers(owners, weight.name)


def _in_blocks(weight: IntegerWeight) -> bool:
    """Whether onnxruntime multiplies by the weight as it is stored: MatMulNBits, which computes in float32."""
    block = weight.laid_out.shape[-1]
    return (
        weight.grouped
        and weight.integers.ndim == MATRIX
        and weight.zero_point is None
        and weight.bits in BLOCK_BITS
        and block in BLOCK_SIZES
    )


def _run_time_factors(node: Any) -> Any:
    """The DynamicQuantizeLinear of a product's first factor; None where it is not quantized at run time."""
    dequantize = producer(node.inputs[0], "DequantizeLinear") if node.op_type in PRODUCTS else None
    return None if dequantize is None else producer(dequantize.inputs[0], "DynamicQuantizeLinear")


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
    """A product as MatMulNBits, which holds integers as [channels, groups, bytes], lowest bits first."""
    per_byte, size = 8 // weight.bits, weight.laid_out.shape[-1]
    words = np.zeros((*weight.scale.shape, size // per_byte), dtype=np.uint8)
    for index in range(per_byte):
        words |= weight.unsigned[..., index::per_byte] << (index * weight.bits)
    parts = (("blocks", words), ("scale", weight.scale))
    stored = [initializer(graph, f"{weight.name}{SEPARATOR}{part}", array) for part, array in parts]
    channels, inputs = weight.channels_first
    attributes = {"K": inputs, "N": channels, "bits": weight.bits, "block_size": size}
    return [ir.node("MatMulNBits", [node.inputs[0], *stored], attributes, domain=MICROSOFT)]


def _replace(graph: Any, node: Any, operators: list[Any]) -> Any:
    """Replace a product by the operators, and an addition of the bias where there is one; returns the first of them."""
    if len(node.inputs) > MATRIX:
        operators = [*operators, ir.node("Add", [operators[-1].outputs[0], node.inputs[2]])]
    graph.insert_before(node, operators)
    ir.convenience.replace_all_uses_with(node.outputs[0], operators[-1].outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return operators[0]


class _Unpacking:
    """The stored parts of one weight and the operators that make tensors of them, inserted before a node."""

    def __init__(self, graph: Any, weight: IntegerWeight, before: Any) -> None:
        self.graph, self.weight, self.before = graph, weight, before
        self.scale = self.part("scale", weight.scale)
        self.stored = self._unpack()
        if weight.mask is not None:
            self.stored = self._expand(self.stored)

    def integers(self, transposed: bool) -> Any:
        """Through a DequantizeLinear, for operators that run in integers."""
        axis, value = self.weight.axis, self.stored
        if transposed:
            axis, value = 1 - axis, self.add("Transpose", value, perm=[1, 0])
        inputs = [value, self.scale]
        if self.weight.integers.ndim == MATRIX:  # QLinearConv does without a zero point, QGemm does not
            zero = ir.tensor(np.zeros(1, dtype=np.int8))
            inputs.append(self.add("ConstantOfShape", self.shape(self.weight.scale.shape), value=zero))
        return self.add("DequantizeLinear", *inputs, axis=axis)

    def floats(self, transposed: bool) -> Any:
        """As float32."""
        weight = self.weight
        column = self.add("Reshape", self.scale, self.shape(weight.column.shape))
        value = self.add("Cast", self.stored, to=ir.DataType.FLOAT)
        if weight.zero_column is not None:
            zero = self.add("Cast", self.part("zero_point", weight.zero_column), to=ir.DataType.FLOAT)
            value = self.add("Sub", value, zero)
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
        zero = initializer(self.graph, "int8_zeros_1", np.zeros(1, dtype=np.int8))
        placed = self.add("Gather", self.add("Concat", zero, values, axis=0), index)
        return self.add("Reshape", placed, self.shape(self.weight.integers.shape))

    def _unpack_plane(self, words: Any, plane: int, count: int) -> Any:
        """The values of one plane, in order: those in the lowest bits of every word, then in the next, and so on."""
        shifts = np.arange(0, 8, plane, dtype=np.uint8)[:, None]
        rows = self.add("BitShift", words, initializer(self.graph, f"shifts_{plane}", shifts), direction="RIGHT")
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
        return initializer(self.graph, f"{kind.__name__}_{value}", np.array(value, dtype=kind))

    def shape(self, sizes: tuple[int, ...]) -> Any:
        return initializer(self.graph, "shape_" + "_".join(map(str, sizes)), np.array(sizes, dtype=np.int64))
