"""What operators multiply the rows of their weights with."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from mixbit.graph import FEW_ELEMENTS, Operation, windows
from mixbit.quantization.ranges import spacing


def rows_of(node: fx.Node, operation: Operation, x: Tensor, kernel: Sequence[int]) -> Iterator[Tensor]:
    """[G, N, columns] what an operator that is not transposed multiplies its weight's rows with, few samples at a time.

    The kernel is the weight's sizes behind its channels; empty for products.
    """
    if operation.channels_last:
        yield x.reshape(1, -1, x.shape[-1])
        return
    if x.ndim == len(kernel) + 1:
        x = x.unsqueeze(0)  # one sample
    elements = math.prod(x.shape[1:]) * math.prod(kernel)
    for some in x.split(max(1, 4 * FEW_ELEMENTS // elements)):
        yield _by_position(windows(node, some, kernel), len(kernel)).flatten(0, len(kernel)).flatten(2).movedim(1, 0)


def few_rows_of(
    node: fx.Node, operation: Operation, samples: Sequence[Tensor], kernel: Sequence[int], count: int
) -> Tensor:
    """[G, N, columns] some of those rows, evenly spaced over all samples: N from the count to twice as many."""
    if operation.channels_last:
        rows = torch.cat([x.flatten(0, -2) for x in samples])
        return rows[:: spacing(len(rows), count)].unsqueeze(0)
    parts, dims = [], len(kernel)
    for x in samples:
        by_position = _by_position(windows(node, x if x.ndim > dims + 1 else x.unsqueeze(0), kernel), dims)
        sizes = by_position.shape[: 1 + dims]
        places = torch.arange(0, math.prod(sizes), spacing(math.prod(sizes), max(1, count // len(samples))))
        few = len(places) < math.prod(sizes)
        rows = by_position[torch.unravel_index(places, sizes)] if few else by_position.flatten(0, dims)
        parts.append(rows.flatten(2).movedim(1, 0))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _by_position(cut: Tensor, dims: int) -> Tensor:
    """[N, *positions, G, channels of a group, *kernel] of the windows of a convolution over so many dimensions."""
    return cut.permute(0, *range(3, 3 + dims), 1, 2, *range(3 + dims, 3 + 2 * dims))
