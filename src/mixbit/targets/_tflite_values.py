"""What a TensorFlow Lite file holds several tensors for: values in several layouts and types, and packed integers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import Tensor

from mixbit.targets._integers import SEPARATOR, IntegerWeight

#: Types of tensors, as torch and as TensorFlow Lite name them.
TYPES = {
    torch.float32: "FLOAT32", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.int64: "INT64",
    torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8", torch.bool: "BOOL",
}  # fmt: skip
#: Types of packed integers by width.
PACKED = {2: "INT2", 4: "INT4", 8: "INT8"}

Order = tuple[int, ...]
#: A number of elements, or how torch writes one that only a run knows.
Extent = int | str


@dataclass(frozen=True)
class Factors:
    """Of a quantized activation: x = (q - zero_point) x scale, q in int8."""

    scale: float
    zero_point: int


@dataclass(eq=False)
class Value:
    """What an operator returns, or a constant: one array in logical order, which the file holds as several tensors.

    Attributes:
        shape: Sizes in logical order.
        dtype: Of the numbers, which int8 tensors may stand for.
        order: In which it was made: dimension i of the tensor is dimension order[i] of the array.
        factors: Of its int8 tensors; None where it is not quantized.
        array: The constant, of numpy; None for other values.
        layer: The layer whose weight the constant is; "" for others.
        weight: Its integers, where it has some.
        narrow: Its numbers in float16 or bfloat16, where it has these.
        view: A value of which this is a permutation, and the dimension of it that each one here is.
        wide: What `as_images` made.
        tensors: (order, whether it is the int8 form) -> index of the tensor.
    """

    shape: tuple[Extent, ...]
    dtype: torch.dtype
    order: Order
    factors: Factors | None = None
    array: Any = None
    layer: str = ""
    weight: IntegerWeight | None = None
    narrow: Tensor | None = None
    view: "tuple[Value, Order] | None" = None
    wide: "Value | None" = None
    tensors: dict[tuple[Order, bool], int] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it is a weight that the file holds in float32."""
        return self.weight is None and self.narrow is None

    @property
    def is_constant(self) -> bool:
        """Whether it is known, and no layer's weight."""
        return self.array is not None and not self.layer

    def as_images(self) -> "Value":
        """A kernel over one dimension as one over images of height 1; always the same value."""
        if self.wide is None:
            shape = (*self.shape[:2], 1, *self.shape[2:])
            array = None if self.array is None else self.array[:, :, None]
            weight = None if self.weight is None else replace(
                self.weight, integers=self.weight.integers[:, :, None],
                mask=None if self.weight.mask is None else self.weight.mask[:, :, None],
            )  # fmt: skip
            narrow = None if self.narrow is None else self.narrow[:, :, None]
            self.wide = Value(shape, self.dtype, logical(4), None, array, self.layer, weight, narrow)
        return self.wide

    def stored(self, order: Order) -> list[Extent]:
        """Sizes in that order."""
        return [self.shape[axis] for axis in order]


def logical(rank: int) -> Order:
    """The order of the array itself."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Batch, positions, channels."""
    return (0, *range(2, rank), 1)


def parameters(scale: Sequence[float] | NDArray[Any], zero_point: Sequence[int] | NDArray[Any], axis: int = 0) -> Any:
    """Factors of a tensor as the file holds them."""
    return schema.QuantizationParametersT(
        scale=np.asarray(scale, np.float32), zeroPoint=np.asarray(zero_point, np.int64), quantizedDimension=axis
    )


def container(bits: int, *, narrow: bool) -> int:
    """The width at which integers are stored: the next of 4 and 8, and of 2 where `narrow`."""
    return next(each for each in ((2, 4, 8) if narrow else (4, 8)) if bits <= each)


def packed_integers(integers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers of 2, 4 or 8 bits in bytes, lowest bits first."""
    count = 8 // bits
    flat = integers.reshape(-1).astype(np.int8).view(np.uint8) & (2**bits - 1)
    rows = np.pad(flat, (0, -flat.size % count)).reshape(-1, count)
    return np.bitwise_or.reduce(rows << np.arange(0, 8, bits, dtype=np.uint8), axis=1).astype(np.uint8)


def weight_name(layer: str) -> str:
    """Of the tensor that holds a layer's weight."""
    return f"{layer}{SEPARATOR}weight"
