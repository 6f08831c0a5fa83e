"""What files in ONNX need of a translated graph: names of operators, inputs and outputs, and nothing unused."""

from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mixbit.core import Ports
from mixbit.targets._integers import operator_name
from mixbit.targets._onnx_translation import free_name

#: Dimensions of a weight that Gemm and MatMul read.
MATRIX = 2


def drop_unused(model: Any) -> None:
    """Drop what no node reads, and notes on types, shapes and where nodes came from, larger than small weights."""
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in [value for value in values if not value.is_graph_output()]:
        value.metadata_props.clear()
        value.shape = value.type = None


def name_ports(graph: Any, ports: Ports) -> None:
    """Give inputs and outputs the names that users know; a tensor inside that has such a name gets another."""
    places = [*zip(graph.inputs, ports.inputs, strict=True), *zip(graph.outputs, ports.outputs, strict=True)]
    wanted = {port.name for port in (*ports.inputs, *ports.outputs)}
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    taken = wanted | {value.name for value in values}
    for value in [value for value in values if value.name in wanted]:
        taken.add(free := free_name(value.name, taken))
        value.name = free
    for value, port in places:
        value.name, value.shape = port.name, ir.Shape(port.shape)


def readers(value: Any, *, transposed: bool = False) -> Iterator[tuple[Any, int, bool]]:
    """Operator, number of its input, and whether a matrix comes transposed, for all that read the value."""
    for node, index in list(value.uses()):
        order = list(node.attributes.get_ints("perm", ())) if node.op_type == "Transpose" else []
        if len(order) == MATRIX:
            yield from readers(node.outputs[0], transposed=transposed ^ (order != sorted(order)))
        else:
            yield node, index, transposed


def name_readers(value: Any, layer: str) -> None:
    """Name operators after the layer whose weight the value is."""
    name_operators((node for node, _, _ in readers(value)), layer)


def name_operators(nodes: Iterable[Any], layer: str) -> None:
    """Name operators after the layer whose weight they read."""
    for number, node in enumerate(nodes):
        node.name = operator_name(layer, number)
