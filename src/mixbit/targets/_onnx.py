"""The ONNX graph that torch exports, with every quantizer in standard operators, made ready for onnxruntime."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch

from mixbit.core import UnsupportedModel, interrupts_later
from mixbit.graph.capture import export_graph, without_logs
from mixbit.graph.graph import Graph, without_torchs_warnings
from mixbit.targets._integers import FURTHER

OPSET = 21  # the first with INT4 and per-channel DequantizeLinear of it
#: Operators that onnxruntime runs in integers when both inputs are; others read weights as float32.
INTEGER_OPERATORS = ("Conv", "Gemm", "MatMul")
#: Operators that move values or pick among them; they do not change the scale that the values were quantized with.
_MOVES = (
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Gather", "Slice", "Split", "Expand",
    "MaxPool",
)  # fmt: skip

_op: Any = onnxscript.opset21


def exported_model(simulated: Graph) -> Any:
    """The graph as an onnx_ir model, with every quantizer as QuantizeLinear and DequantizeLinear."""
    translations = {
        torch.ops.mixbit.quantize_dequantize.default: _quantize_dequantize,
        torch.ops.mixbit.quantize_at_run_time.default: _quantize_at_run_time,
        torch.ops.mixbit.round_to_type.default: _round_to_type,
    }
    try:
        with without_torchs_warnings(), without_logs(), interrupts_later():
            exported: Any = torch.onnx.export(
                export_graph(simulated), (), dynamo=True, verbose=False, optimize=False, opset_version=OPSET,
                custom_translation_table=translations,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error  # the error itself is advice for authors of exporters
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise UnsupportedModel(f"torch.onnx cannot export the model: {reason}") from error
    return exported.model


def _quantize_dequantize(  # noqa: PLR0917 the arguments of mixbit.quantization.quantizer's operator
    x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int, tensor: str  # noqa: ARG001
) -> Any:  # fmt: skip
    """A quantizer as standard operators; `store_weight` and `finish_activation` give it its constants."""
    zero = _op.Cast(zero_point, to=3 if low < 0 else 2)
    where = {"axis": axis} if axis >= 0 else {}
    return _op.DequantizeLinear(_op.QuantizeLinear(x, scale, zero, **where), scale, zero, **where)


def _quantize_at_run_time(
    x: Any, bits: int, rows: bool, group: int, tensor: str  # noqa: ARG001
) -> Any:  # fmt: skip
    """Uint8 with one range for the tensor; `targets._onnx_weights` lets products read the integers."""
    return _op.DequantizeLinear(*_op.DynamicQuantizeLinear(x))


def _round_to_type(x: Any, kind: str, tensor: str) -> Any:  # noqa: ARG001
    return _op.Cast(_op.Cast(x, to=10 if kind == "float16" else 16), to=1)


def finish(graph: Any) -> None:
    """Change what keeps onnxruntime from running operators in integers or fusing them, and drop what no node reads."""
    _requantize(graph)
    for gemm in [node for node in graph if node.op_type == "Gemm"]:
        _quantize_bias(graph, gemm)
    _fold_numbers(graph)
    _drop_unused(graph)


def name_readers(nodes: Iterable[Any], layer: str) -> None:
    """Give operators the name of the layer whose weight they read; onnxruntime keeps names of operators."""
    for number, node in enumerate(nodes):
        node.name = layer if number == 0 else f"{layer}{FURTHER}{number}"


def readers(value: Any, *, transposed: bool = False) -> Iterator[tuple[Any, int, bool]]:
    """Operator, number of its input, and whether a matrix comes transposed, for all that read the value."""
    for node, index in list(value.uses()):
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", ())
            swaps = list(order) != sorted(order) or not order
            yield from readers(node.outputs[0], transposed=transposed ^ swaps)
        else:
            yield node, index, transposed


def producer(value: Any, *kinds: str) -> Any:
    """The operator that computes the value, where it is of one of these kinds; else None."""
    node = value.producer()
    return node if node is not None and node.op_type in kinds else None


def finish_activation(graph: Any, quantize: Any) -> None:
    """Replace the cast zero point of a QuantizeLinear and its DequantizeLinear by a constant."""
    (dequantize,) = quantize.outputs[0].consumers()
    cast = quantize.inputs[2].producer()
    kind = np.int8 if cast.attributes["to"].value == ir.DataType.INT8 else np.uint8
    zero_point = cast.inputs[0].const_value.numpy().astype(kind)
    for node in (quantize, dequantize):
        node.replace_input_with(2, initializer(graph, f"{quantize.inputs[1].name}.zero_point", zero_point))


def _requantize(graph: Any) -> None:
    """Repeat the quantizer of an activation right before each operator that reads it through others.

    The second rounding changes nothing, and onnxruntime runs an operator in integers only where it stands.
    """
    for node in [node for node in graph if node.op_type in INTEGER_OPERATORS]:
        for index, value in enumerate(node.inputs[:2]):
            moved = value
            while (move := producer(moved, *_MOVES)) is not None:
                moved = move.inputs[0]
            dequantize = producer(moved, "DequantizeLinear")
            if moved is value or dequantize is None or producer(dequantize.inputs[0], "QuantizeLinear") is None:
                continue
            factors = list(dequantize.inputs[1:])
            rounded = ir.node("QuantizeLinear", [value, *factors])
            restored = ir.node("DequantizeLinear", [rounded.outputs[0], *factors])
            graph.insert_before(node, (rounded, restored))
            node.replace_input_with(index, restored.outputs[0])


def _quantize_bias(graph: Any, gemm: Any) -> None:
    """Store a Gemm's bias in int32 at the scale of its products: onnxruntime runs it in integers only then."""
    sources = [producer(value, "DequantizeLinear") for value in gemm.inputs[:2]]
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if None in sources or bias is None or not bias.is_initializer() or len(bias.uses()) > 1:
        return
    x_scale, w_scale = (node.inputs[1].const_value.numpy().astype(np.float64) for node in sources)
    scale = (x_scale * w_scale).astype(np.float32)
    integers = np.rint(bias.const_value.numpy().astype(np.float64) / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
    stored = initializer(graph, f"{bias.name}.int32", integers), initializer(graph, f"{bias.name}.scale", scale)
    node = ir.node("DequantizeLinear", list(stored), {"axis": 0})
    graph.insert_before(gemm, node)
    gemm.replace_input_with(2, node.outputs[0])


def _fold_numbers(graph: Any) -> None:
    """Make initializers of numbers behind a CastLike, which onnxruntime folds too late to fuse the clipping by them."""
    for node in [node for node in graph if node.op_type == "CastLike"]:
        number, kind = ir.convenience.get_const_tensor(node.inputs[0]), node.inputs[1].dtype
        if number is not None and number.size == 1 and kind is not None:
            value = number.numpy().astype(kind.numpy())
            folded = initializer(graph, f"{kind.name.lower()}_{value}", value)
            ir.convenience.replace_all_uses_with(node.outputs[0], folded)


def _drop_unused(graph: Any) -> None:
    """Drop what no node reads, and the exporter's notes on where each node came from, larger than small weights."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in [value for value in values if not value.is_graph_output()]:
        value.metadata_props.clear()
        value.shape = value.type = None


def initializer(graph: Any, name: str, array: Any) -> Any:
    """The initializer of that name, made where there is none."""
    if name not in graph.initializers:
        tensor: Any = ir.tensor(np.array(array, order="C")) if isinstance(array, np.ndarray | np.generic) else array
        tensor.name = name
        graph.initializers[name] = ir.Value(
            name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
    return graph.initializers[name]
