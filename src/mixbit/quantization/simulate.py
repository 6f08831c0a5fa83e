"""From a float graph and a plan to the simulated graph, which computes with the plan's few bits and can be trained."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from mixbit.core import Format, InvalidInput, Plan, Target, find_target, track
from mixbit.graph import Graph, Layer, argument, bounds_of, inputs_between, model_fingerprint, result_of, scratch
from mixbit.quantization.biases import corrected_biases
from mixbit.quantization.calibrate import Calibration, mean_output
from mixbit.quantization.offers import why_not
from mixbit.quantization.quantizer import Quantizer, Sums, quantizer_path, run_time_quantizer
from mixbit.quantization.scales import weight_quantizer

#: Of tensors between layers.
BETWEEN = Format(8, "tensor", symmetric=False)


def check_plan(graph: Graph, plan: Plan) -> tuple[Layer, ...]:
    """The graph's layers; raise InvalidInput unless the plan fits them and its target runs every scheme."""
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; quantize the captured graph")
    plan.check_model([layer.name for layer in graph.layers], model_fingerprint(graph.layers))
    target = find_target(plan.target)
    target.schemes(sorted(set(plan.layers.values())))
    for layer in graph.layers:
        reason = why_not(layer, plan.scheme(layer.name), target)
        if reason is not None:
            raise InvalidInput(f"plan: {reason}")
    return graph.layers


def activation_formats(graph: Graph, plan: Plan, target: Target) -> dict[str, Format]:
    """Node name -> format, for every activation that the plan and the target quantize.

    The inputs of layers take their layer's input format. Those of operators between layers take 8 bits where the target
    runs the operator in integers and some layer has a quantized input. With ranges taken at run time, the tensors are
    those that operators read, as they read them, and none between layers.

    Raises:
        InvalidInput: two layers that read the same tensor take different input formats.
    """
    if any(_dynamic(plan, layer) for layer in graph.layers):
        return {
            argument(graph.node(name), operation.data).name: fmt
            for name, (layer, operation) in graph.operations.items()
            if (fmt := plan.scheme(layer.name).input) is not None and operation.input is not None
        }
    wanted: dict[str, tuple[Format | None, str]] = {}
    for layer in graph.layers:
        fmt = plan.scheme(layer.name).input
        for name in layer.inputs:
            other, owner = wanted.setdefault(name, (fmt, layer.name))
            if other != fmt:
                raise InvalidInput(
                    f"plan: {owner} ({plan.layers[owner]}) and {layer.name} ({plan.layers[layer.name]}) read the same "
                    "tensor; give both the same input format"
                )
    formats = {name: fmt for name, (fmt, _) in wanted.items() if fmt is not None}
    rounding = [layer for layer in graph.layers if plan.scheme(layer.name).input is not None]
    return formats | dict.fromkeys(rounded_between(graph, rounding, target), BETWEEN)


def rounded_between(graph: Graph, layers: Sequence[Layer], target: Target) -> dict[str, tuple[str, ...]]:
    """Tensor that no layer reads -> the layers, of those whose inputs are rounded, for whose sake it is, to BETWEEN.

    Operators between layers read it on the way to their inputs, see `inputs_between`; or it is what a layer returns,
    where the target runs that in integers only then.
    """
    owners: dict[str, list[str]] = defaultdict(list)
    returned: list[str] = []
    read = {name for layer in graph.layers for name in layer.inputs}
    for layer in layers:
        kinds = target.quantized_outputs
        outputs = [result_of(graph, each) for each in layer.operations if each.kind.name in kinds]
        returned.extend(outputs)
        for name in (*layer.inputs, *outputs):
            owners[name].append(layer.name)
    between = inputs_between(graph, target.integer_operators, inside=target.adds_into_layers, rounded=owners)
    return {
        name: tuple(dict.fromkeys(layer for reason in between.get(name, {name}) for layer in owners[reason]))
        for name in (*between, *returned)
        if name not in read
    }


