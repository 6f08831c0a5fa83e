"""Biases of rounded layers: corrected by the mean error of the output, in the whole steps that runtimes hold."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import Inputs, InvalidInput
from mixbit.graph import Graph, Layer, Operation, Walker, in_order, seen
from mixbit.quantization.affine import bias_step, least_scale
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

    The float graph's bias, less the [channels] mean error of the operator's output where there is one. Where weight and
    input are integers, it is a whole multiple of the product of their scales.
    """
    biases = {}
    for operation in layer.operations:
        previous, error = graph.bias(operation), mean_errors.get(operation.node)
        if operation.takes_bias and (previous is not None or error is not None):
            bias = torch.zeros((), device=graph.device) if previous is None else graph.parameter(previous)
            bias = bias if error is None else bias - error
            biases[operation.node] = _in_steps(bias, layer, operation, {layer.name: quantizer}, activations)
    return biases


def _in_steps(
    bias: Tensor, layer: Layer, operation: Operation, weights: Mapping[str, Quantizer], reads: Mapping[str, Quantizer]
) -> Tensor:
    """The bias in whole multiples of input scale x weight scale, as runtimes hold it in 32 bits; in float elsewhere."""
    pair = _integers(layer, operation, weights, reads)
    if pair is None:
        return bias
    weight, read = pair
    step = bias_step(read.scale, weight.scale, bias.shape[-1])
    return torch.round(bias / step) * step


def _integers(
    layer: Layer, operation: Operation, weights: Mapping[str, Quantizer], reads: Mapping[str, Quantizer]
) -> tuple[Quantizer, Quantizer] | None:
    """Quantizers of weight and input where runtimes hold the operator's bias in whole steps; else None.

    They do not where weight or input are in float, the input is ranged at run time, or scales differ within a channel.
    """
    weight, read = weights.get(layer.name), reads.get(operation.input or "")
    if weight is None or read is None or operation.axis != layer.axis:  # else scales lie along what is summed
        return None
    in_float = read.format.dynamic or weight.format.granularity == "group" or weight.format.floating
    return None if in_float else (weight, read)


def biases_of(simulated: Graph) -> Iterator[tuple[Layer, Operation, str]]:
    """Layer, operation and full name of the bias, for every operator of a layer that has one."""
    for layer, operation in simulated.operations.values():
        name = simulated.bias(operation)
        if name is not None:
            yield layer, operation, name


@torch.no_grad()
def settle_biases(simulated: Graph, names: Collection[str] | None = None) -> None:
    """Round the biases of these names, or all, to whole steps, in place."""
    weights, reads = weight_quantizers(simulated), activation_quantizers(simulated)
    for layer, operation, name in biases_of(simulated):
        if names is None or name in names:
            bias = simulated.parameter(name)
            bias.copy_(_in_steps(bias, layer, operation, weights, reads))


@torch.no_grad()
def make_room_for_biases(simulated: Graph) -> None:
    """Raise, in place, the scales of weights under which a bias would not fit into 32 bits."""
    weights, reads = weight_quantizers(simulated), activation_quantizers(simulated)
    for layer, operation, name in biases_of(simulated):
        pair = _integers(layer, operation, weights, reads)
        if pair is not None:
            scale, read = pair[0].scale, pair[1].scale
            least = least_scale(simulated.parameter(name), read, layer.shape[layer.axis])
            scale.copy_(torch.maximum(scale, least if len(scale) > 1 else least.max()))


#: Name -> what it does.
BIAS_CORRECTIONS = {
    "at_once": "Takes off each output's mean what the rounding of its own weight adds, on inputs of the float network.",
    "sequential": "Layer after layer, on inputs of the quantized layers before: the errors of activations count too.",
    "off": "Biases stay as they are, up to rounding.",
}


@torch.no_grad()
def corrected(graph: Graph, simulated: Graph, batches: Sequence[Inputs]) -> Graph:
    """The simulation with biases that take the mean error off every operator's output, channel by channel.

    b' = b - (E[y'] - E[y]), with y' the operator's output in the simulation, the operators before it already corrected,
    and y that in the float graph, over all samples and positions. So the errors of inputs count as well as those of
    weights. Where weight and input are integers, b' is a whole multiple of the product of their scales, and an error of
    up to half of it stays. (Nagel et al. 2019, section 4.2 and appendix D, arXiv 1906.04721.)

    The data passes once through the float graph and once through the simulation, whose operators run twice: before and
    after their correction. Raises InvalidInput where the simulation is of another graph.
    """
    result = simulated.copy()
    operations = {name: pair for name, pair in result.operations.items() if pair[1].takes_bias}
    if not operations.keys() <= {node.name for node in graph.module.graph.nodes}:
        raise InvalidInput("correction: the simulation is of another graph")
    weights, activations = weight_quantizers(result), activation_quantizers(result)
    wanted, means = ({name: _Mean(operation) for name, (_, operation) in operations.items()} for _ in range(2))
    watched = Walker(graph.module, {name: seen(mean.see) for name, mean in wanted.items()})
    for inputs in batches:
        watched.returned(graph.leaves(inputs))

    def see(_: int, node: fx.Node, run: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
        means[node.name].see(run(*args), args)

    for names in in_order(result, operations, {name: [name] for name in operations}, batches, see, "correct biases"):
        for name in names:
            (layer, operation), mean, old = operations[name], means[name], wanted[name]
            error = mean.total / mean.count - old.total / old.count
            if error.any():
                previous = result.bias(operation)
                bias = torch.zeros_like(error) if previous is None else result.parameter(previous).double()
                bias = (bias - error).to(result.parameter(layer.name).dtype)
                bias = _in_steps(bias, layer, operation, weights, activations)
                result.set_bias(layer, operation, bias)
    result.module.graph.eliminate_dead_code()
    result.module.graph.lint()
    result.module.recompile()
    return result


class _Mean:
    """[channels] `total / count`: the mean of an operator's output over all samples and positions, in float64."""

    def __init__(self, operation: Operation) -> None:
        self.operation, self.total, self.count = operation, torch.zeros((), dtype=torch.float64), 0

    def see(self, value: Tensor, _: object) -> None:
        """Add what the operator returns for one batch."""
        rows = value.movedim(self.operation.channels, -1).flatten(0, -2).double()
        self.total, self.count = self.total.to(rows) + rows.sum(0), self.count + len(rows)
