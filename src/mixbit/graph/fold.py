"""Folding batch norms into the convolution or linear operator before them."""

import operator

import torch
from torch import Tensor, fx, nn

from mixbit.graph.graph import GROUPS, argument, is_parameter, packet, split_name, tensor_of

_aten = torch.ops.aten
_TRAINABLE = _aten.batch_norm.default
_BATCH_NORMS = (_aten._native_batch_norm_legit_no_training.default, _TRAINABLE)
_OUTPUT_AXIS = dict.fromkeys((_aten.linear, _aten.conv1d, _aten.conv2d, _aten.conv3d), 0)
_OUTPUT_AXIS |= dict.fromkeys((_aten.conv_transpose1d, _aten.conv_transpose2d, _aten.conv_transpose3d), 1)


def scaled(
    weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, Tensor, Tensor, Tensor], epsilon: float, axis: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of `batch_norm(op(x, weight) + bias)` as one op: w' = w g / s, b' = (b - mean) g / s + beta.

    s = sqrt(variance + epsilon); `norm` is the norm's own (g, beta, mean, variance), each [channels].
    """
    gamma, beta, mean, variance = norm
    factor = gamma / torch.sqrt(variance + epsilon)
    shape = [1] * weight.ndim
    shape[axis] = -1
    shifted = -mean if bias is None else bias - mean
    return weight * factor.reshape(shape), shifted * factor + beta


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold every batch norm that is the only reader of an operator whose weight no other operator uses."""
    for node in list(module.graph.nodes):
        if node.target in _BATCH_NORMS and _foldable(node):
            _fold(module, node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def running_statistics(node: fx.Node) -> tuple[str, str] | None:
    """Full names of mean and variance of a batch norm that normalises by its own; None for other nodes."""
    if node.target not in _BATCH_NORMS or (node.target is _TRAINABLE and argument(node, 5)):
        return None
    mean, variance = argument(node, 3), argument(node, 4)
    return (str(mean.target), str(variance.target)) if is_parameter(mean) and is_parameter(variance) else None


def _foldable(norm: fx.Node) -> bool:
    before = norm.args[0]
    if not isinstance(before, fx.Node) or len(before.users) != 1 or packet(before) not in _OUTPUT_AXIS:
        return False
    if running_statistics(norm) is None:
        return False
    if not all(node is None or is_parameter(node) for node in norm.args[1:3]):
        return False
    if _OUTPUT_AXIS[packet(before)] == 1 and argument(before, GROUPS, 1) != 1:
        return False  # groups share the output axis
    if packet(before) is _aten.linear and before.meta["val"].ndim != 2:
        return False  # the norm's channels are not the last dimension
    weight, bias = before.args[1], argument(before, 2)
    return is_parameter(weight) and num_uses(weight) == 1 and (bias is None or is_parameter(bias))


def num_uses(parameter: object) -> int:
    """How many operators read the parameter, through whichever node."""
    if not isinstance(parameter, fx.Node):
        return 0
    same = parameter.graph.find_nodes(op="get_attr")
    return sum(len(node.users) for node in same if node.target == parameter.target)


def _fold(module: fx.GraphModule, norm: fx.Node) -> None:
    before: fx.Node = argument(norm, 0)
    weight, bias = argument(before, 1), argument(before, 2)
    mean, variance = (tensor_of(module, argument(norm, position)).detach() for position in (3, 4))
    gamma, beta = argument(norm, 1), argument(norm, 2)
    factors = (
        torch.ones_like(mean) if gamma is None else tensor_of(module, gamma).detach(),
        torch.zeros_like(mean) if beta is None else tensor_of(module, beta).detach(),
        mean,
        variance,
    )
    new_weight, new_bias = scaled(
        tensor_of(module, weight).detach(),
        None if bias is None else tensor_of(module, bias).detach(),
        factors,
        argument(norm, 7 if norm.target is _TRAINABLE else 6),
        _OUTPUT_AXIS[packet(before)],
    )
    holder, attribute = split_name(module, str(weight.target))
    setattr(holder, attribute, nn.Parameter(new_weight))
    set_bias(module, before, new_bias, str(weight.target))
    output = norm
    if norm.target is not _TRAINABLE:
        output = next(user for user in norm.users if user.target is operator.getitem and user.args[1] == 0)
    output.replace_all_uses_with(before)


def set_bias(module: fx.GraphModule, operation: fx.Node, bias: Tensor, weight_name: str, position: int = 2) -> None:
    """Give one operator a bias of its own, named after its weight: `conv1.weight` -> `conv1.bias`.

    A name that another tensor of the module holds already gets a number behind it.
    """
    holder, attribute = split_name(module, weight_name)
    prefix = weight_name.removesuffix(attribute)
    wanted = attribute.replace("weight", "bias") if "weight" in attribute else f"{attribute}_bias"
    previous = argument(operation, position)
    name, number = wanted, 0
    while hasattr(holder, name) and not _is_own(previous, prefix + name):
        number += 1
        name = f"{wanted}_{number}"
    setattr(holder, name, nn.Parameter(bias))
    with module.graph.inserting_before(operation):
        node = module.graph.get_attr(prefix + name)
    padded = [*operation.args, *[None] * (position + 1 - len(operation.args))]
    padded[position] = node
    operation.args = tuple(padded)


def _is_own(previous: object, name: str) -> bool:
    return isinstance(previous, fx.Node) and previous.target == name and num_uses(previous) == 1
