"""What operators multiply the rows of their weights with."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, fx
from torch.nn import functional

from mixbit.graph.graph import FEW_ELEMENTS, Operation, argument

#: Where convolutions keep strides, padding and dilation.
_STRIDE, _PADDING, _DILATION = 3, 4, 5


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
        yield _windows(node, some, kernel, operation.groups)


def _windows(node: fx.Node, x: Tensor, kernel: Sequence[int], groups: int) -> Tensor:
    """[G, positions, columns], the columns as a convolution's weight has them: channels of the group x kernel."""

    def each(value: int | Sequence[int]) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * spatial if len(values) == 1 else values

    spatial, padding = len(kernel), argument(node, _PADDING, 0)
    stride, dilation = (each(argument(node, position, 1)) for position in (_STRIDE, _DILATION))
    if padding == "same":
        zeros = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
    else:
        zeros = [2 * side for side in each(0 if padding == "valid" else padding)]
    x = functional.pad(x, [side for total in reversed(zeros) for side in (total // 2, total - total // 2)])
    for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]
    x = x.unflatten(1, (groups, -1))
    positions, window = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
    columns = x.shape[2] * math.prod(kernel)
    return x.permute(1, 0, *positions, 2, *window).reshape(groups, -1, columns)
