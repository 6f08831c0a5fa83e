"""Operators in the forms that every target takes: the same numbers, whatever the layout of tensors in memory."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mixbit.graph.graph import inserted

_aten = torch.ops.aten
#: Dimensions of tensors in attention: samples, heads, positions, values.
DIMENSIONS = 4


def reshape_views(graph: fx.Graph) -> None:
    """Write every `view` as `reshape`, in place.

    A view fails where its input lies in memory otherwise than when it was traced, as what attention returns does where
    another kernel computes it.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.view.default):
        node.target = _aten.reshape.default


def join_what_there_is(graph: fx.Graph) -> None:
    """Leave tensors [0], which torch joins with tensors of any dimensions, out of every `cat`, in place.

    A cache of keys and values begins with such a tensor, and OpenVINO refuses it.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.cat.default):
        tensors: Any = node.args[0]
        parts = [part for part in tensors if tuple(part.meta["val"].shape) != (0,)]
        if not parts or len(parts) == len(tensors) or parts[0].meta["val"].dtype != node.meta["val"].dtype:
            continue
        if len(parts) == 1:
            node.replace_all_uses_with(parts[0])
            graph.erase_node(node)
        else:
            node.args = (parts, *node.args[1:])


def multiply_sizes(graph: fx.Graph) -> None:
    """Write every count of a tensor's numbers as the product of its sizes, in place: converters know no other."""
    for node in graph.find_nodes(op="call_function", target=_aten.sym_numel.default):
        tensor: Any = node.args[0]
        sizes = tensor.meta["val"].shape
        known = math.prod(size for size in sizes if isinstance(size, int))
        free = [
            inserted(node, _aten.sym_size.int, tensor, axis)
            for axis, size in enumerate(sizes)
            if not isinstance(size, int)
        ]
        count: Any = free[0] if free else known
        for size in [*free[1:], *([known] if free and known != 1 else [])]:
            count = inserted(node, operator.mul, count, size)
        node.replace_all_uses_with(count)
        graph.erase_node(node)


class InFourDimensions(TorchFunctionMode):
    """While it is entered, all attention is of [N, heads, T, size]: see `attend`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the function returns."""
        run = attend if func is functional.scaled_dot_product_attention else func
        return run(*args, **(kwargs or {}))


def attend(  # noqa: PLR0917 the arguments of torch's function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` of any tensors by one of [N, heads, T, size], as runtimes take no others.

    Without heads, [N, T, size], there is one. Further dimensions in front belong to N. With `enable_gqa` each head of
    keys and values is repeated for its group of queries.
    """
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if enable_gqa and query.ndim >= DIMENSIONS:
        key, value = (_repeated(each, query.shape[-3]) for each in (key, value))
    if query.ndim == DIMENSIONS or {query.ndim, key.ndim, value.ndim} != {query.ndim} or query.ndim < DIMENSIONS - 1:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    front = query.shape[:-3]
    if query.ndim < DIMENSIONS:
        mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == query.ndim else attn_mask
        query, key, value = (each.unsqueeze(1) for each in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value, mask, **options).squeeze(1)
    mask = attn_mask
    if mask is not None and mask.ndim > DIMENSIONS - 1:
        mask = mask.expand(*front, *mask.shape[-3:]).flatten(0, -4)
    query, key, value = (each.flatten(0, -4) for each in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, mask, **options).unflatten(0, front)


def _repeated(heads: Tensor, count: int) -> Tensor:
    """The tensor with each of its heads as often in a row as makes `count`."""
    times = count // heads.shape[-3]
    return heads.unsqueeze(-3).expand(*heads.shape[:-2], times, *heads.shape[-2:]).flatten(-4, -3)
