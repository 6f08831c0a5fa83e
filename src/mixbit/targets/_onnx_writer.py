"""Writing an onnx_ir graph: operators one after the other, constants, and sizes that only a run knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from mixbit.graph.stored import SMALL

#: Types of tensors, as ONNX and as torch names them.
ONNX_TYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float64: ir.DataType.DOUBLE, torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16, torch.int64: ir.DataType.INT64, torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16, torch.int8: ir.DataType.INT8, torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
}  # fmt: skip
TORCH_TYPES = {onnx: own for own, onnx in ONNX_TYPES.items()}
#: Constants of at most so many numbers are named by what they hold, and stored once.
FEW = 8
#: In `meta` of a value whose groups are rounded at run time: the node that reads the value before, which another may
#: come to make, and the length of the groups.
UNROUNDED = "unrounded"
#: In `meta` of a graph that does not fit into memory: the file where arrays wait until they are written.
SPILL = "spill"


@dataclass(frozen=True)
class Size:
    """A size that only a run knows.

    Attributes:
        value: int64 [1].
        symbol: How torch writes it; equal symbols are equal sizes.
    """

    value: Any
    symbol: str


class Writer:
    """Appends operators to a graph.

    Where an operator reads a value, numbers and arrays may be given: they become initializers. A list of whole numbers
    is int64.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._sizes: dict[str, Size] = {}

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """The output of a new operator; attributes that are None are left out."""
        return self.add_many(1, kind, *inputs, **attributes)[0]

    def add_many(self, count: int, kind: str, *inputs: Any, **attributes: Any) -> Sequence[Any]:
        """The outputs of a new operator that has so many."""
        given = {name: value for name, value in attributes.items() if value is not None}
        node = ir.node(kind, [self._value(each) for each in inputs], given, num_outputs=count)
        self.graph.append(node)
        return node.outputs

    def _value(self, given: Any) -> Any:
        if given is None or isinstance(given, ir.Value):
            return given
        return constant(self.graph, np.array(given, dtype=np.int64) if isinstance(given, list) else given)

    def number(self, value: float, dtype: torch.dtype) -> Any:
        """A constant without dimensions."""
        return constant(self.graph, ONNX_TYPES[dtype].numpy().type(value))

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        """A value, number or size in that type."""
        if isinstance(x, Size):
            x = self.add("Squeeze", x.value, [0])
            x.shape, x.type = ir.Shape(()), ir.TensorType(ir.DataType.INT64)
        if not isinstance(x, ir.Value):
            return self.number(x, dtype)
        if x.dtype == ONNX_TYPES[dtype]:
            return x
        same = self.add("Cast", x, to=ONNX_TYPES[dtype])
        same.shape, same.type = x.shape, ir.TensorType(ONNX_TYPES[dtype])
        return same

    def size(self, x: Any, axis: int) -> int | Size:
        """The size of one dimension."""
        known = x.shape[axis]
        if isinstance(known, int):
            return known
        if known.value not in self._sizes:
            axis %= len(x.shape)
            self._sizes[known.value] = Size(self.add("Shape", x, start=axis, end=axis + 1), known.value)
        return self._sizes[known.value]

    def sizes_of(self, x: Any) -> list[int | Size]:
        """The sizes of all dimensions."""
        return [self.size(x, axis) for axis in range(len(x.shape))]

    def vector(self, sizes: Sequence[int | Size]) -> Any:
        """The sizes as int64 [count]."""
        parts: list[Any] = []
        for size in sizes:
            if isinstance(size, Size):
                parts.append(size.value)
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(size)
            else:
                parts.append([size])
        return self._value(parts[0] if parts else []) if len(parts) < 2 else self.add("Concat", *parts, axis=0)

    def reshape(self, x: Any, sizes: Sequence[int | Size]) -> Any:
        """The same numbers in another shape, one of whose sizes may be -1; constant where the runtime can tell it.

        0 in a constant shape is the size that the dimension has, and -1 what is left over.
        """
        numbers = [self._in_shape(x, axis, size) for axis, size in enumerate(sizes)]
        if 0 in sizes:
            return self.add("Reshape", x, self.vector(sizes), allowzero=1)
        return self.add("Reshape", x, numbers if numbers.count(-1) < 2 else self.vector(sizes))

    def _in_shape(self, x: Any, axis: int, size: int | Size) -> int:
        if isinstance(size, int):
            return size
        known = x.shape[axis] if axis < len(x.shape) else None
        return 0 if isinstance(known, ir.SymbolicDim) and known.value == size.symbol else -1


def constant(graph: Any, array: NDArray[Any] | np.generic) -> Any:
    """The initializer that holds the numbers, made where there is none; few of them are stored once."""
    told = array.tolist() if array.size <= FEW else f"{list(array.shape)} {len(graph.initializers)}"
    return initializer(graph, f"{array.dtype} {told}", array)


def initializer(graph: Any, name: str, array: Any) -> Any:
    """The initializer of that name, made where there is none; a large array waits in the graph's SPILL, if any."""
    if name not in graph.initializers:
        tensor: Any = _tensor(np.asarray(array), graph) if isinstance(array, np.ndarray | np.generic) else array
        tensor.name = name
        graph.initializers[name] = ir.Value(
            name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
    return graph.initializers[name]


def _tensor(array: NDArray[Any], graph: Any) -> Any:
    array, spill = np.asarray(array, order="C"), graph.meta.get(SPILL)
    if spill is None or array.nbytes < SMALL:
        return ir.tensor(array)
    kind, shape, read = array.dtype, array.shape, spill.held(torch.from_numpy(array.reshape(-1).view(np.uint8)))
    return ir.LazyTensor(
        lambda: ir.tensor(read().numpy().view(kind).reshape(shape)), ir.DataType.from_numpy(kind), ir.Shape(shape)
    )
