"""Writing a TensorFlow Lite file: tensors, operators, and the values that they hold."""

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from mixbit.core import UnsupportedModel
from mixbit.targets._tflite_values import TYPES, Extent, Factors, Order, Value, logical, parameters
from mixbit.targets._tflite_weights import weight_in_float

IDENTIFIER = b"TFL3"
#: What converters call the only way to run a network.
SIGNATURE = b"serving_default"
#: Version of the schema that files are written in.
VERSION = 3
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


class Writer:
    """Appends tensors and operators to a file.

    Attributes:
        graph: The only subgraph.
        inputs: Those of the network.
        packs: Whether integers of fewer than 8 bits share bytes.
        requantizes: Whether averages and concatenations between quantizers are made in integers, as XNNPACK rounds.
    """

    def __init__(self, *, packs: bool = True, requantizes: bool = True) -> None:
        self.packs, self.requantizes = packs, requantizes
        self.graph: Any = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"main")
        self.model: Any = schema.ModelT(
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

    def integer(self, number: int, like: Value) -> int:
        """The tensor of one integer, with the factors of that value."""
        factors = like.factors
        quantization = None if factors is None else parameters([factors.scale], [factors.zero_point])
        return self.tensor((), "INT8", data=np.array(number, np.int8), quantization=quantization)

    def vector(self, numbers: Sequence[int]) -> int:
        """The int32 constant of these numbers."""
        return self.constant(np.array(numbers, np.int32))

    def operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Append an operator; -1 stands for an input that is left out."""
        if kind not in self._codes:
            number = getattr(schema.BuiltinOperator, kind)
            code = schema.OperatorCodeT(
                builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=_VERSIONS.get(kind, 1)
            )
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

    def sign(self) -> None:
        """Tell the names of inputs and outputs to programs that run the file by them."""
        named = [
            [schema.TensorMapT(name=self.graph.tensors[index].name, tensorIndex=index) for index in some]
            for some in (self.graph.inputs, self.graph.outputs)
        ]
        signature = schema.SignatureDefT(inputs=named[0], outputs=named[1], signatureKey=SIGNATURE, subgraphIndex=0)
        self.model.signatureDefs = [signature]

    def packed(self) -> bytes:
        """The file."""
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())
