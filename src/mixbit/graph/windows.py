"""How a convolution cuts up what it reads, and the gradients of its weight for each sample."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional

from mixbit.graph.graph import DILATION, GROUPS, argument

_aten = torch.ops.aten
#: Numbers of gradients that are held at a time.
MOST_ELEMENTS = 2**22
#: Where convolutions keep their sizes: those that are not transposed, and those that are.
_STRIDE, _PADDING, _OUTPUT_PADDING = 3, 4, 5
#: Of the gradients by what is read, by the weight and by the bias.
_OF_WEIGHT = False, True, False


class _Geometry(NamedTuple):
    """What `aten.convolution` takes behind the bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def windows(node: fx.Node, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """[N, G, channels of a group, *positions, *kernel]: what a convolution that is not transposed multiplies; a view.

    Args:
        node: The convolution, with G groups.
        x: [N, channels, ...] what it reads.
        kernel: The weight's sizes behind its channels.
    """
    x, sizes = _geometry(node, x, kernel)
    x = functional.pad(x, [side for side in reversed(sizes.padding) for _ in range(2)])
    for axis, (size, step, apart) in enumerate(zip(kernel, sizes.stride, sizes.dilation, strict=True), 2):
        x = x.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]
    return x.unflatten(1, (sizes.groups, -1))


def convolution_gradients(node: fx.Node, weight: Tensor, x: Tensor, gradient: Tensor) -> Iterator[Tensor]:
    """[n, *weight] of a few samples at a time, for what the node reads and the gradient by its output.

    Both are [N, rows, channels, ...], or without rows where one sample has no dimension for them.

    One call a sample costs in all about what one call for the batch does; one convolution with a group for each
    sample, as `torch.func.vmap` makes it, costs several times as much.
    """
    if x.ndim < weight.ndim + 1:
        x, gradient = x.unsqueeze(1), gradient.unsqueeze(1)
    x, sizes = _geometry(node, x, weight.shape[2:])
    size = max(1, MOST_ELEMENTS // weight.numel())
    for some, slopes in zip(x.split(size), gradient.split(size), strict=True):
        pairs = zip(slopes, some, strict=True)
        yield torch.stack([_aten.convolution_backward(*pair, weight, None, *sizes, _OF_WEIGHT)[1] for pair in pairs])


def _geometry(node: fx.Node, x: Tensor, kernel: Sequence[int]) -> tuple[Tensor, _Geometry]:
    """What the node reads, padded where only "same" says how, and its sizes, one for each dimension."""

    def each(position: int, default: int) -> list[int]:
        value = argument(node, position, default)
        values = [value] if isinstance(value, int) else list(value)
        return values * len(kernel) if len(values) == 1 else values

    transposed, padding = "transpose" in str(node.target), argument(node, _PADDING, 0)
    stride, dilation = each(_STRIDE, 1), each(DILATION[transposed], 1)
    if padding == "same":
        zeros = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
        x = functional.pad(x, [side for total in reversed(zeros) for side in (total // 2, total - total // 2)])
    sides = [0] * len(kernel) if isinstance(padding, str) else each(_PADDING, 0)
    output_padding = each(_OUTPUT_PADDING, 0) if transposed else [0] * len(kernel)
    return x, _Geometry(stride, sides, dilation, transposed, output_padding, argument(node, GROUPS, 1))
