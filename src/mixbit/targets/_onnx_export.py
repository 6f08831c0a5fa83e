"""The ONNX graph that torch exports, with every quantizer in standard operators."""

from typing import Any

import torch

from mixbit.errors import UnsupportedModel
from mixbit.exporting import without_logs, without_torchs_warnings
from mixbit.graph import Graph
from mixbit.interrupts import interrupts_later

OPSET = 21  # the first with INT4 and per-channel DequantizeLinear of it


def exported_graph(graph: Graph) -> Any:
    """The graph as an onnx_ir model, with every quantizer as QuantizeLinear and DequantizeLinear."""
    translations = {
        torch.ops.mixbit.quantize_dequantize.default: _quantize_dequantize,
        torch.ops.mixbit.quantize_at_run_time.default: _quantize_at_run_time,
        torch.ops.mixbit.round_to_type.default: _round_to_type,
    }
    try:
        with without_torchs_warnings(), without_logs(), interrupts_later():
            exported: Any = torch.onnx.export(
                graph.export(), (), dynamo=True, verbose=False, optimize=False, opset_version=OPSET,
                custom_translation_table=translations,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error  # the error itself is advice for authors of exporters
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise UnsupportedModel(f"torch.onnx cannot export the model: {reason}") from error
    return exported.model


def _quantize_dequantize(  # noqa: PLR0917 the arguments of mixbit.quantizer's operator
    x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int, tensor: str  # noqa: ARG001
) -> Any:  # fmt: skip
    """A quantizer as standard operators; `targets._onnx` gives it its constants after the export."""
    import onnxscript

    op: Any = onnxscript.opset21
    zero = op.Cast(zero_point, to=3 if low < 0 else 2)
    where = {"axis": axis} if axis >= 0 else {}
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero, **where), scale, zero, **where)


def _quantize_at_run_time(
    x: Any, bits: int, rows: bool, group: int, tensor: str  # noqa: ARG001
) -> Any:  # fmt: skip
    """Uint8 with one range for the tensor; `targets._onnx_weights` lets products read the integers."""
    import onnxscript

    op: Any = onnxscript.opset21
    return op.DequantizeLinear(*op.DynamicQuantizeLinear(x))


def _round_to_type(x: Any, kind: str, tensor: str) -> Any:  # noqa: ARG001
    import onnxscript

    op: Any = onnxscript.opset21
    return op.Cast(op.Cast(x, to=10 if kind == "float16" else 16), to=1)
