"""What operators multiply the rows of their weights with."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from mixbit.graph import FEW_ELEMENTS, Operation, windows


def rows_of(node: fx.Node, operation: Operation, x: Tensor, kernel: Sequence[int]) -> Iterator[tuple[Tensor, float]]:
    """[G, N, columns] what an operator that is not transposed multiplies its weight's rows with, and the share of all.

    A few entries of the first dimension at a time. The kernel is the weight's sizes behind its channels; empty for
    products.
    """
    if operation.channels_last:
        yield x.reshape(1, -1, x.shape[-1]), 1.0
        return
    if x.ndim == len(kernel) + 1:
        x = x.unsqueeze(0)  # one sample
    elements = math.prod(x.shape[1:]) * math.prod(kernel)
    for some in x.split(max(1, 4 * FEW_ELEMENTS // elements)):
        rows = _by_position(windows(node, some, kernel), len(kernel)).flatten(0, len(kernel)).flatten(2).movedim(1, 0)
        yield rows, len(some) / len(x)


def few_rows_of(
    node: fx.Node, operation: Operation, samples: Sequence[Tensor], kernel: Sequence[int], count: int
) -> Tensor:
    """[G, N, columns] so many of those rows, or all, each at a random place of its own stretch of all samples."""
    if operation.channels_last:
        rows = torch.cat([x.flatten(0, -2) for x in samples])
        return rows[_places(len(rows), count).to(rows.device)].unsqueeze(0)
    parts, dims = [], len(kernel)
    batched = [x if x.ndim > dims + 1 else x.unsqueeze(0) for x in samples]
    by_position = [_by_position(windows(node, x, kernel), dims) for x in batched]
    totals = [math.prod(cut.shape[: 1 + dims]) for cut in by_position]
    for cut, total in zip(by_position, totals, strict=True):
        places = _places(total, -(-count * total // sum(totals))).to(cut.device)
        few = torch.unravel_index(places, cut.shape[: 1 + dims]) if len(places) < total else None
        parts.append((cut.flatten(0, dims) if few is None else cut[few]).flatten(2).movedim(1, 0))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _places(total: int, count: int) -> Tensor:
    """So many of the numbers below the total, rising; all where there are no more."""
    if total <= count:
        return torch.arange(total)
    starts = torch.arange(count + 1) * total // count
    within = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return starts[:-1] + (within * starts.diff()).long()


def _by_position(cut: Tensor, dims: int) -> Tensor:
    """[N, *positions, G, channels of a group, *kernel] of the windows of a convolution over so many dimensions."""
    return cut.permute(0, *range(3, 3 + dims), 1, 2, *range(3 + dims, 3 + 2 * dims))
