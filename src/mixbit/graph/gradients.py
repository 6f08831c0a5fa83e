"""The gradient of a convolution's weight for each sample: one call of torch's own operator a sample."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional

from mixbit.graph.graph import GROUPS, argument

_aten = torch.ops.aten
#: Numbers of gradients that are held at a time.
MOST_ELEMENTS = 2**22
_STRIDE, _PADDING = 3, 4
#: Where convolutions, transposed or not, keep the rest.
_DILATION = {False: 5, True: 7}
_OUTPUT_PADDING = 5
#: Of the gradients by what is read, by the weight and by the bias.
_OF_WEIGHT = False, True, False


def convolution_gradients(node: fx.Node, weight: Tensor, x: Tensor, gradient: Tensor) -> Iterator[Tensor]:
    """[n, *weight] of a few samples at a time, for what the node reads and the gradient by its output.

    Both are [N, rows, channels, ...], or without rows where one sample has no dimension for them.

    One call a sample costs in all about what one call for the batch does; one convolution with a group for each
    sample, as `torch.func.vmap` makes it, costs several times as much.
    """
    dims, transposed = weight.ndim - 2, "transpose" in str(node.target)
    stride, dilation = (_each(argument(node, at, 1), dims) for at in (_STRIDE, _DILATION[transposed]))
    output_padding = _each(argument(node, _OUTPUT_PADDING, 0), dims) if transposed else [0] * dims
    padding, groups = argument(node, _PADDING, 0), argument(node, GROUPS, 1)
    if padding == "same":
        zeros = [apart * (size - 1) for size, apart in zip(weight.shape[2:], dilation, strict=True)]
        x = functional.pad(x, [side for total in reversed(zeros) for side in (total // 2, total - total // 2)])
    sides = [0] * dims if isinstance(padding, str) else _each(padding, dims)
    geometry = stride, sides, dilation, transposed, output_padding, groups
    if x.ndim < weight.ndim + 1:
        x, gradient = x.unsqueeze(1), gradient.unsqueeze(1)
    size = max(1, MOST_ELEMENTS // weight.numel())
    for some, slopes in zip(x.split(size), gradient.split(size), strict=True):
        pairs = zip(slopes, some, strict=True)
        yield torch.stack([_aten.convolution_backward(*pair, weight, None, *geometry, _OF_WEIGHT)[1] for pair in pairs])


def _each(value: int | Sequence[int], dims: int) -> list[int]:
    """One number for each dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
