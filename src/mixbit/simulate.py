"""quantize(): insert quantizers into a graph and correct the biases; the result evaluates and trains."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.batches import split_batch
from mixbit.between import convolved, inputs_between
from mixbit.calibrate import Calibration, calibrate, mean_output
from mixbit.errors import InvalidInput
from mixbit.exporting import copy_module
from mixbit.fold import set_bias
from mixbit.graph import Graph
from mixbit.layers import Layer, find_layers, model_fingerprint
from mixbit.nodes import argument, get_tensor, tensor_of
from mixbit.operators import can_take_bias
from mixbit.plan import Plan
from mixbit.progress import track
from mixbit.quantizer import Quantizer
from mixbit.ranges import RangeMethod
from mixbit.scales import weight_quantizer
from mixbit.scheme import Format
from mixbit.target import Target, find_target

BETWEEN = Format(8, "tensor", symmetric=False)


def quantize(
    graph: Graph,
    plan: Plan,
    batches: Iterable[Any] | Calibration,
    *,
    bias_correction: bool = True,
    ranges: str | RangeMethod = "mse",
) -> Graph:
    """The graph with the plan's quantizers, simulated in float: a module that evaluates and trains.

    Weights: symmetric, a scale per output channel, nearest rounding. Activations: one quantizer per tensor, shared by
    everyone who reads it, with a static range. Bias correction subtracts from each operator's bias the mean error
    of its output that the rounding of its weight makes on the calibration data. Where weight and input are integers,
    a bias is a whole multiple of the product of their scales, as runtimes hold it.

    Args:
        graph: A captured graph in float; it is left as it is.
        plan: A scheme for every layer, for the target it names.
        batches: Calibration data, labels ignored; or a calibration of this graph.
        bias_correction: Whether to correct biases.
        ranges: How ranges of activations are chosen, see `mixbit.ranges.RANGES`; a calibration has its own way.

    Raises:
        InvalidInput: the plan is of another model, offers what the target does not run, or the data does not fit.
    """
    layers = check_plan(graph, plan)
    plan = _without_stale_claims(plan, layers)
    if not isinstance(batches, Calibration):
        inputs = [split_batch(batch, len(graph.example.args))[0] for batch in batches]
        batches = calibrate(graph, layers, inputs, ranges=ranges)
    batches.check_layers(layers)
    formats = activation_formats(graph, layers, plan, find_target(plan.target))
    activations = {
        name: batches.quantizer(name, fmt, graph.device)
        for name, fmt in formats.items()
        if batches.histograms[name].finite  # a mask of -inf, which no integer holds, stays in float
    }
    weights, biases = [], {}
    for layer in track(layers, "round weights"):
        fmt = plan.scheme(layer.name).weight
        if fmt is not None:
            weights.append(weight_quantizer(graph, layer, fmt, batches))
            biases |= _biases(graph, layer, weights[-1], batches if bias_correction else None, activations)
    return assemble(graph, plan, [*weights, *activations.values()], biases)


def check_plan(graph: Graph, plan: Plan) -> tuple[Layer, ...]:
    """The graph's layers; raise InvalidInput unless the plan fits them and its target runs every scheme."""
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; quantize the captured graph")
    layers = find_layers(graph)
    plan.check_model([layer.name for layer in layers], model_fingerprint(layers))
    find_target(plan.target).schemes(sorted(set(plan.layers.values())))
    return layers


def _without_stale_claims(plan: Plan, layers: tuple[Layer, ...]) -> Plan:
    """The plan without what was predicted of it, where its schemes were edited since: its bytes are others now."""
    weight_bytes = find_target(plan.target).weight_bytes
    held = sum(weight_bytes(layer.shape, layer.axis, plan.scheme(layer.name).weight) for layer in layers)
    if plan.predicted.get("weight_bytes", held) == held:
        return plan
    return plan.model_copy(update={"predicted": {}, "made_by": f"{plan.made_by}, edited"})


