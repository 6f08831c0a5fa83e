"""quantize(): from a float graph and a plan to the simulated graph, its weights rounded and its biases corrected."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixbit.batches import split_batch
from mixbit.calibrate import Calibration, calibrate, mean_output
from mixbit.errors import InvalidInput
from mixbit.estimate import Question
from mixbit.graph import Graph
from mixbit.layers import Layer, find_layers
from mixbit.masks import IMPORTANCE, choose_masks
from mixbit.nodes import argument, get_tensor, tensor_of
from mixbit.operators import can_take_bias
from mixbit.plan import Plan
from mixbit.progress import track
from mixbit.quantizer import Quantizer
from mixbit.reconstruction import Reconstruction
from mixbit.rounding import Rounding, find_rounding
from mixbit.rounding.nearest import nearest
from mixbit.scales import weight_quantizer
from mixbit.simulate import activation_formats, assemble, check_plan
from mixbit.target import find_target
from mixbit.task import Task


def quantize(
    graph: Graph,
    plan: Plan,
    batches: Iterable[Any] | Calibration,
    *,
    rounding: str | Rounding = "nearest",
    bias_correction: bool = True,
    task: Task | None = None,
    seed: int = 0,
    importance: str = IMPORTANCE,
) -> Graph:
    """The graph with the plan's quantizers, simulated in float: a module that evaluates and trains.

    Activations: one quantizer per tensor, shared by everyone who reads it, with a static range. Bias correction
    subtracts from each operator's bias the mean error of its output that the nearest rounding of its weight makes on
    the calibration data. Where weight and input are integers, a bias is a whole multiple of the product of their
    scales, as runtimes hold it.

    Args:
        graph: A captured graph in float; it is left as it is.
        plan: A scheme for every layer, for the target it names.
        batches: Calibration data, labels ignored; or, for the nearest rounding, a calibration of this graph, which
            holds the masks of sparse schemes too.
        rounding: How weights become integers: a name in ROUNDINGS, with options as in `brecq:iterations=500`, or a
            function from a `Reconstruction` to a graph.
        bias_correction: Whether to correct biases.
        task: What the outputs mean, for roundings that ask and for the importance of weights that may become zero;
            classification where None.
        seed: Of every draw.
        importance: What decides which weights a sparse scheme makes zero: a name in `mixbit.masks.IMPORTANCES`.

    Raises:
        InvalidInput: the plan is of another model, offers what the target does not run, the data does not fit, or the
            rounding is unknown.
    """
    name, method = find_rounding(rounding)
    layers = check_plan(graph, plan)
    plan = _without_stale_claims(plan, layers)
    inputs, task = None, task or Task.classification()
    if not isinstance(batches, Calibration):
        pairs = [split_batch(batch, len(graph.example.args)) for batch in batches]
        inputs = [leaves for leaves, _ in pairs]
        batches = calibrate(graph, layers, inputs)
        schemes = tuple(dict.fromkeys(plan.scheme(layer.name) for layer in layers))
        sparse = tuple(layer for layer in layers if (fmt := plan.scheme(layer.name).weight) and fmt.sparsity)
        choose_masks(Question(graph, sparse, schemes, batches, pairs, task, seed), importance)
    elif method is not nearest:
        raise InvalidInput(f"rounding {name}: a calibration alone does not tell it enough; give the batches")
    simulated = simulate(graph, plan, batches, bias_correction=bias_correction)
    if inputs is None:
        return simulated
    return method(Reconstruction(graph, simulated, inputs, task, seed))


def simulate(graph: Graph, plan: Plan, calibration: Calibration, *, bias_correction: bool = True) -> Graph:
    """The graph with the plan's quantizers, every weight to be rounded to the nearest integer, biases corrected."""
    layers = find_layers(graph)
    calibration.check_layers(layers)
    formats = activation_formats(graph, layers, plan, find_target(plan.target))
    activations = {
        name: calibration.quantizer(name, fmt, graph.device)
        for name, fmt in formats.items()
        if calibration.histograms[name].finite  # a mask of -inf, which no integer holds, stays in float
    }
    weights, biases = [], {}
    for layer in track(layers, "round weights"):
        fmt = plan.scheme(layer.name).weight
        if fmt is not None:
            weights.append(weight_quantizer(graph, layer, fmt, calibration))
            biases |= _biases(graph, layer, weights[-1], calibration if bias_correction else None, activations)
    return assemble(graph, plan, [*weights, *activations.values()], biases)


def _without_stale_claims(plan: Plan, layers: tuple[Layer, ...]) -> Plan:
    """The plan without what was predicted of it, where its schemes were edited since: its bytes are others now."""
    weight_bytes = find_target(plan.target).weight_bytes
    held = sum(weight_bytes(layer.shape, layer.axis, plan.scheme(layer.name).weight) for layer in layers)
    if plan.predicted.get("weight_bytes", held) == held:
        return plan
    return plan.model_copy(update={"predicted": {}, "made_by": f"{plan.made_by}, edited"})


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
        if read is not None and quantizer.format.granularity != "group":
            scales = read.scale * quantizer.scale
            step = scales.repeat(bias.shape[-1] // len(scales))  # groups of a transposed convolution share theirs
            bias = torch.round(bias / step) * step
        biases[operation.node] = bias
    return biases
