"""Biases of rounded layers: corrected by the mean error of the output, in the whole steps that runtimes hold."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mixbit.affine import bias_step
from mixbit.graph import Graph
from mixbit.layers import Layer, find_layers
from mixbit.nodes import argument, get_tensor, is_parameter, tensor_of
from mixbit.operators import Operation, can_take_bias
from mixbit.quantizer import Quantizer
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
        biases[operation.node] = in_steps(bias, quantizer, activations.get(operation.input or ""))
    return biases


def in_steps(bias: Tensor, weight: Quantizer | None, read: Quantizer | None) -> Tensor:
    """The bias in whole multiples of input scale x weight scale, as runtimes hold it in 32 bits.

    Unchanged, in float, where weight or input are in float, the input is ranged at run time, or scales differ within a
    channel.
    """
    if read is None or read.format.dynamic:
        return bias
    if weight is None or weight.format.granularity == "group" or weight.format.floating:
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
def settle_biases(simulated: Graph, names: Sequence[str]) -> None:
    """Round the biases of these names to whole steps, in place."""
    weights = {one.tensor: one for one in quantizers_of(simulated) if one.axis is not None}
    activations = {one.tensor: one for one in quantizers_of(simulated) if one.axis is None}
    for layer, operation, name in biases_of(simulated):
        if name in names and layer.name in weights:
            bias = get_tensor(simulated.module, name)
            bias.copy_(in_steps(bias, weights[layer.name], activations.get(operation.input or "")))
