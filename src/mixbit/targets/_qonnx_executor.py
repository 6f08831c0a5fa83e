"""Running a QONNX file by qonnx's executor, node by node, for inputs of given sizes."""

import warnings
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_node
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.infer_shapes import InferShapes

from mixbit.core import StoredWeight
from mixbit.targets._integers import SEPARATOR
from mixbit.targets._qonnx import SCALE, WEIGHT

#: Sizes of the inputs.
Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Prepared:
    """A file whose tensors have sizes, and what does not depend on its inputs computed.

    Attributes:
        model: qonnx's wrapper.
        tensors: Name -> a tensor of its size: a constant, or numbers that a run will write over.
        nodes: Those that read what depends on the inputs, in order.
        opset: Version of ONNX.
    """

    model: Any
    tensors: dict[str, NDArray[Any]]
    nodes: list[Any]
    opset: int

    def run(self, inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Name -> tensor, for all tensors of the file, on one array per input."""
        tensors = self.tensors | dict(zip(names_of(self.model.graph.input), inputs, strict=True))
        with warnings.catch_warnings():  # sizes that only a run knows are others than qonnx inferred; it goes on
            warnings.filterwarnings("ignore", "Output shapes disagree")
            for node in self.nodes:
                execute_node(node, tensors, self.model.graph, self.opset)
        return tensors


def names_of(ports: Any) -> list[str]:
    """The names of inputs or outputs."""
    return [port.name for port in ports]


def prepared(proto: Any, sizes: Sizes) -> Prepared:
    """The file for inputs of these sizes."""
    copy = type(proto).FromString(proto.SerializeToString())
    for port, shape in zip(copy.graph.input, sizes, strict=True):
        for dimension, size in zip(port.type.tensor_type.shape.dim, shape, strict=True):
            dimension.dim_value = size
    model, _ = InferShapes().apply(ModelWrapper(copy, fix_missing_initializer_valueinfo=False))
    opset = model.get_opset_imports()[""]
    tensors: dict[str, Any] = model.make_empty_exec_context()
    varying, nodes = set(names_of(copy.graph.input)), []
    for node in model.graph.node:
        if varying.isdisjoint(node.input):
            execute_node(node, tensors, model.graph, opset)
        else:
            varying.update(node.output)
            nodes.append(node)
    return Prepared(model, tensors, nodes, opset)


def stored_in(proto: Any) -> dict[str, StoredWeight]:
    """Layer -> bytes of its weight and scales, in the type that qonnx infers for its Quant node."""
    model, rows = ModelWrapper(proto), dict[str, StoredWeight]()
    quants = {node.input[0]: node for node in proto.graph.node if node.op_type == "Quant"}
    sizes = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
    for name, size in sizes.items():
        layer, separator, part = name.rpartition(SEPARATOR)
        if separator + part != WEIGHT:
            continue
        if name not in quants:
            rows[layer] = StoredWeight(size, "float32")
            continue
        quant: Any = getCustomOp(quants[name])
        kind = quant.get_integer_datatype(model)
        numel = size // 4
        integers = -(-numel * kind.bitwidth() // 8)
        rows[layer] = StoredWeight(integers + sizes[f"{layer}{SCALE}"], f"{kind.name}, float32 scale")
    return rows
