"""Reading a TensorFlow Lite file: whether it is whole, what it stores, and what the runtime executes of it."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from mixbit.core import StoredWeight, TargetMismatch, read_bytes
from mixbit.targets._integers import SEPARATOR
from mixbit.targets._tflite_values import Order
from mixbit.targets._tflite_writer import IDENTIFIER, Writer

#: Of a file: offsets of FlatBuffers end there.
MOST_BYTES = 2**31
#: Type of a tensor -> bits of a number.
_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "INT64": 64, "INT32": 32, "INT16": 16, "INT8": 8, "UINT8": 8,
    "BOOL": 8, "INT4": 4, "INT2": 2,
}  # fmt: skip
_TYPES = {number: name for name, number in vars(schema.TensorType).items() if name in _BITS}
_OPERATORS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
#: Operators that make of a layer's weight what its own operator reads.
UNPACKING = ("DEQUANTIZE", "CAST", "RESHAPE", "TRANSPOSE")
#: How the runtime's own kernels are called.
PLAIN = "plain kernel"
#: What stands in the place of operators that a delegate runs.
_DELEGATE = "DELEGATE"
#: How types of integers are called, which compute nothing in int8.
_SHORT = {"INT8": "i8", "INT4": "i4", "INT2": "i2", "FLOAT16": "f16", "FLOAT32": "f32"}


@dataclass(frozen=True)
class Model:
    """A file that was read and found whole.

    Attributes:
        data: Its bytes.
        content: The schema's ModelT.
    """

    data: bytes
    content: Any

    @property
    def graph(self) -> Any:
        """Its only subgraph."""
        return self.content.subgraphs[0]

    @property
    def tensors(self) -> list[Any]:
        """Those of the subgraph."""
        return self.graph.tensors

    def name(self, index: int) -> str:
        """Of a tensor."""
        return self.tensors[index].name.decode()

    def kind(self, index: int) -> str:
        """Type of a tensor."""
        return _TYPES[self.tensors[index].type]

    def numbers(self, index: int) -> list[int]:
        """Those of a constant in int32."""
        return np.asarray(self.content.buffers[self.tensors[index].buffer].data, np.uint8).view(np.int32).tolist()

    def operator(self, operator: Any) -> str:
        """What it is."""
        code = self.content.operatorCodes[operator.opcodeIndex]
        return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def place_of(self, name: str) -> tuple[int, Order] | None:
        """Index and order of the tensor of that name; None where there is none."""
        for index in range(len(self.tensors)):
            own, _, order = self.name(index).rpartition(" ")
            if own == name:
                return index, tuple(int(axis) for axis in order.split(",")) if order else ()
        return None


def read(path: Path) -> Model:
    """The file; raises InvalidInput where there is none, and TargetMismatch where it is not whole."""
    data = read_bytes(path, MOST_BYTES)
    if data[4:8] != IDENTIFIER:
        raise TargetMismatch(f"{path}: not a TensorFlow Lite file; export again")
    try:
        content = _unpacked(data)
        problem = _problem(Model(data, content))
    except (struct.error, ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise TargetMismatch(f"{path}: damaged or cut off ({type(error).__name__}); export again") from error
    if problem:
        raise TargetMismatch(f"{path}: damaged: {problem}; export again")
    return Model(data, content)


def _unpacked(data: bytes) -> Any:
    """The schema's ModelT of it."""
    return schema.ModelT.InitFromPackedBuf(data)


