"""The OpenVINO model of a graph: converted with its weights as inputs, its operators named, its file made shorter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from torch import Tensor

from mixbit.core import UnsupportedModel, interrupts_later
from mixbit.graph.graph import Graph
from mixbit.graph.torch_export import without_torchs_warnings
from mixbit.targets._integers import FURTHER


def last_line(error: Exception) -> str:
    """Of an error of OpenVINO: what went wrong, behind where it did."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def weight_nodes(graph: Graph) -> dict[str, str]:
    """Node through which operators read a layer's weight, a quantizer or the parameter itself -> the layer's name."""
    names = {layer.name for layer in graph.layers}
    nodes = {}
    for node in graph.module.graph.find_nodes(op="get_attr"):
        if node.target in names:
            quantizers = [user for user in node.users if user.op == "call_module"]
            nodes[(quantizers or [node])[0].name] = str(node.target)
    return nodes


def converted(ov: Any, graph: Graph, values: dict[str, Tensor]) -> Any:
    """The graph with a batch of any size and these nodes as further inputs."""
    shapes = [[-1, *leaf.shape[1:]] if leaf.ndim > 0 else [] for leaf in graph.example.tensors]
    shapes += [list(value.shape) for value in values.values()]
    try:
        with without_torchs_warnings(), interrupts_later():
            model = ov.convert_model(graph.export(values), extension=_conversions())
        model.reshape({port: ov.PartialShape(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
    except (RuntimeError, ov.frontend.OpConversionFailure) as error:
        raise UnsupportedModel(f"OpenVINO cannot convert the model: {last_line(error)}") from error
    return model


def _conversions() -> list[Any]:
    """Of quantizers: to FakeQuantize, or to nothing where the plugin takes ranges itself."""
    from openvino import opset15 as ops
    from openvino.frontend.pytorch import ConversionExtension

    def convert(context: Any) -> list[Any]:
        scale, zero_point = (context.get_input(index).get_node().data.astype(np.float32) for index in (1, 2))
        low, high = (context.get_values_from_const_input(index) for index in (4, 5))
        first, last = (low - zero_point) * scale, (high - zero_point) * scale
        return ops.fake_quantize(context.get_input(0), first, last, first, last, high - low + 1).outputs()

    return [
        ConversionExtension("mixbit.quantize_dequantize.default", convert),
        ConversionExtension("mixbit.quantize_at_run_time.default", lambda context: [context.get_input(0)]),
    ]


def part_extremes(model: Any) -> None:
    """Put the change of rank of every maximum and minimum into an operator of its own.

    The CPU plugin fuses a quantizer right behind them and then returns other values (OpenVINO 2026.4).
    """
    from openvino import opset15 as ops

    for node in [one for one in model.get_ops() if one.get_type_name() in {"ReduceMax", "ReduceMin"}]:
        reduce = ops.reduce_max if node.get_type_name() == "ReduceMax" else ops.reduce_min
        change = ops.unsqueeze if node.get_keep_dims() else ops.squeeze
        x, axes = node.input_values()
        node.output(0).replace(change(reduce(x, axes, keep_dims=not node.get_keep_dims()), axes).output(0))


def name_readers(parameter: Any, layer: str, first: int) -> int:
    """Name the operators that read a layer's weight after it, numbered from `first`; how many there are."""
    found = list(_readers(parameter))
    for number, reader in enumerate(found, first):
        _name(reader, layer if number == 0 else f"{layer}{FURTHER}{number}")
    return len(found)


def _name(reader: Any, name: str) -> None:
    """Name an operator after its layer, and the addition of its bias too: a fused pair keeps one name of the two."""
    reader.set_friendly_name(name)
    for port in reader.output(0).get_target_inputs():
        after = port.get_node()
        if after.get_type_name() == "Add" and any(_is_constant(value.get_node()) for value in after.input_values()):
            after.set_friendly_name(f"{name}/bias")


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Reshape", "Convert"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _readers(node: Any) -> Iterator[Any]:
    """The operators that read the weight, through reshapes and transposes."""
    nodes = [port.get_node() for port in node.output(0).get_target_inputs()]
    for reader in sorted(nodes, key=lambda one: one.get_friendly_name()):
        if reader.get_type_name() in ("Reshape", "Transpose", "Convert"):
            yield from _readers(reader)
        elif reader.get_type_name() != "ShapeOf":
            yield reader


def shorten(path: Path) -> None:
    """Drop indentation and the history of fused names, more than half of the file, from the description."""
    tree = ET.parse(path)
    for element in tree.iter():
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
        for info in element.findall("rt_info"):
            for attribute in [one for one in info if one.get("name") == "fused_names"]:
                info.remove(attribute)
            if len(info) == 0:
                element.remove(info)
    tree.write(path, xml_declaration=True)
