"""Biases of rounded layers: corrected by the mean error of the output, in the whole steps that runtimes hold."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import Format, InvalidInput
from mixbit.core.batches import Inputs
from mixbit.graph.graph import Graph, Layer, Operation, argument, set_bias, tensor_of
from mixbit.graph.walk import Walker, in_order, seen
from mixbit.quantization.affine import LARGEST_BIAS, bias_step
from mixbit.quantization.quantizer import Quantizer, activation_quantizers, weight_quantizers


@torch.no_grad()
def corrected_biases(
    graph: Graph,
    layer: Layer,
    quantizer: Quantizer,
    mean_errors: Mapping[str, Tensor],
    activations: Mapping[str, Quantizer],
) -> dict[str, Tensor]:
    """Operator's node -> bias, for every operator of the layer that has or gets one.

    Args:
        graph: The float graph, with the biases to start from.
        layer: One of its layers.
        quantizer: Of the layer's weight.
        mean_errors: Operator's node -> [channels] mean error of its output, which its bias takes off; operators that
            are not named keep the bias that they have.
        activations: Tensor -> its quantizer. Where weight and input are integers, a bias is a whole multiple of the
            product of their scales.
    """
    biases = {}
    for operation in layer.operations:
        node, error = graph.node(operation.node), mean_errors.get(operation.node)
        previous = argument(node, operation.kind.bias)
        if not operation.takes_bias or (previous is None and error is None):
            continue
        bias = torch.zeros((), device=graph.device) if previous is None else tensor_of(graph.module, previous)
        if error is not None:
            bias = bias - error
        scaled = quantizer if operation.axis == layer.axis else None  # else scales lie along what is summed
        biases[operation.node] = in_steps(bias, scaled, activations.get(operation.input or ""))
    return biases


def in_steps(bias: Tensor, weight: Quantizer | None, read: Quantizer | None) -> Tensor:
    """The bias in whole multiples of input scale x weight scale, as runtimes hold it in 32 bits.

    Unchanged, in float, where weight or input are in float, the input is ranged at run time, or scales differ within a
    channel.
    """
    if weight is None or read is None or not _have_steps(weight.format, read.format):
        return bias
    step = bias_step(read.scale, weight.scale, bias.shape[-1])
    return torch.round(bias / step) * step


def biases_of(simulated: Graph) -> Iterator[tuple[Layer, Operation, str]]:
    """Layer, operation and full name of the bias, for every operator of a layer that has one."""
    for layer in simulated.layers:
        for operation in layer.operations:
            name = simulated.bias(operation)
            if name is not None:
                yield layer, operation, name


@torch.no_grad()
def settle_biases(simulated: Graph, names: Collection[str] | None = None) -> None:
    """Round the biases of these names, or all, to whole steps, in place."""
    for name, _, weight, read in _biases_in_steps(simulated):
        if names is None or name in names:
            bias = simulated.parameter(name)
            bias.copy_(in_steps(bias, weight, read))


@torch.no_grad()
def make_room_for_biases(simulated: Graph) -> None:
    """Raise, in place, the scales of weights under which a bias would not fit into 32 bits."""
    for name, layer, weight, read in _biases_in_steps(simulated):
        least = simulated.parameter(name).abs() / (read.scale * LARGEST_BIAS)
        least = least.reshape(-1, layer.shape[layer.axis]).amax(0)
        weight.scale.copy_(torch.maximum(weight.scale, least if len(weight.scale) > 1 else least.max()))


def _biases_in_steps(simulated: Graph) -> Iterator[tuple[str, Layer, Quantizer, Quantizer]]:
    """Full name, layer, and quantizers of weight and input, for every bias that runtimes hold in whole steps."""
    weights, reads = weight_quantizers(simulated), activation_quantizers(simulated)
    for layer, operation, name in biases_of(simulated):
        weight = weights.get(layer.name) if operation.axis == layer.axis else None
        read = reads.get(operation.input or "")
        if weight is not None and read is not None and _have_steps(weight.format, read.format):
            yield name, layer, weight, read


def _have_steps(weight: Format, read: Format) -> bool:
    return not (read.dynamic or weight.granularity == "group" or weight.floating)


#: Name -> what it does.
BIAS_CORRECTIONS = {
    "at_once": "Takes off each output's mean what the rounding of its own weight adds, on inputs of the float network.",
    "sequential": "Layer after layer, on inputs of the quantized layers before: the errors of activations count too.",
    "off": "Biases stay as they are, up to rounding.",
}


@torch.no_grad()
def corrected(graph: Graph, simulated: Graph, batches: Iterable[Inputs]) -> Graph:
    """The simulation with biases that take the mean error off every operator's output, channel by channel.

    b' = b - (E[y'] - E[y]), with y' the operator's output in the simulation, the operators before it corrected already,
    and y that in the float graph, over all samples and positions. So the errors of inputs count as well as those of
    weights. Where weight and input are integers, b' is a whole multiple of the product of their scales, and an error of
    up to half of it stays. (Nagel et al. 2019, section 4.2 and appendix D, arXiv 1906.04721.)

    The data is gone through once for the float graph and once for the simulation, whose operators run twice: before
    and after their correction.

    Args:
        graph: The captured graph in float.
        simulated: What `quantize` made of it.
        batches: Inputs without labels; held in memory.

    Returns:
        A new graph; the two graphs given are left as they are.

    Raises:
        InvalidInput: the simulation is not of this graph, or there is no batch, or one that does not fit.
    """
    if simulated.plan is None or graph.plan is not None:
        raise InvalidInput("correction: give the captured graph first, then what quantize() made of it")
    batches = list(batches)
    batches_leaves = [graph.leaves(inputs, f"batch {number}") for number, inputs in enumerate(batches)]
    if not batches_leaves:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    operations = _operations(simulated)
    if not operations.keys() <= {node.name for node in graph.module.graph.nodes}:
        raise InvalidInput("correction: the simulation is of another graph")
    result = simulated.copy()
    weights, activations = weight_quantizers(result), activation_quantizers(result)
    wanted, means = _Means(operations), _Means(operations)
    watched = Walker(graph.module, {name: seen(partial(wanted.see, name)) for name in operations})
    for leaves in batches_leaves:
        watched.returned(leaves)
    names = list(operations)

    def see(_: int, node: fx.Node, run: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
        means.see(node.name, run(*args), args)

    for turns in in_order(result, operations, [[name] for name in names], batches, see, "correct biases"):
        for name in (names[turn] for turn in turns):
            layer, operation = operations[name]
            weight = weights.get(layer.name) if operation.axis == layer.axis else None
            read = activations.get(operation.input or "")
            _shift_bias(result, layer, operation, means.mean(name) - wanted.mean(name), weight, read)
    result.module.graph.eliminate_dead_code()
    result.module.graph.lint()
    result.module.recompile()
    return result


def _operations(graph: Graph) -> dict[str, tuple[Layer, Operation]]:
    """Operator's node -> its layer and itself, for those whose bias can be changed."""
    return {
        operation.node: (layer, operation)
        for layer in graph.layers
        for operation in layer.operations
        if operation.takes_bias
    }


