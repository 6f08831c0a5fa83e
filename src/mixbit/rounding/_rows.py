"""The rows that an operator multiplies its weight with."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, fx
from torch.nn import functional

from mixbit.nodes import argument
from mixbit.operators import FEW_ELEMENTS, Operation

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
        yield _windows(node, some, kernel, operation.groups(node))


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
    if given == "valid":
        given = 0
    if given == "same":
        totals = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(one, one) for one in _each(given, len(kernel))]  # type: ignore[arg-type] texts are dealt with
    return [zeros for pair in reversed(pairs) for zeros in pair]
