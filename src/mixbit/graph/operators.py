"""The operators that are linear in a weight: where their arguments are, and how to run them with another weight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixbit.graph.graph import Graph, Operation, OperatorKind

_aten = torch.ops.aten

OPERATOR_KINDS = {
    _aten.linear: OperatorKind("linear", 0, 1, 2, 0),
    _aten.conv1d: OperatorKind("conv1d", 0, 1, 2, 0),
    _aten.conv2d: OperatorKind("conv2d", 0, 1, 2, 0),
    _aten.conv3d: OperatorKind("conv3d", 0, 1, 2, 0),
    _aten.conv_transpose1d: OperatorKind("conv_transpose1d", 0, 1, 2, 1),
    _aten.conv_transpose2d: OperatorKind("conv_transpose2d", 0, 1, 2, 1),
    _aten.conv_transpose3d: OperatorKind("conv_transpose3d", 0, 1, 2, 1),
    _aten.embedding: OperatorKind("embedding", None, 0, None, 0),
    _aten.addmm: OperatorKind("addmm", 1, 2, 0, 1),
    _aten.mm: OperatorKind("matmul", 0, 1, None, 1),
    _aten.matmul: OperatorKind("matmul", 0, 1, None, 1),
}
#: Functions of each number alone, as they stand behind layers.
NONLINEARITIES = frozenset({
    _aten.relu, _aten.relu6, _aten.leaky_relu, _aten.elu, _aten.selu, _aten.silu, _aten.gelu, _aten.mish,
    _aten.sigmoid, _aten.tanh, _aten.softplus, _aten.hardtanh, _aten.hardswish, _aten.hardsigmoid, _aten.clamp,
    _aten.clamp_min, _aten.clamp_max,
})  # fmt: skip
#: Operators on two tensors, number by number.
ARITHMETIC = frozenset({_aten.add, _aten.sub, _aten.mul, _aten.div})
#: Numbers that one run on several weights should return, where that can be chosen (4 MB of float32): more leave the
#: caches, and memory fresh from the system costs more than the arithmetic.
FEW_ELEMENTS = 2**20


def stack_weights(operation: Operation, weights: Sequence[Tensor]) -> Tensor:
    """Weights of one shape, for `run_stacked`: side by side along the output channels, or one by one with groups."""
    if operation.groups > 1:
        return torch.stack(tuple(weights))
    axis = 1 if operation.kind.name == "embedding" else operation.kind.output_axis
    return torch.cat(tuple(weights), 1 - axis if operation.transposed else axis)


def run_stacked(graph: Graph, operation: Operation, x: Tensor, stacked: Tensor, count: int) -> Tensor:
    """[count, *output]: the operator's outputs for that many weights, in one run where it has no groups; no bias."""
    if operation.groups > 1:  # with several channels a group, depthwise convolutions are many times slower
        return torch.stack([graph.run(operation, x, weight) for weight in stacked])
    output = graph.run(operation, x, stacked)
    if operation.channels_last:
        return output.unflatten(-1, (count, -1)).movedim(-2, 0)
    return output.unflatten(1, (count, -1)).movedim(1, 0)