def activation_formats(graph: Graph, layers: tuple[Layer, ...], plan: Plan, target: Target) -> dict[str, Format]:
    """Node name -> format, for every activation that the plan and the target quantize.

    The inputs of layers take their layer's input format; those of operators between layers take 8 bits where the
    target runs the operator in integers and some layer has a quantized input.

    Raises:
        InvalidInput: two layers that read the same tensor take different input formats.
    """
    wanted: dict[str, tuple[Format | None, str]] = {}
    for layer in layers:
        fmt = plan.scheme(layer.name).input
        for name in layer.inputs:
            other, owner = wanted.setdefault(name, (fmt, layer.name))
            if other != fmt:
                raise InvalidInput(
                    f"plan: {owner} ({plan.layers[owner]}) and {layer.name} ({plan.layers[layer.name]}) read the same "
                    "tensor; give both the same input format"
                )
    formats = {name: fmt for name, (fmt, _) in wanted.items() if fmt is not None}
    if formats:
        for name in inputs_between(graph, layers, target.integer_operators, inside=target.adds_into_layers):
            if name not in wanted:
                formats[name] = BETWEEN
    if target.quantized_outputs:
        for layer in layers:
            if plan.scheme(layer.name).input is not None:
                formats |= {name: BETWEEN for name in convolved(graph, layer) if name not in wanted | formats}
    return formats


def assemble(graph: Graph, plan: Plan, quantizers: list[Quantizer], biases: dict[str, Tensor]) -> Graph:
    """A copy of the graph with these quantizers on their tensors and these biases (operator's node -> bias)."""
    simulated = dataclasses.replace(graph, module=copy_module(graph.module), plan=plan)
    module = simulated.module
    operations = {operation.node: (layer, operation) for layer in find_layers(graph) for operation in layer.operations}
    for name, bias in biases.items():
        layer, operation = operations[name]
        if operation.kind.bias is not None:
            set_bias(module, simulated.node(name), bias, layer.name, operation.kind.bias)
    for quantizer in quantizers:
        if quantizer.axis is None:
            places = [simulated.node(quantizer.tensor)]
        else:
            places = [node for node in module.graph.find_nodes(op="get_attr") if node.target == quantizer.tensor]
        _insert(module, places, quantizer)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return simulated


def quantizers_of(graph: Graph) -> list[Quantizer]:
    """The graph's quantizers, those of weights first."""
    found = [module for module in graph.module.modules() if isinstance(module, Quantizer)]
    return sorted(found, key=lambda one: one.axis is None)


def quantizer_path(tensor: str, *, of_weight: bool) -> str:
    """Full name of the quantizer's module in the graph; parameters and nodes may have the same names."""
    return f"mixbit_quantizers.{'weights' if of_weight else 'activations'}.{tensor}"


@torch.no_grad()
def _biases(
    graph: Graph,
    layer: Layer,
    quantizer: Quantizer,
    calibration: Calibration | None,
    activations: Mapping[str, Quantizer],
) -> dict[str, Tensor]:
    """Operator's node -> bias, for every operator that has or gets one; corrected where a calibration is given."""
    weight = get_tensor(graph.module, layer.name)
    error = quantizer(weight) - weight
    biases = {}
    for operation in layer.operations:
        node = graph.node(operation.node)
        previous = argument(node, operation.kind.bias)
        if not can_take_bias(node, operation) or (previous is None and calibration is None):
            continue
        bias = torch.zeros((), device=weight.device) if previous is None else tensor_of(graph.module, previous)
        if calibration is not None:
            bias = bias - mean_output(graph, operation, calibration, error)
        read = None if operation.input is None else activations.get(operation.input)
        biases[operation.node] = held_bias(bias, read, quantizer)
    return biases


def held_bias(bias: Tensor, read: Quantizer | None, weight: Quantizer | None) -> Tensor:
    """The bias as runtimes hold it: a whole multiple of the product of the scales, where input and weight have them."""
    if read is None or weight is None:
        return bias
    scales = read.scale * weight.scale
    step = scales.repeat(bias.shape[-1] // len(scales))  # groups of a transposed convolution share theirs
    return torch.round(bias / step) * step


def _insert(module: fx.GraphModule, nodes: list[fx.Node], quantizer: Quantizer) -> None:
    path = quantizer_path(quantizer.tensor, of_weight=quantizer.axis is not None)
    module.add_submodule(path, quantizer)
    last_placeholder = module.graph.find_nodes(op="placeholder")[-1]
    for node in nodes:
        with module.graph.inserting_after(max(node, last_placeholder)):
            quantized = module.graph.call_module(path, (node,))
        quantized.meta = dict(node.meta)
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user, own=quantized: user is not own)
