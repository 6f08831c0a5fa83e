"""Where a dimension of a tensor goes: operators that treat its entries apart and leave them in order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.graph.graph import argument, packet

_aten = torch.ops.aten

#: Operators on [N, C, positions]; their names end with how many dimensions the positions have.
_POSITIONWISE = {
    _aten.max_pool1d, _aten.max_pool2d, _aten.max_pool3d, _aten.avg_pool1d, _aten.avg_pool2d, _aten.avg_pool3d,
    _aten.adaptive_avg_pool1d, _aten.adaptive_avg_pool2d, _aten.adaptive_avg_pool3d, _aten.upsample_nearest1d,
    _aten.upsample_nearest2d, _aten.upsample_nearest3d, _aten.upsample_bilinear2d, _aten.upsample_bicubic2d,
}  # fmt: skip
_REDUCTIONS = {_aten.mean, _aten.sum, _aten.amax, _aten.amin}
_REMOVALS = _REDUCTIONS | {_aten.squeeze, _aten.select, _aten.sym_size}


def sizes_of(node: fx.Node) -> tuple[Any, ...]:
    """The sizes of the node's tensor: numbers, and symbols that hang on the batch; none where it makes no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def num_alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many sizes are the same from the beginning; a symbol is the same only as itself."""
    pairs = list(zip(one, other, strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if type(a) is not type(b) or str(a) != str(b)), len(pairs))


def moved_axis(node: fx.Node, axis: int) -> int | None:
    """Where the node's output has that dimension of its first argument; None where it mixes it, or is not known.

    For `sym_size`, which returns no tensor, the same dimension where it asks for another one.
    """
    kind, sizes = packet(node), sizes_of(argument(node, 0))
    if kind in _POSITIONWISE:
        return axis if axis == 1 and len(sizes) == int(kind.__name__[-2]) + 2 else None
    if kind in _REMOVALS:
        dims = argument(node, 1)
        gone = {dim % len(sizes) for dim in ([dims] if isinstance(dims, int) else dims or range(len(sizes)))}
        squeezed = kind is not _aten.squeeze or all(sizes[dim] == 1 for dim in gone)
        keeps = kind is _aten.sym_size or (kind in _REDUCTIONS and argument(node, 2, False))
        return None if axis in gone or not squeezed else axis if keeps else axis - sum(dim < axis for dim in gone)
    if kind is _aten.unsqueeze:
        return axis + (argument(node, 1) % (len(sizes) + 1) <= axis)
    if kind is _aten.permute:
        return [dim % len(sizes) for dim in argument(node, 1)].index(axis)
    if kind in (_aten.transpose, _aten.t):
        one, other = (argument(node, position, position - 1) % len(sizes) for position in (1, 2))
        return {one: other, other: one}.get(axis, axis)
    return None
