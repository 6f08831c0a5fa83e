"""What rounding adds to the output of one operator, and tables of costs that each layer has for itself."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mixbit.core import Format
from mixbit.graph.graph import Layer, Operation
from mixbit.graph.nodes import get_tensor
from mixbit.graph.operators import run_operation
from mixbit.metrics._input import Question
from mixbit.quantization.quantizer import Quantizer


def from_weights(question: Question, layer: Layer, operation: Operation, x: Tensor) -> Iterator[Tensor]:
    """op(x, Q(W) - W), without the bias, in each of the weight formats."""
    node = question.graph.node(operation.node)
    return (run_operation(node, operation, x, error) for error in question.weight_errors(layer))


def from_inputs(
    question: Question, layer: Layer, operation: Operation, x: Tensor, quantizers: Mapping[str, list[Quantizer]]
) -> Iterator[Tensor]:
    """op(Q(x) - x, W), without the bias, in each of the input formats; nothing where the operator reads indices."""
    if operation.input is None:
        return
    node = question.graph.node(operation.node)
    weight = get_tensor(question.graph.module, layer.name).detach()
    for quantizer in quantizers[operation.input]:
        yield run_operation(node, operation, quantizer(x) - x, weight)


def no_costs(question: Question, formats: Sequence[Format], *shape: int) -> dict[str, Tensor]:
    """Layer -> zeros [*shape, formats] in float64, to add to."""
    return {layer.name: torch.zeros(*shape, len(formats), dtype=torch.float64) for layer in question.layers}


def layer_entries(question: Question, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """[..., L, C] float64 from what each layer costs in each weight format and in each input format, [..., formats].

    Unlike in `Question.entries`, inputs go by layers: where several read one tensor, each pays for its own output.
    """
    table = question.entries(weights, {})
    for row, layer in enumerate(question.layers):
        for column, scheme in enumerate(question.schemes):
            if scheme.input is not None:
                table[..., row, column] += inputs[layer.name][..., question.input_formats.index(scheme.input)]
    return table
