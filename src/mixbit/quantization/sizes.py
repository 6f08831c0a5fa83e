"""Bytes of weights in a target's file, predicted from their shapes, or from their integers where these tell more."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixbit.core import FloatArray, Plan, Scheme, Target, track
from mixbit.graph.graph import Graph, Layer
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.offers import why_not
from mixbit.quantization.quantizer import Quantizer, weight_quantizers
from mixbit.quantization.scales import weight_quantizer


def weight_bytes_of(graph: Graph, plan: Plan, target: Target) -> dict[str, int]:
    """Layer -> bytes of its weight and scales in the target's file, under the plan.

    Args:
        graph: What `quantize` returned for the plan; or the captured graph, of which shapes alone tell.
        plan: A scheme for every layer.
        target: Whose file it is.
    """
    quantizers: Mapping[str, Quantizer] = weight_quantizers(graph)
    return {
        layer.name: _bytes(graph, layer, plan.scheme(layer.name), target, quantizers.get(layer.name))
        for layer in graph.layers
    }


def weight_bytes_of_choices(
    graph: Graph, schemes: Sequence[Scheme], target: Target, calibration: Calibration | None = None
) -> FloatArray:
    """[L, C] bytes of each layer's weight and scales in the target's file, in each scheme that it can take.

    Args:
        graph: A captured graph.
        schemes: The choices.
        target: Whose file it is.
        calibration: With the scales of all weights; where None, shapes alone tell.
    """

    def quantizer(layer: Layer, scheme: Scheme) -> Quantizer | None:
        if scheme.weight is None or calibration is None or why_not(layer, scheme, target) is not None:
            return None
        return weight_quantizer(graph, layer, scheme.weight, calibration.for_target(target))

    if target.coded_bytes is None:
        return np.array(
            [[_bytes(graph, layer, each, target, None) for each in schemes] for layer in graph.layers], float
        )
    layers = track(graph.layers, "predict sizes") if calibration is not None else graph.layers
    rows = [[_bytes(graph, layer, each, target, quantizer(layer, each)) for each in schemes] for layer in layers]
    return np.array(rows, float)


def _bytes(graph: Graph, layer: Layer, scheme: Scheme, target: Target, quantizer: Quantizer | None) -> int:
    if target.layer_bytes is not None:
        return target.layer_bytes(layer, scheme)
    if target.coded_bytes is None or quantizer is None or quantizer.format.floating is not None:
        return target.weight_bytes(layer.shape, layer.axis, scheme.weight)
    integers = quantizer.integers(graph.parameter(layer.name).detach())
    return target.coded_bytes(layer, integers.cpu().numpy(), scheme)
