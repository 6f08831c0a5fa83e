"""Biases of rounded layers: corrected by the mean error of the output, in steps that integers hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixbit.affine import bias_step
from mixbit.graph import Graph
from mixbit.layers import Layer
from mixbit.nodes import argument, tensor_of
from mixbit.operators import can_take_bias
from mixbit.quantizer import Quantizer


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
        read = None if operation.input is None else activations.get(operation.input)
        if read is not None and quantizer.format.granularity != "group":
            step = bias_step(read.scale, quantizer.scale, bias.shape[-1])
            bias = torch.round(bias / step) * step
        biases[operation.node] = bias
    return biases
