"""Writing a TensorFlow Lite file: tensors, operators, and values that a file may hold in several layouts and types."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import UnsupportedModel
from mixbit.targets._integers import SEPARATOR, IntegerWeight

IDENTIFIER = b"TFL3"
#: Version of the schema that files are written in.
VERSION = 3
#: Types of tensors, as torch and as TensorFlow Lite name them.
TYPES = {
    torch.float32: "FLOAT32", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.int64: "INT64",
    torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8", torch.bool: "BOOL",
}  # fmt: skip
#: Types of packed integers by width.
PACKED = {2: "INT2", 4: "INT4", 8: "INT8"}
#: What stands for a size that only a run knows, in the shape that the file gives; its signature says -1.
UNKNOWN = 1
#: Of operators that the runtime does not have in version 1.
_VERSIONS = {"BROADCAST_TO": 2}
#: Operators whose options have another name than they do.
_OPTIONS = {
    "MAX_POOL_2D": "Pool2D", "AVERAGE_POOL_2D": "Pool2D", "MEAN": "Reducer", "SUM": "Reducer", "REDUCE_MAX": "Reducer",
    "REDUCE_MIN": "Reducer", "REDUCE_PROD": "Reducer", "MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum",
    "PADV2": "PadV2", "BATCH_MATMUL": "BatchMatMul", "CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "SELECT_V2": "SelectV2", "GATHER_ND": "GatherNd", "SPLIT_V": "SplitV",
}  # fmt: skip

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
        array: The constant.
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
    array: NDArray[Any] | None = None
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


class Writer:
    """Appends tensors and operators to a file.

    Attributes:
        graph: The only subgraph.
        inputs: Those of the network.
    """

    def __init__(self) -> None:
        self.graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"main")
        self.model = schema.ModelT(
            version=VERSION, operatorCodes=[], subgraphs=[self.graph], buffers=[schema.BufferT()], description=b"mixbit"
        )
        self.inputs: list[Value] = []
        self._codes: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}

    def tensor(
        self,
        shape: Sequence[Extent],
        kind: str,
        name: str = "",
        data: NDArray[Any] | None = None,
        quantization: Any = None,
    ) -> int:
        """A new tensor; with data, those bytes."""
        sizes = [size if isinstance(size, int) else UNKNOWN for size in shape]
        known = all(isinstance(size, int) for size in shape)
        made = schema.TensorT(
            shape=np.array(sizes, np.int32),
            shapeSignature=None if known else np.array([s if isinstance(s, int) else -1 for s in shape], np.int32),
            type=getattr(schema.TensorType, kind),
            name=(name or f"t{len(self.graph.tensors)}").encode(),
            quantization=quantization,
            hasRank=True,
        )
        if data is not None:
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(schema.BufferT(data=np.frombuffer(data.tobytes(), np.uint8)))
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, array: NDArray[Any]) -> int:
        """The tensor that holds the numbers; made where there is none."""
        array = np.asarray(array)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            kind = TYPES[torch.from_numpy(np.zeros(1, array.dtype)).dtype]
            self._constants[key] = self.tensor(array.shape, kind, data=array)
        return self._constants[key]

    def vector(self, numbers: Sequence[int]) -> int:
        """The int32 constant of these numbers."""
        return self.constant(np.array(numbers, np.int32))

    def operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Append an operator; -1 stands for an input that is left out."""
        if kind not in self._codes:
            number = getattr(schema.BuiltinOperator, kind)
            code = schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=_VERSIONS.get(kind, 1))
            self._codes[kind] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        made = schema.OperatorT(opcodeIndex=self._codes[kind], inputs=list(inputs), outputs=list(outputs))
        if options:
            name = f"{_OPTIONS.get(kind) or kind.title().replace('_', '')}Options"
            made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            made.builtinOptions = getattr(schema, f"{name}T")()
            for option, value in options.items():
                if not hasattr(made.builtinOptions, option):
                    raise AttributeError(f"{name} has no {option}")
                setattr(made.builtinOptions, option, value)
        self.graph.operators.append(made)

    def made(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[Extent],
        dtype: torch.dtype,
        order: Order | None = None,
        factors: Factors | None = None,
        **options: Any,
    ) -> Value:
        """The value that a new operator returns, its sizes in logical order."""
        value = Value(tuple(shape), dtype, logical(len(shape)) if order is None else order, factors)
        index = self.empty(value, value.order, factors is not None)
        self.operator(kind, inputs, [index], **options)
        return value

    def empty(self, value: Value, order: Order, in_int8: bool) -> int:
        kind, quantization = TYPES[value.dtype], None
        if in_int8 and value.factors is not None:
            kind, quantization = "INT8", parameters([value.factors.scale], [value.factors.zero_point])
        index = value.tensors[order, in_int8] = self.tensor(value.stored(order), kind, quantization=quantization)
        return index

    def read(self, value: Value, order: Order | None = None, *, in_int8: bool = False) -> int:
        """The tensor of the value in that order, by default its own, in int8 or not; made where there is none."""
        order = value.order if order is None else order
        if value.view is not None:
            source, dims = value.view
            return self.read(source, tuple(dims[axis] for axis in order), in_int8=in_int8)
        if (order, in_int8) in value.tensors:
            return value.tensors[order, in_int8]
        if value.layer:
            return weight_in_float(self, value, order)
        if value.array is not None:
            return value.tensors.setdefault((order, in_int8), self.constant(value.array.transpose(order)))
        return self._in_order(value, order, in_int8) if order != value.order else self._in_type(value, order, in_int8)

    def _in_type(self, value: Value, order: Order, in_int8: bool) -> int:
        """QUANTIZE or DEQUANTIZE of the other form; the value has one in that order."""
        source = self.read(value, order, in_int8=not in_int8)
        index = self.empty(value, order, in_int8)
        self.operator("QUANTIZE" if in_int8 else "DEQUANTIZE", [source], [index])
        return index

    def _in_order(self, value: Value, order: Order, in_int8: bool) -> int:
        """The value's own form in another order, an int8 one before it becomes float.

        It is a TRANSPOSE, or a RESHAPE where only dimensions of size 1 move.
        """
        if value.factors is not None and not in_int8:
            return self._in_type(value, order, in_int8)
        source = self.read(value, in_int8=in_int8)
        index = self.empty(value, order, in_int8)
        long = [[axis for axis in each if value.shape[axis] != 1] for each in (value.order, order)]
        if long[0] == long[1]:
            self.operator("RESHAPE", [source, self.sizes(value.stored(order), value)], [index])
        else:
            self.operator("TRANSPOSE", [source, self.vector([value.order.index(axis) for axis in order])], [index])
        return index

    def sizes(self, sizes: Sequence[Extent], source: Value) -> int:
        """The int32 vector of the sizes, of which one is left to the runtime; others of any size are the source's."""
        unknown = [place for place, size in enumerate(sizes) if isinstance(size, str)]
        if len(unknown) <= 1:
            return self.vector([size if isinstance(size, int) else -1 for size in sizes])
        return self.whole_sizes([-1 if place == unknown[0] else size for place, size in enumerate(sizes)], source)

    def whole_sizes(self, sizes: Sequence[Extent], source: Value) -> int:
        """The int32 vector of the sizes; those that only a run knows are the source's, or an input's."""
        if all(isinstance(size, int) for size in sizes):
            return self.vector([int(size) for size in sizes])
        parts = [self.vector([size]) if isinstance(size, int) else self.size(size, source) for size in sizes]
        index = self.tensor([len(parts)], "INT32")
        self.operator("CONCATENATION", parts, [index], axis=0)
        return index

    def size(self, size: str, source: Value) -> int:
        """The int32 [1] of a size of the source that only a run knows."""
        key = "size", size
        if key not in self._constants:
            source = next((value for value in (source, *self.inputs) if size in value.shape), source)
            if size not in source.shape:
                raise UnsupportedModel(f"a run computes the size {size}; leave it out of `dynamic`")
            tensor, whole = self.read(source, in_int8=source.factors is not None), self.tensor([source.rank], "INT32")
            self.operator("SHAPE", [tensor], [whole], outType=schema.TensorType.INT32)
            index = self._constants[key] = self.tensor([1], "INT32")
            place = source.order.index(source.shape.index(size))
            self.operator("SLICE", [whole, self.vector([place]), self.vector([1])], [index])
        return self._constants[key]

    def packed(self) -> bytes:
        """The file."""
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())


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


