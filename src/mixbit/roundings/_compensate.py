"""Rounding column by column, each error made up for by the columns that are still to come: tensors and numbers only."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional

from mixbit.graph.graph import FEW_ELEMENTS, Operation, argument
from mixbit.quantization.affine import dequantize, quantize
from mixbit.quantization.statistics import inverse_factor

#: Columns rounded before the ones behind them are brought up to date, all in one product.
BLOCK = 128


def compensated(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    *,
    damping: float,
    by_activation: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """Whole multiples Q of the scales that make sum over rows w of W and q of Q of (q - w) H (q - w)' small.

    Columns are rounded one after the other, to the nearest; each error, over the diagonal of the upper Cholesky factor
    U of the inverse of H, times its row of U is taken off the columns behind. H is damped first: its diagonal grows by
    `damping` of its mean, and by ten times as much again wherever the factors do not exist. A column whose diagonal is
    0 is rounded to the nearest and makes up for nothing.

    Args:
        weight: [G, rows, columns] W, of G problems that do not touch one another.
        hessian: [G, columns, columns] H = X'X, symmetric and positive semi-definite.
        scale: [G, rows, columns] the scale of every weight.
        zero_point: Shaped like it.
        limits: Smallest and largest integer.
        damping: At least 0.
        by_activation: Columns in the order of falling diagonals of H, rather than as they stand.
        mask: [G, rows, columns] False where a weight is to be 0; None where there are no such weights.

    Returns:
        [G, rows, columns] Q, in the type of W; computed in float64.

    Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arXiv:2210.17323, algorithm 1; zeros as in E. Frantar and D. Alistarh, "SparseGPT", arXiv:2301.00774.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    order = torch.arange(weight.shape[2], device=weight.device).expand_as(diagonal)
    if by_activation:
        order = diagonal.argsort(dim=1, descending=True, stable=True)
    columns = order.unsqueeze(1).expand_as(weight)
    sorted_rows = hessian.gather(1, order.unsqueeze(2).expand_as(hessian))
    factor = inverse_factor(sorted_rows.gather(2, order.unsqueeze(1).expand_as(hessian)), damping)
    scale, zero_point = scale.gather(2, columns), zero_point.gather(2, columns)
    mask = None if mask is None else mask.gather(2, columns)
    rounded = _in_order(weight.gather(2, columns).double(), factor, scale, zero_point, mask, limits)
    return torch.empty_like(weight).scatter_(2, columns, rounded.to(weight))


def least_error(weight: Tensor, hessian: Tensor, *rounded: Tensor) -> Tensor:
    """[G, rows, columns] of several roundings of W, for each row w the one with the least (q - w) H (q - w)'."""
    changes = [q.double() - weight.double() for q in rounded]
    errors = torch.stack([((change @ hessian) * change).sum(2) for change in changes])
    best = errors.argmin(0).expand_as(rounded[0].movedim(2, 0)).movedim(0, 2)
    return torch.stack(rounded).gather(0, best.unsqueeze(0)).squeeze(0)


def _in_order(
    weight: Tensor, factor: Tensor, scale: Tensor, zero_point: Tensor, mask: Tensor | None, limits: tuple[int, int]
) -> Tensor:
    """Q for columns in the order they stand in; W is overwritten."""
    rounded = torch.empty_like(weight)
    for first in range(0, weight.shape[2], BLOCK):
        last = min(first + BLOCK, weight.shape[2])
        errors = torch.empty_like(weight[:, :, first:last])
        for column in range(first, last):
            w, s, z = weight[:, :, column], scale[:, :, column].double(), zero_point[:, :, column].double()
            q = dequantize(quantize(w, s, z, None, *limits), s, z, None)
            if mask is not None:
                q = q * mask[:, :, column]
            rounded[:, :, column] = q
            error = (w - q) / factor[:, column, column, None]
            weight[:, :, column + 1 : last] -= error.unsqueeze(2) * factor[:, None, column, column + 1 : last]
            errors[:, :, column - first] = error
        weight[:, :, last:] -= errors @ factor[:, first:last, last:]
    return rounded


#: Where convolutions keep strides, padding and dilation.
_STRIDE, _PADDING, _DILATION = 3, 4, 5


def rows_of(node: fx.Node, operation: Operation, x: Tensor, kernel: Sequence[int]) -> Iterator[Tensor]:
    """[G, N, columns] what the operator multiplies with the rows of its weight, few samples at a time.

    Args:
        node: The operator's: linear, a product, or a convolution that is not transposed.
        operation: The same.
        x: What it reads.
        kernel: The weight's sizes behind its channels; empty for products.
    """
    if operation.channels_last:
        yield x.reshape(1, -1, x.shape[-1])
        return
    if x.ndim == len(kernel) + 1:
        x = x.unsqueeze(0)  # one sample
    elements = math.prod(x.shape[1:]) * math.prod(kernel)
    for some in x.split(max(1, 4 * FEW_ELEMENTS // elements)):
        yield _windows(node, some, kernel, operation.groups)


def _windows(node: fx.Node, x: Tensor, kernel: Sequence[int], groups: int) -> Tensor:
    """[G, positions, columns], the columns as a convolution's weight has them: channels of the group x kernel."""
    spatial = len(kernel)
    stride, dilation = (_each(argument(node, position, 1), spatial) for position in (_STRIDE, _DILATION))
    x = functional.pad(x, _padding(argument(node, _PADDING, 0), kernel, dilation))
    for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]
    x = x.unflatten(1, (groups, -1))
    positions, window = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
    columns = x.shape[2] * math.prod(kernel)
    return x.permute(1, 0, *positions, 2, *window).reshape(groups, -1, columns)


def _each(value: int | Sequence[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _padding(given: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Zeros before and behind every spatial dimension, the last dimension first, as `pad` takes them."""
    if given == "same":
        totals = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        each = _each(0 if isinstance(given, str) else given, len(kernel))  # the other text is "valid"
        pairs = [(zeros, zeros) for zeros in each]
    return [zeros for pair in reversed(pairs) for zeros in pair]