class _Means:
    """Mean outputs of operators by channel, over all samples and positions, in float64."""

    def __init__(self, operations: Mapping[str, tuple[Layer, Operation]]) -> None:
        self.operations = operations
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def see(self, name: str, value: Tensor, _: tuple[Any, ...]) -> None:
        """Add what an operator returns for one batch."""
        operation = self.operations[name][1]
        rows = value.movedim(-1 if operation.channels_last else 1, -1).flatten(0, -2).double()
        total, count = self.sums.get(name, (torch.zeros_like(rows[0]), 0))
        self.sums[name] = total + rows.sum(0), count + len(rows)

    def mean(self, name: str) -> Tensor:
        """[channels]."""
        total, count = self.sums[name]
        return total / count


def _shift_bias(
    graph: Graph, layer: Layer, operation: Operation, error: Tensor, weight: Quantizer | None, read: Quantizer | None
) -> None:
    """Subtract the error [channels] from the operator's bias, in place."""
    position = operation.kind.bias
    if position is None or not error.any():
        return
    node = graph.node(operation.node)
    previous = argument(node, position)
    bias = torch.zeros_like(error) if previous is None else tensor_of(graph.module, previous).detach().double()
    bias = (bias - error).to(graph.parameter(layer.name).dtype)
    set_bias(graph.module, node, in_steps(bias, weight, read), layer.name, position)