def weight_integers(w: Writer, value: Value, order: Order, channels: int) -> int | None:
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


def _integers(w: Writer, weight: IntegerWeight, order: Order) -> int:
    """A new tensor of the integers in that order, at the width of their container."""
    shape = [weight.integers.shape[axis] for axis in order]
    bits = container(weight.bits, narrow=weight.integers.ndim == 2)
    zero = np.zeros(weight.scale.shape) if weight.zero_point is None else weight.zero_point - 2.0 ** (weight.bits - 1)
    integers = weight.integers if weight.zero_point is None else weight.integers - 2.0 ** (weight.bits - 1)
    data = packed_integers(integers.transpose(order), bits)
    return w.tensor(
        shape, PACKED[bits], weight_name(weight.name), data, parameters(weight.scale, zero, order.index(weight.axis))
    )


def weight_in_float(w: Writer, value: Value, order: Order) -> int:
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


def _turned(w: Writer, value: Value, source: int, held: Order, order: Order) -> int:
    index = value.tensors[order, False] = w.tensor(value.stored(order), "FLOAT32")
    w.operator("TRANSPOSE", [source, w.vector([held.index(axis) for axis in order])], [index])
    return index


def _groups_in_float(w: Writer, value: Value, weight: IntegerWeight, order: Order) -> int:
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


def weight_name(layer: str) -> str:
    """Of the tensor that holds a layer's weight."""
    return f"{layer}{SEPARATOR}weight"
