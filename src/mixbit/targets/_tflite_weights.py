"""A layer's weight in a TensorFlow Lite file: stored once, read as integers or unpacked by standard operators."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from mixbit.targets._integers import IntegerWeight
from mixbit.targets._tflite_values import (
    PACKED,
    TYPES,
    Order,
    Value,
    container,
    packed_integers,
    parameters,
    weight_name,
)

if TYPE_CHECKING:
    from mixbit.targets._tflite_writer import Writer


def weight_integers(w: "Writer", value: Value, order: Order, channels: int) -> int | None:
    """The tensor of a weight's integers in that order, scales along the dimension `channels` of it.

    None where it has none that an operator could read so.
    """
    while value.view is not None:
        value, dims = value.view
        order = tuple(dims[axis] for axis in order)
    weight = value.weight
    if weight is None or weight.grouped or weight.zero_point is not None:
        return None
    if weight.scale.size > 1 and order.index(weight.axis) != channels:
        return None
    held = [known for known, whole in value.tensors if whole]
    if not held:
        value.tensors[order, True] = _integers(w, weight, order)
    return value.tensors.get((order, True))


def _integers(w: "Writer", weight: IntegerWeight, order: Order) -> int:
    """A new tensor of the integers in that order, at the width of their container."""
    shape = [weight.integers.shape[axis] for axis in order]
    bits = container(weight.bits, narrow=weight.integers.ndim == 2)
    zero = np.zeros(weight.scale.shape) if weight.zero_point is None else weight.zero_point - 2.0 ** (weight.bits - 1)
    integers = weight.integers if weight.zero_point is None else weight.integers - 2.0 ** (weight.bits - 1)
    data = packed_integers(integers.transpose(order), bits)
    return w.tensor(
        shape, PACKED[bits], weight_name(weight.name), data, parameters(weight.scale, zero, order.index(weight.axis))
    )


def weight_in_float(w: "Writer", value: Value, order: Order) -> int:
    """The tensor of a layer's weight in float, in that order: itself, or made of what is stored by operators."""
    weight, name = value.weight, weight_name(value.layer)
    held = next((known for known, _ in value.tensors), None)
    if held is not None and (held, False) in value.tensors:
        source = value.tensors[held, False]
    elif weight is not None and weight.grouped:
        return _groups_in_float(w, value, weight, order)
    else:
        held = held or order
        array, shape = value.array.transpose(held), value.stored(held)
        source = value.tensors[held, False] = w.tensor(shape, "FLOAT32", name, array if value.is_float else None)
        if weight is not None:
            stored = value.tensors.get((held, True)) or _integers(w, weight, held)
            value.tensors[held, True] = stored
            w.operator("DEQUANTIZE", [stored], [source])
        elif value.narrow is not None:
            kind = TYPES[value.narrow.dtype]
            data = value.narrow.view(torch.int16).numpy().transpose(held)
            stored = w.tensor(shape, kind, name, data)
            w.operator("DEQUANTIZE" if kind == "FLOAT16" else "CAST", [stored], [source])
    return source if held == order else _turned(w, value, source, held, order)


def _turned(w: "Writer", value: Value, source: int, held: Order, order: Order) -> int:
    index = value.tensors[order, False] = w.tensor(value.stored(order), "FLOAT32")
    w.operator("TRANSPOSE", [source, w.vector([held.index(axis) for axis in order])], [index])
    return index


def _groups_in_float(w: "Writer", value: Value, weight: IntegerWeight, order: Order) -> int:
    """A weight in groups: one row of a matrix for each, which is scaled, and put into its shape."""
    rows, bits = weight.scale.size, container(weight.bits, narrow=True)
    offset = 0 if weight.zero_point is None else 2 ** (weight.bits - 1)
    zero = np.zeros(rows) if weight.zero_point is None else weight.zero_point.reshape(-1).astype(int) - offset
    integers = weight.laid_out.reshape(rows, -1).astype(int) - offset
    stored = w.tensor(
        integers.shape, PACKED[bits], weight_name(weight.name), packed_integers(integers, bits),
        parameters(weight.scale.reshape(-1), zero),
    )  # fmt: skip
    scaled, shaped = w.tensor(integers.shape, "FLOAT32"), w.tensor(weight.channels_first, "FLOAT32")
    w.operator("DEQUANTIZE", [stored], [scaled])
    w.operator("RESHAPE", [scaled, w.vector(weight.channels_first)], [shaped])
    held = (weight.axis, *(axis for axis in range(value.rank) if axis != weight.axis))
    value.tensors[held, False] = shaped
    return shaped if held == order else _turned(w, value, shaped, held, order)
