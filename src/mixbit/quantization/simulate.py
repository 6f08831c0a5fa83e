"""From a float graph and a plan to the simulated graph that computes with the plan's few bits."""

import torch
from torch import Tensor

from mixbit.core import Plan, find_target, track
from mixbit.graph.graph import Graph, Layer
from mixbit.quantization.assemble import activation_formats, assemble
from mixbit.quantization.biases import corrected_biases
from mixbit.quantization.calibrate import Calibration, mean_output
from mixbit.quantization.quantizer import Quantizer, run_time_quantizer
from mixbit.quantization.scales import weight_quantizer


def simulate(graph: Graph, plan: Plan, calibration: Calibration | None, *, bias_correction: bool = True) -> Graph:
    """The graph with the plan's quantizers, every weight to be rounded to the nearest integer, biases corrected.

    Without a calibration, weights take min-max scales, biases stay, and no input has a static range.
    """
    layers = graph.layers
    if calibration is not None:
        calibration.check_layers(layers)
    formats = activation_formats(graph, plan, find_target(plan.target))
    activations = {}
    for name, fmt in formats.items():
        if fmt.dynamic or calibration is None:
            activations[name] = run_time_quantizer(name, fmt, graph.device)
        elif calibration.histograms[name].finite:  # a mask of -inf, which no integer holds, stays in float
            activations[name] = calibration.quantizer(name, fmt, graph.device)
    weights, biases = [], {}
    for layer in track(layers, "round weights"):
        fmt = plan.scheme(layer.name).weight
        if fmt is not None:
            weights.append(weight_quantizer(graph, layer, fmt, calibration))
            errors = {}
            if bias_correction and calibration is not None:
                errors = _mean_errors(graph, layer, weights[-1], calibration)
            biases |= corrected_biases(graph, layer, weights[-1], errors, activations)
    return assemble(graph, plan, [*weights, *activations.values()], biases)


def _without_stale_claims(plan: Plan, layers: tuple[Layer, ...]) -> Plan:
    """The plan without what was predicted of it, where its schemes were edited since: its bytes are others now."""
    weight_bytes = find_target(plan.target).weight_bytes
    held = sum(weight_bytes(layer.shape, layer.axis, plan.scheme(layer.name).weight) for layer in layers)
    if plan.predicted.get("weight_bytes", held) == held:
        return plan
    return plan.model_copy(update={"predicted": {}, "made_by": f"{plan.made_by}, edited"})


@torch.no_grad()
def _mean_errors(graph: Graph, layer: Layer, quantizer: Quantizer, calibration: Calibration) -> dict[str, Tensor]:
    """Operator's node -> [channels] mean error of its output on the calibration data, where a bias can take it off."""
    weight = graph.parameter(layer.name)
    error = quantizer(weight) - weight
    return {
        operation.node: mean_output(graph, operation, calibration, error)
        for operation in layer.operations
        if operation.takes_bias
    }
