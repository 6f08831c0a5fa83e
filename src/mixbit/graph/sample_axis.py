"""Where a tensor keeps its samples: first, second, or multiplied into its rows, as attention and windows do."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.graph.graph import packet

_aten = torch.ops.aten
_VIEWS = (_aten.view, _aten.reshape, _aten.flatten, _aten._unsafe_view)


@dataclass(frozen=True)
class SampleAxis:
    """Dimension `axis` of a tensor holds outer x samples x inner rows, the last of them running fastest."""

    axis: int
    outer: int = 1
    inner: int = 1

    def group(self, x: Tensor) -> Tensor:
        """The tensor with its samples first and the rows of each behind: [N, outer x inner, other dimensions]."""
        rows = x.movedim(self.axis, 0)
        return rows.reshape(self.outer, -1, self.inner, *rows.shape[1:]).movedim(1, 0).flatten(1, 2)


def group_samples(axis: SampleAxis | None, x: Tensor) -> Tensor:
    """[N, rows, ...] the rows of each sample; all rows as those of one sample where samples cannot be told apart."""
    return x.unsqueeze(0) if axis is None else axis.group(x)


def sample_axis(node: fx.Node) -> SampleAxis | None:
    """Where the node's tensor keeps its samples, read from the symbolic shapes; None where that does not show."""
    while True:
        multiples = [_batch_multiple(size) for size in _shape(node)]
        if 1 in multiples:
            return SampleAxis(multiples.index(1))
        if not multiples or multiples[0] is None:
            return None
        same = [before for before in node.all_input_nodes if _rows(before) == multiples[0]]
        if not same:
            return _merged(_shape(node.all_input_nodes[0]), multiples[0]) if packet(node) in _VIEWS else None
        node = same[0]


def _rows(node: fx.Node) -> int | None:
    return _batch_multiple(next(iter(_shape(node)), None))


def _merged(shape: tuple[Any, ...], wanted: int) -> SampleAxis | None:
    """The axis that a view makes of the leading dimensions of that shape, `wanted` rows a sample in all."""
    outer = inner = 1
    seen = False
    for size in shape:
        if isinstance(size, int):
            outer, inner = (outer, inner * size) if seen else (outer * size, inner)
        elif _batch_multiple(size) == 1 and not seen:
            seen = True
        else:
            return None
        if seen and outer * inner == wanted:
            return SampleAxis(0, outer, inner)
    return None


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _batch_multiple(size: Any) -> int | None:
    """The k of a size that is k times the batch size, the only size of a captured graph that is not a number."""
    if not isinstance(size, torch.SymInt):
        return None
    expression = size.node.expr
    symbols = tuple(expression.free_symbols)
    factor = expression / symbols[0] if len(symbols) == 1 else None
    return int(factor) if factor is not None and factor.is_Integer else None
