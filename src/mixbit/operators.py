"""The operators that are linear in a weight: where their arguments are, and how to run them with another weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mixbit.nodes import argument, is_parameter

_aten = torch.ops.aten


@dataclass(frozen=True)
class OperatorKind:
    """Where an operator keeps its arguments; `input` is None where it reads indices."""

    name: str
    input: int | None
    weight: int
    bias: int | None
    output_axis: int


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
#: Where every convolution, transposed or not, keeps its number of groups.
GROUPS = 6
#: Numbers that one run on several weights should return, where that can be chosen (4 MB of float32): more leave the
#: caches, and memory fresh from the system costs more than the arithmetic.
FEW_ELEMENTS = 2**20


@dataclass(frozen=True)
class Operation:
    """One operator that uses a layer's weight.

    Attributes:
        node: Name of its graph node.
        kind: Where its arguments are.
        input: Name of the node that made the tensor it reads, None for indices.
        macs: Multiply-accumulates of one sample.
        transposed: Whether the operator reads the parameter transposed.
    """

    node: str
    kind: OperatorKind
    input: str | None
    macs: int
    transposed: bool = False

    @property
    def channels_last(self) -> bool:
        """Whether its output keeps the channels in the last dimension; convolutions keep them in the second."""
        return not self.kind.name.startswith("conv")

    @property
    def axis(self) -> int:
        """Axis of the parameter, as it is stored, along which the operator's output channels lie."""
        return 1 - self.kind.output_axis if self.transposed else self.kind.output_axis

    @property
    def data(self) -> int:
        """Position of what it reads beside the weight: the input, or indices."""
        return 1 if self.kind.input is None else self.kind.input

    def along_channels(self, values: Tensor, num_dimensions: int) -> Tensor:
        """Values [channels], shaped to be added to the operator's output of that many dimensions."""
        behind = 0 if self.channels_last else num_dimensions - 2
        return values.reshape(-1, *[1] * behind)

    def groups(self, node: fx.Node) -> int:
        """Groups of a convolution; 1 for everything else."""
        return 1 if self.channels_last else argument(node, GROUPS, 1)


def run_operation(node: fx.Node, operation: Operation, x: Tensor, weight: Tensor) -> Tensor:
    """The operator's output for another input and weight (shaped like the parameter), without its bias."""
    kind = operation.kind
    if operation.transposed:
        weight = weight.t()
    if kind.name in ("addmm", "matmul"):
        return torch.matmul(x, weight)
    arguments = list(node.args)
    arguments[operation.data] = x
    arguments[kind.weight] = weight
    if kind.bias is not None and len(arguments) > kind.bias:
        arguments[kind.bias] = None
    run = node.target
    return run(*arguments, **node.kwargs)  # type: ignore[operator] an operator is callable


def stack_weights(node: fx.Node, operation: Operation, weights: Sequence[Tensor]) -> Tensor:
    """Weights of one shape, for `run_stacked`: side by side along the output channels, or one by one with groups."""
    if operation.groups(node) > 1:
        return torch.stack(tuple(weights))
    axis = 1 if operation.kind.name == "embedding" else operation.kind.output_axis
    return torch.cat(tuple(weights), 1 - axis if operation.transposed else axis)


def run_stacked(node: fx.Node, operation: Operation, x: Tensor, stacked: Tensor, count: int) -> Tensor:
    """[count, *output]: the operator's outputs for that many weights, in one run where it has no groups; no bias."""
    if operation.groups(node) > 1:  # with several channels a group, depthwise convolutions are many times slower
        return torch.stack([run_operation(node, operation, x, weight) for weight in stacked])
    output = run_operation(node, operation, x, stacked)
    if operation.channels_last:
        return output.unflatten(-1, (count, -1)).movedim(-2, 0)
    return output.unflatten(1, (count, -1)).movedim(1, 0)


def can_take_bias(node: fx.Node, operation: Operation) -> bool:
    """Whether a correction of the output's mean can be added to the operator's own bias."""
    if operation.kind.bias is None:
        return False
    bias = argument(node, operation.kind.bias)
    return bias is None or is_parameter(bias)
