"""What rounding adds to the output of one operator, and tables of costs that each layer has for itself."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mixbit.core import Format
from mixbit.graph.graph import Layer, Operation
from mixbit.metrics._input import MetricInput
from mixbit.quantization.quantizer import Quantizer


def from_weights(inputs: MetricInput, layer: Layer, operation: Operation, x: Tensor) -> Iterator[Tensor]:
    """op(x, Q(W) - W), without the bias, in each of the weight formats."""
    return (inputs.graph.run(operation, x, error) for error in inputs.weight_errors(layer))


def from_inputs(
    inputs: MetricInput, layer: Layer, operation: Operation, x: Tensor, quantizers: Mapping[str, list[Quantizer]]
) -> Iterator[Tensor]:
    """op(Q(x) - x, W), without the bias, in each of the input formats; nothing where the operator reads indices."""
    if operation.input is None:
        return
    weight = inputs.graph.parameter(layer.name).detach()
    for quantizer in quantizers[operation.input]:
        yield inputs.graph.run(operation, quantizer(x) - x, weight)


def no_costs(inputs: MetricInput, formats: Sequence[Format], *shape: int) -> dict[str, Tensor]:
    """Layer -> zeros [*shape, formats] in float64, to add to."""
    return {layer.name: torch.zeros(*shape, len(formats), dtype=torch.float64) for layer in inputs.layers}


def layer_entries(inputs: MetricInput, weights: Mapping[str, Tensor], reads: Mapping[str, Tensor]) -> Tensor:
    """[..., L, C] float64 from what each layer costs in each weight format and in each input format, [..., formats].

    Unlike in `MetricInput.entries`, inputs go by layers: where several read one tensor, each pays for its own output.
    """
    table = inputs.entries(weights, {})
    for row, layer in enumerate(inputs.layers):
        for column, scheme in enumerate(inputs.schemes):
            if scheme.input is not None:
                table[..., row, column] += reads[layer.name][..., inputs.input_formats.index(scheme.input)]
    return table
