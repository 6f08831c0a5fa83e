"""The QONNX model of a graph: every quantizer a Quant node, all else in float."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from mixbit.core import BATCH, UnsupportedModel
from mixbit.graph import Graph, ports_of
from mixbit.quantization.quantizer import Quantizer
from mixbit.targets._integers import SEPARATOR, stored_weights
from mixbit.targets._onnx_graph import drop_unused, name_ports, name_readers
from mixbit.targets._onnx_translation import translated
from mixbit.targets._onnx_writer import Writer, constant, initializer

#: Domain of Quant, and its version.
DOMAIN, VERSION = "qonnx.custom_op.general", 1
#: Operators that take averages over positions; each is written as a convolution where that can be.
MEANS = ("AveragePool", "ReduceMean")
#: What the parts of a layer's weight are called, behind its name: the numbers in float32, and the scales.
WEIGHT, SCALE = f"{SEPARATOR}weight", f"{SEPARATOR}scale"


def converted(simulated: Graph) -> Any:
    """The onnx_ir model of a quantized graph, with weights that their Quant nodes leave as they are."""
    model = translated(simulated, _quantized)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _multiply(model.graph, node)
        elif node.op_type in MEANS:
            _average_by_convolution(model.graph, node)
        elif node.op_type == "Clip" and node.inputs[1] is None:
            _replace(model.graph, node, [ir.node("Min", [node.inputs[0], node.inputs[2]])])
    _check_inputs(model.graph)
    _store_weights(model.graph, simulated)
    drop_unused(model)
    name_ports(model.graph, ports_of(simulated))
    for value in model.graph.inputs:  # a design takes one sample
        value.shape = ir.Shape(1 if size == BATCH else size for size in value.shape)
    model.opset_imports[DOMAIN] = VERSION
    return model


def _quantized(writer: Writer, path: str, quantizer: Quantizer, x: Any) -> Any:
    """(clip(round(x / scale + zero point)) - zero point) * scale, halves to the even integer.

    Scales of channels are shaped to act on the weight.
    """
    fmt, scale = quantizer.format, quantizer.scale
    if quantizer.axis is not None:
        scale = scale.reshape([-1 if axis == quantizer.axis else 1 for axis in range(len(x.shape))])
    factors = {"scale": scale, "zero_point": quantizer.zero_point.reshape(scale.shape)}
    given = [initializer(writer.graph, f"{path}.{name}", _array(value)) for name, value in factors.items()]
    bits = initializer(writer.graph, f"{path}.bits", np.array(fmt.bits, dtype=np.float32))
    options = {"signed": int(fmt.symmetric), "narrow": 0, "rounding_mode": "ROUND"}
    node = ir.node("Quant", [x, *given, bits], options, domain=DOMAIN)
    writer.graph.append(node)
    return node.outputs[0]


def _multiply(graph: Any, gemm: Any) -> None:
    """Write a Gemm as a product and an addition, which hls4ml and FINN read; one with other factors stays."""
    if gemm.attributes.get_float("alpha", 1.0) != 1 or gemm.attributes.get_float("beta", 1.0) != 1:
        return
    x, y, *added = gemm.inputs
    nodes = []
    if gemm.attributes.get_int("transB", 0):
        nodes.append(ir.node("Transpose", [y], {"perm": [1, 0]}))
        y = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [x, y]))
    if added:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], *added]))
    _replace(graph, gemm, nodes)


def _average_by_convolution(graph: Any, mean: Any) -> None:
    """Write averages over windows or all positions as a depthwise convolution by 1 / positions, where that is the same.

    hls4ml 1.3 reads no other form rightly: it has no ReduceMean, refuses AveragePool, which qonnx 1.0 does not turn to
    channels last, and mixes up the dimensions of GlobalAveragePool.
    """
    window = _window(mean)
    if window is None:
        return
    x, channels = mean.inputs[0], mean.inputs[0].shape[1]
    kernel, count = window["kernel_shape"], math.prod(window["kernel_shape"])
    name = f"average of {'x'.join(map(str, kernel))} in {channels}"
    share, zero, bits = (np.array(number, dtype=np.float32) for number in (1 / count, 0, 2))
    weight = initializer(graph, name, np.full((channels, 1, *kernel), share))
    factors = [
        initializer(graph, f"{name} {part}", array)
        for part, array in (("scale", share), ("zero_point", zero), ("bits", bits))
    ]
    quant = ir.node("Quant", [weight, *factors], {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}, domain=DOMAIN)
    ones = [1] * len(kernel)
    nodes = [quant, ir.node("Conv", [x, quant.outputs[0]], {"group": channels, "dilations": ones, **window})]
    if mean.op_type == "ReduceMean" and not mean.attributes.get_int("keepdims", 1):
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], constant(graph, np.array([0, channels]))]))
    _replace(graph, mean, nodes)


def _window(mean: Any) -> dict[str, list[int]] | None:
    """Sizes, steps and padding of the windows that an operator averages over; None where a convolution does not."""
    shape = mean.inputs[0].shape
    if shape is None or len(shape) not in (3, 4) or not isinstance(shape[1], int):
        return None
    count = len(shape) - 2
    if mean.op_type == "AveragePool":
        said = mean.attributes
        window = {name: list(said.get_ints(name)) for name in ("kernel_shape", "strides")}
        pads = list(said.get_ints("pads", [0] * (2 * count)))
        counted = said.get_int("count_include_pad", 0) or not any(pads)
        return window | {"pads": pads} if counted and not said.get_int("ceil_mode", 0) else None
    if len(mean.inputs) < 2 or mean.inputs[1] is None:  # over all dimensions, samples too
        return None
    axes = sorted(axis % len(shape) for axis in mean.inputs[1].const_value.numpy().tolist())
    sizes = list(shape)[2:]
    if axes != [*range(2, len(shape))] or not all(isinstance(size, int) for size in sizes):
        return None
    return {"kernel_shape": sizes, "strides": sizes, "pads": [0] * (2 * count)}


def _replace(graph: Any, node: Any, nodes: list[Any]) -> None:
    """Put the nodes, the last of which returns what this one does, in its place."""
    graph.insert_before(node, nodes)
    made = nodes[-1].outputs[0]
    made.shape, made.type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_all_uses_with(node.outputs[0], made, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _check_inputs(graph: Any) -> None:
    """Raise UnsupportedModel for operators that leave out an input before others, which qonnx cannot run."""
    for node in graph:
        if None in node.inputs or any(value.name == "" for value in node.outputs):
            raise UnsupportedModel(
                f"{node.name}: qonnx does not run an operator {node.op_type} some of whose inputs or outputs are left "
                "out; write the model without it, or take another target"
            )


def _store_weights(graph: Any, simulated: Graph) -> None:
    """Store the rounded weights, and name their parts, and the operators that read them, after the layers."""
    integers, _ = stored_weights(simulated)
    for layer in simulated.layers:
        value = graph.initializers[layer.name]
        value.name = f"{layer.name}{WEIGHT}"
        weight = integers.get(layer.name)
        if weight is None:
            name_readers(value, layer.name)
            continue
        rounded = weight.integers.astype(np.float32) * weight.column(weight.scale)
        value.const_value = ir.tensor(rounded, name=value.name)
        (quant,) = value.consumers()
        quant.inputs[1].name = f"{layer.name}{SCALE}"
        name_readers(quant.outputs[0], layer.name)


def _array(tensor: Any) -> Any:
    return tensor.detach().cpu().float().numpy()
