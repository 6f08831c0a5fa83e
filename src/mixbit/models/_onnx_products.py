"""Stored matrices of an ONNX file: products by them as linear layers, and other names of them."""

from typing import Any

import torch
from torch import fx

from mixbit.models._onnx_builder import Builder, Held, Stored
from mixbit.models._onnx_layers import Linear
from mixbit.models._onnx_operators import OPERATORS


def is_alias(builder: Builder, node: Any, attributes: dict[str, Any]) -> bool:
    """Whether it only gives a stored tensor another name, or turns a stored matrix."""
    value = builder.values.get(node.input[0]) if node.input else None
    if node.op_type == "Identity":
        made = value
    elif isinstance(value, Stored) and value.is_weight and node.op_type == "Transpose":
        if builder.tensors[value.name].ndim != 2 or attributes.get("perm", [1, 0]) != [1, 0]:
            return False
        made = Stored(value.name, value.is_weight, not value.transposed)
    elif isinstance(value, Stored) and node.op_type == "Cast" and builder.tensors[value.name].dtype is torch.float32:
        if attributes["to"] != 1:
            return False
        made = value
    else:
        return False
    builder.values[node.output[0]] = made
    if isinstance(made, fx.Node):
        builder.names_of[made] += 1
    return True


def product(builder: Builder, node: Any, attributes: dict[str, Any]) -> bool:
    """A product by a stored matrix, as a linear operator with the bias behind it."""
    if node.output[0] in builder.fused:  # the addition of a bias
        builder.fused.remove(node.output[0])
        return True
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    x, weight = builder.values[node.input[0]], builder.values[node.input[1]]
    matrix = isinstance(weight, Stored) and weight.is_weight and builder.tensors[weight.name].ndim == 2
    if not matrix or not isinstance(x, fx.Node | Stored) or attributes.get("transA"):
        return False
    if not isinstance(x, fx.Node) or any(attributes.get(name, 1.0) != 1 for name in ("alpha", "beta")):
        return False
    rows_first = weight.transposed != bool(attributes.get("transB"))
    matrix_node = _matrix(builder, weight, node, rows_first=rows_first)
    outputs = builder.known[matrix_node][0].shape[0]
    bias, last = _bias(builder, node, outputs)
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] and bias is None:
        made = builder.call(Linear, [x, matrix_node], {})
        made = builder.call(OPERATORS["Add"], [made, builder.read(node.input[2], node, 2)], {})
    else:
        made = builder.call(Linear, [x, matrix_node, bias], {})
    builder.values[node.output[0]] = builder.values[last] = made
    builder.names_of[made] += 1
    if last != node.output[0]:
        builder.names_of[made] += 1
        builder.fused.add(last)
    return True


def _matrix(builder: Builder, weight: Stored, node: Any, *, rows_first: bool) -> fx.Node:
    """[outputs, inputs] of the matrix: as it is stored, or turned where nothing reads it otherwise."""
    if rows_first:
        return builder.stored(Stored(weight.name, weight.is_weight), node, 1)
    readers = builder.readers[weight.name]
    products = ("MatMul", "Gemm")
    if all(each is not None and each.op_type in products and place == 1 for each, place in readers) and not any(
        attribute.name == "transB" and attribute.i for each, _ in readers for attribute in each.attribute
    ):
        turned = builder.tensors[weight.name].t().contiguous()
        return builder.hold(f"{weight.name} turned", Held(turned, weight.name, node, 1, True))
    return builder.call(torch.t, [builder.stored(Stored(weight.name, weight.is_weight), node, 1)], {})


def _bias(builder: Builder, node: Any, outputs: int) -> tuple[fx.Node | None, str]:
    """The bias of the product, where it is a vector, and the name of the value behind it."""
    if node.op_type == "Gemm":
        name, reader, last = (node.input[2] if len(node.input) > 2 else ""), node, node.output[0]
    else:
        readers = builder.readers[node.output[0]]
        is_alone = len(readers) == 1 and node.output[0] not in builder.read_inside  # an addition may run in rounds
        if not is_alone or readers[0][0] is None or readers[0][0].op_type != "Add":
            return None, node.output[0]
        reader, place = readers[0]
        name, last = reader.input[1 - place], reader.output[0]
    value = builder.values.get(name)
    if not isinstance(value, Stored) or not value.is_weight or builder.tensors[value.name].shape != (outputs,):
        return None, node.output[0]
    return builder.stored(value, node if reader is node else reader, 2), last
