"""The table of operators that a TensorFlow Lite file can hold, and what the functions in it share.

A function takes the `Writer`, what the operator returns (of which it reads shape and type, and what may be fused), and
the operator's arguments: values, numbers, and sizes. It returns a value, or several in a tuple; None where it does not
write this form of the operator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from mixbit.targets._tflite_values import TYPES, Extent, Factors, Order, Value, logical
from mixbit.targets._tflite_writer import Writer

#: Operator -> the function that writes it.
OPERATORS: dict[Any, Callable[..., Any]] = {}


@dataclass
class Result:
    """What an operator returns, and what may be done with it in the same step.

    Attributes:
        shape, dtype: Of the tensor.
        parts: A Result for each of several tensors.
        factors: Those that it is quantized with, itself or clipped; None where its only reader is no quantizer.
        activation: The clipping before that, as the schema numbers it; 0 where int8 ends there, or it has no number.
        ends: The integers between which it clips; None where int8 ends there.
        behind: The nodes that this spares.
        spared: Whether the operator did it.
    """

    shape: tuple[Extent, ...]
    dtype: torch.dtype
    parts: list["Result"] = field(default_factory=list)
    factors: Factors | None = None
    activation: int = 0
    ends: tuple[int, int] | None = None
    behind: list[fx.Node] = field(default_factory=list)
    spared: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def writes(*targets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the function into the table."""

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update(dict.fromkeys(targets, function))
        return function

    return put


def axis_of(x: Value | Result, dim: int) -> int:
    """The dimension, counted from the first."""
    return dim % max(x.rank, 1)


def each(value: Any, count: int) -> list[int]:
    """One number for each dimension."""
    given = [value] if isinstance(value, int) else list(value)
    return given * count if len(given) == 1 else given


def number(value: float, dtype: torch.dtype) -> Value:
    """A constant without dimensions."""
    array = torch.tensor(value, dtype=dtype).numpy()
    return Value((), dtype, (), array=array)


def as_value(x: Any, dtype: torch.dtype) -> Value:
    """The value, or the number as one."""
    return x if isinstance(x, Value) else number(x, dtype)


def cast(w: Writer, x: Any, dtype: torch.dtype) -> Value:
    """A value or number in that type."""
    x = as_value(x, dtype)
    if x.dtype == dtype:
        return x
    if x.is_constant:
        return Value(x.shape, dtype, x.order, array=torch.from_numpy(np.array(x.array)).to(dtype).numpy())
    kinds = {"inDataType": x.dtype, "outDataType": dtype}
    options = {name: getattr(schema.TensorType, TYPES[kind]) for name, kind in kinds.items()}
    return w.made("CAST", [w.read(x)], x.shape, dtype, x.order, **options)


def broadcast(*shapes: Sequence[Extent]) -> tuple[Extent, ...]:
    """The shape that arrays of these shapes take together."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def extended(w: Writer, x: Value, rank: int) -> Value:
    """The value with dimensions of size 1 in front, to that rank."""
    if x.rank == rank or not x.rank:
        return x
    shape = (1,) * (rank - x.rank) + x.shape
    if x.is_constant:
        return Value(shape, x.dtype, logical(rank), array=np.array(x.array).reshape([int(size) for size in shape]))
    return reshaped(w, x, shape)


def reshaped(w: Writer, x: Value, shape: Sequence[Extent]) -> Value:
    """The same numbers, in logical order, in another shape; in int8 where they are."""
    shape = tuple(shape)
    if shape == x.shape:
        return x
    tensor = w.read(x, logical(x.rank), in_int8=x.factors is not None)
    return w.made("RESHAPE", [tensor, w.sizes(shape, x)], shape, x.dtype, None, x.factors)


def permuted(x: Value, dims: Sequence[int]) -> Value:
    """The value with its dimensions in another order, which costs nothing."""
    if list(dims) == list(logical(x.rank)):
        return x
    source, own = (x, tuple(dims)) if x.view is None else (x.view[0], tuple(x.view[1][dim] for dim in dims))
    order = tuple(own.index(axis) for axis in source.order)
    shape = tuple(x.shape[dim] for dim in dims)
    array = None if x.array is None else x.array.transpose(dims)
    return Value(shape, x.dtype, order, x.factors, array, source.layer, source.weight, source.narrow, (source, own))


def left_of(x: Value, dims: Any, keepdim: bool) -> tuple[list[int], list[Extent], Order]:
    """Of a reduction over these dimensions, or all: their places in the tensor, and shape and order of what stays."""
    given = [dims] if isinstance(dims, int) else list(dims or ())
    axes = [axis_of(x, dim) for dim in given] or [*range(x.rank)]
    places = [x.order.index(axis) for axis in axes]
    if keepdim:
        return places, [1 if axis in axes else size for axis, size in enumerate(x.shape)], x.order
    kept = [axis for axis in range(x.rank) if axis not in axes]
    return places, [x.shape[axis] for axis in kept], tuple(kept.index(axis) for axis in x.order if axis in kept)


def elementwise(w: Writer, kind: str, dtype: torch.dtype, *operands: Any, **options: Any) -> Value:
    """An operator on each element of the operands, which broadcast; it keeps the order of the first that has its rank.

    Numbers take the type of the first operand that is a value.
    """
    kinds = [operand.dtype for operand in operands if isinstance(operand, Value)]
    values = [as_value(operand, kinds[0]) for operand in operands]
    shape = broadcast(*(value.shape for value in values))
    read, order = read_together(w, values, len(shape))
    return w.made(kind, read, shape, dtype, order, **options)


def read_together(w: Writer, values: Sequence[Value], rank: int, *, in_int8: bool = False) -> tuple[list[int], Order]:
    """Tensors of values that broadcast to that rank, in the order of the first that has it, and the order."""
    whole = [value for value in values if value.rank == rank and not value.is_constant]
    order = whole[0].order if whole else logical(rank)
    wide = (extended(w, value, rank) for value in values)
    return [w.read(value, order if value.rank else None, in_int8=in_int8) for value in wide], order


def moved(
    w: Writer,
    kind: str,
    x: Value,
    inputs: Sequence[int],
    shape: Sequence[Extent],
    order: Order | None = None,
    **options: Any,
) -> Value:
    """An operator that moves numbers or picks among them: it reads x in that order, and in int8 where x is."""
    order = x.order if order is None else order
    tensor = w.read(x, order, in_int8=x.factors is not None)
    return w.made(kind, [tensor, *inputs], shape, x.dtype, order, x.factors, **options)
