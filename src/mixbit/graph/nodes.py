"""Reading and writing the nodes of a graph: arguments, operators, and the tensors they name."""

from typing import Any

from torch import Tensor, fx, nn


def argument(node: fx.Node, position: int | None, default: Any = None) -> Any:
    """The positional argument of a node; the default where it takes none there."""
    return node.args[position] if position is not None and position < len(node.args) else default


def packet(node: fx.Node) -> Any:
    """The operator of a node whatever its overload, as `torch.ops.aten.conv2d`; None where it calls no operator."""
    return getattr(node.target, "overloadpacket", None)


def is_parameter(node: object) -> bool:
    """Whether the node reads a parameter or buffer as it is."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def split_name(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the parameter, buffer or module of that full name, and its name there."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that full name."""
    holder, attribute = split_name(module, name)
    return getattr(holder, attribute)


def tensor_of(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that the node reads."""
    return get_tensor(module, str(node.target))