@torch.no_grad()
def simulate(graph: Graph, plan: Plan, calibration: Calibration | None, *, bias_correction: bool = True) -> Graph:
    """The graph with the plan's quantizers, every weight to be rounded to the nearest integer, biases corrected.

    Without a calibration, weights take min-max scales, biases stay, and no input has a static range.
    """
    target = find_target(plan.target)
    if calibration is not None:
        calibration.check_layers(graph.layers)
        calibration = calibration.for_target(target)
    formats = activation_formats(graph, plan, target)
    activations = {}
    for name, fmt in formats.items():
        if fmt.dynamic or calibration is None:
            activations[name] = run_time_quantizer(name, fmt, graph.device)
        elif calibration.histogram(name).finite:  # a mask of -inf, which no integer holds, stays in float
            activations[name] = calibration.quantizer(name, fmt, graph.device, zero_points=target.zero_points)
            activations[name].shifted = target.rounds_shifted
    weights, biases = [], {}
    spill = None if graph.room is None else scratch(graph.room)
    for layer in track(graph.layers, "round weights"):
        fmt = plan.scheme(layer.name).weight
        if fmt is not None:
            quantizer, errors = weight_quantizer(graph, layer, fmt, calibration), {}
            if bias_correction and calibration is not None:
                change = quantizer(graph.parameter(layer.name)) - graph.parameter(layer.name)
                corrected = [operation for operation in layer.operations if operation.takes_bias]
                errors = {each.node: mean_output(graph, each, calibration, change) for each in corrected}
            biases |= corrected_biases(graph, layer, quantizer, errors, activations)
            if spill is not None:
                quantizer.leave_in(spill)
            weights.append(quantizer)
    _round_sums(graph, plan, target, {weight.tensor: weight for weight in weights}, activations)
    return assemble(graph, plan, [*weights, *activations.values()], biases)


def _round_sums(
    graph: Graph, plan: Plan, target: Target, weights: dict[str, Quantizer], activations: dict[str, Quantizer]
) -> None:
    """Tell the quantizers of what layers return in integers how the target rounds it."""
    for layer, operation in graph.operations.values():
        fmt, read = plan.scheme(layer.name).weight, activations.get(operation.input or "")
        made = activations.get(result_of(graph, operation))
        if fmt is None or read is None or made is None or operation.axis != layer.axis:
            continue
        halves = target.halves(layer, operation, fmt)
        if halves is not None:
            bounds = bounds_of(graph.node(made.tensor)) if made.tensor != operation.node else None
            bounds = (-math.inf, math.inf) if bounds is None else bounds
            made.sums = Sums(read, weights[layer.name], operation.channels, halves, bounds)


def assemble(graph: Graph, plan: Plan, quantizers: list[Quantizer], biases: dict[str, Tensor]) -> Graph:
    """A copy of the graph with these quantizers on their tensors and these biases (operator's node -> bias)."""
    simulated = dataclasses.replace(graph.copy(), plan=plan)
    module = simulated.module
    for name, bias in biases.items():
        simulated.set_bias(*graph.operations[name], bias)
    readers = {
        simulated.node(name): operation.data
        for name, (layer, operation) in graph.operations.items()
        if operation.input is not None and _dynamic(plan, layer)
    }
    reads_alone = find_target(plan.target).reads_alone
    for quantizer in quantizers:
        if quantizer.axis is None and reads_alone and not quantizer.format.dynamic:
            _insert_before_readers(simulated, quantizer)
        else:
            _insert(simulated, quantizer, readers if quantizer.format.dynamic else None)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return simulated


def _dynamic(plan: Plan, layer: Layer) -> bool:
    fmt = plan.scheme(layer.name).input
    return fmt is not None and fmt.dynamic


def _insert_before_readers(simulated: Graph, quantizer: Quantizer) -> None:
    """Put the quantizer before the layers that read its tensor, as it is or moved; what else reads it stays."""
    module, path = simulated.module, quantizer_path(quantizer.tensor, of_weight=False)
    module.add_submodule(path, quantizer)
    rounded: dict[fx.Node, fx.Node] = {}
    for name, (_, operation) in simulated.operations.items():
        if operation.input != quantizer.tensor:
            continue
        reader = simulated.node(name)
        read = argument(reader, operation.data)
        if read not in rounded:
            with module.graph.inserting_before(reader):
                rounded[read] = module.graph.call_module(path, (read,))
            rounded[read].meta = dict(read.meta)
        reader.update_arg(operation.data, rounded[read])


def _insert(simulated: Graph, quantizer: Quantizer, readers: dict[fx.Node, int] | None) -> None:
    """Put the quantizer behind its tensor: for these readers (node -> position of what it reads), or for all."""
    module, path = simulated.module, quantizer_path(quantizer.tensor, of_weight=quantizer.axis is not None)
    module.add_submodule(path, quantizer)
    last_placeholder = module.graph.find_nodes(op="placeholder")[-1]
    if quantizer.axis is None:
        nodes = [simulated.node(quantizer.tensor)]
    else:
        nodes = [node for node in module.graph.find_nodes(op="get_attr") if node.target == quantizer.tensor]
    for node in nodes:
        with module.graph.inserting_after(max(node, last_placeholder)):
            quantized = module.graph.call_module(path, (node,))
        quantized.meta = dict(node.meta)
        if readers is None:
            node.replace_all_uses_with(quantized, delete_user_cb=lambda user, own=quantized: user is not own)
        for reader, position in (readers or {}).items():
            if argument(reader, position) is node:
                reader.update_arg(position, quantized)