def _problem(model: Model) -> str | None:
    """What refers to nothing, or holds too few bytes; None where all is well."""
    content = model.content
    if len(content.subgraphs or ()) != 1:
        return f"{len(content.subgraphs or ())} subgraphs in the place of one"
    count, buffers = len(model.tensors), content.buffers
    for index, tensor in enumerate(model.tensors):
        name, known = model.name(index), tensor.buffer < len(buffers)
        data: Any = buffers[tensor.buffer].data if known else None
        if not known or (tensor.buffer and data is None):
            return f"no bytes of {name}"
        if tensor.buffer and len(data) != -(-math.prod(_shape(tensor)) * _BITS[model.kind(index)] // 8):
            return f"{len(data)} bytes of {name}, whose shape is {_shape(tensor)}"
    for operator in model.graph.operators:
        model.operator(operator)
        if not all(-1 <= index < count for index in (*operator.inputs, *operator.outputs)):
            return "an operator reads a tensor that is not there"
    if not all(0 <= index < count for index in (*model.graph.inputs, *model.graph.outputs)):
        return "an input or output that is not there"
    return None


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def stored_in(model: Model) -> dict[str, StoredWeight]:
    """Layer -> bytes of its weight, scales and zero points, and their types."""
    rows = {}
    for index, tensor in enumerate(model.tensors):
        layer, separator, _ = model.name(index).rpartition(SEPARATOR)
        if separator and tensor.buffer:
            size, types = len(model.content.buffers[tensor.buffer].data), model.kind(index).lower()
            factors = tensor.quantization
            if factors is not None and factors.scale is not None:
                size += 4 * len(factors.scale) + 8 * len(factors.zeroPoint)
                types += ", float32 scale"
            rows[layer] = StoredWeight(size, types)
    return rows


def with_outputs(model: Model, indices: list[int]) -> bytes:
    """The file with these tensors as further outputs."""
    content = _unpacked(model.data)
    graph = content.subgraphs[0]
    graph.outputs = list(dict.fromkeys([*graph.outputs, *indices]))
    builder = flatbuffers.Builder(len(model.data))
    builder.Finish(content.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def smallest() -> bytes:
    """A file that returns the one number that it takes, or 0 where that is negative."""
    writer = Writer()
    index = writer.tensor([1], "FLOAT32")
    writer.graph.inputs, writer.graph.outputs = [index], [writer.tensor([1], "FLOAT32")]
    writer.operator("RELU", [index], writer.graph.outputs)
    return writer.packed()


def in_logical_order(model: Model, index: int, order: Order, array: NDArray[Any]) -> NDArray[Any]:
    """The numbers of a tensor of that order, in float."""
    factors = model.tensors[index].quantization
    if array.dtype == np.int8 and factors is not None:
        array = (array.astype(np.float32) - np.float32(factors.zeroPoint[0])) * np.float32(factors.scale[0])
    return array.transpose(np.argsort(order)) if order else array


def executed(model: Model, interpreter: Any) -> dict[str, str]:
    """Layer -> operators, the type that they compute in, and who runs them, from the runtime's own list of them."""
    nodes = interpreter._get_ops_details()
    delegated = _delegated(nodes)
    rows = {}
    for index, tensor in enumerate(model.tensors):
        layer, separator, _ = model.name(index).rpartition(SEPARATOR)
        if separator and tensor.buffer:
            stored = _SHORT[model.kind(index)]
            texts = [_told(model, nodes[place], place in delegated, stored) for place in _readers(nodes, index)]
            rows[layer] = ", ".join(dict.fromkeys(texts))
    return rows


def _readers(nodes: list[dict[str, Any]], tensor: int) -> list[int]:
    """Places of the operators that read a tensor, or what is unpacked from it."""
    found = []
    for place, node in enumerate(nodes):
        if node["op_name"] != _DELEGATE and tensor in node["inputs"]:
            unpacks = node["op_name"] in UNPACKING
            found += _readers(nodes, int(node["outputs"][0])) if unpacks else [place]
    return found


def _delegated(nodes: list[dict[str, Any]]) -> set[int]:
    """Places of the operators that a delegate runs: those between its inputs and its outputs."""
    makers = {
        int(tensor): place
        for place, node in enumerate(nodes)
        if node["op_name"] != _DELEGATE
        for tensor in node["outputs"]
    }
    found = set()
    for node in nodes:
        if node["op_name"] == _DELEGATE:
            given, wanted = {int(each) for each in node["inputs"]}, [int(each) for each in node["outputs"]]
            while wanted:
                tensor = wanted.pop()
                place = makers.get(tensor)
                if tensor not in given and place is not None and place not in found:
                    found.add(place)
                    wanted += [int(each) for each in nodes[place]["inputs"]]
    return found


def _told(model: Model, node: dict[str, Any], delegated: bool, stored: str) -> str:
    data = 1 if node["op_name"] == "GATHER" else 0
    read = model.kind(int(node["inputs"][2 if node["op_name"] == "TRANSPOSE_CONV" else data]))
    made = model.kind(int(node["outputs"][0]))
    computes = "int8" if read == made == "INT8" else made.lower()
    text = f"{node['op_name']} {computes} ({'XNNPACK' if delegated else PLAIN})"
    return text if computes == "int8" or stored == "f32" else f"{text}, weights in {stored}"
