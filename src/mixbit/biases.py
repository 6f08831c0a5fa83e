"""Biases of rounded layers: corrected by the mean error of the output, in the whole steps that runtimes hold."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from mixbit.affine import bias_step
from mixbit.graph import Graph
from mixbit.layers import Layer, find_layers
from mixbit.nodes import argument, get_tensor, is_parameter, tensor_of
from mixbit.operators import Operation, can_take_bias
from mixbit.quantizer import Quantizer
from mixbit.scales import LARGEST_BIAS
from mixbit.scheme import Format
from mixbit.simulate import quantizers_of


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
        if not can_take_bias(node, operation) or (previous is None and error is None):
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
    for layer in find_layers(simulated):
        for operation in layer.operations:
            bias = argument(simulated.node(operation.node), operation.kind.bias)
            if is_parameter(bias):
                yield layer, operation, str(bias.target)


@torch.no_grad()
def settle_biases(simulated: Graph, names: Collection[str] | None = None) -> None:
    """Round the biases of these names, or all, to whole steps, in place."""
    for name, _, weight, read in _biases_in_steps(simulated):
        if names is None or name in names:
            bias = get_tensor(simulated.module, name)
            bias.copy_(in_steps(bias, weight, read))


@torch.no_grad()
def make_room_for_biases(simulated: Graph) -> None:
    """Raise, in place, the scales of weights under which a bias would not fit into 32 bits."""
    for name, layer, weight, read in _biases_in_steps(simulated):
        least = get_tensor(simulated.module, name).abs() / (read.scale * LARGEST_BIAS)
        least = least.reshape(-1, layer.shape[layer.axis]).amax(0)
        weight.scale.copy_(torch.maximum(weight.scale, least if len(weight.scale) > 1 else least.max()))


def _biases_in_steps(simulated: Graph) -> Iterator[tuple[str, Layer, Quantizer, Quantizer]]:
    """Full name, layer, and quantizers of weight and input, for every bias that runtimes hold in whole steps."""
    weights = {one.tensor: one for one in quantizers_of(simulated) if one.axis is not None}
    reads = {one.tensor: one for one in quantizers_of(simulated) if one.axis is None}
    for layer, operation, name in biases_of(simulated) if weights else ():
        weight = weights.get(layer.name) if operation.axis == layer.axis else None
        read = reads.get(operation.input or "")
        if weight is not None and read is not None and _have_steps(weight.format, read.format):
            yield name, layer, weight, read


def _have_steps(weight: Format, read: Format) -> bool:
    return not (read.dynamic or weight.granularity == "group" or weight.floating)
