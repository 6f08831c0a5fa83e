"""The pure maths of formats: scales, integers, which weights are zero, and integers packed into bytes."""

import math
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import Format, Sparsity

#: The scale of a tensor of zeros, where any would do.
SCALE_OF_ZEROS = 1.0
#: Tensors that would need smaller scales count as zeros: float32 holds smaller numbers with fewer digits.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
#: Numbers that many operations work on at a time, so that they stay in a core's cache.
FEW_ELEMENTS = 2**16
#: Largest bias in steps of input scale x weight scale: half of what 32 bits hold, so that sums have room.
LARGEST_BIAS = 2**30


def along(values: Tensor, axis: int | None, shape: Sequence[int]) -> Tensor:
    """Scales or zero points, reshaped to broadcast with a tensor of that shape.

    They are one number (axis None), one per index of the axis, or [channels, groups] of equally many neighbours within
    a channel, its other dimensions flattened.
    """
    if axis is None:
        return values
    if values.ndim == 1:
        return values.reshape([-1 if dimension == axis else 1 for dimension in range(len(shape))])
    rest = [size for dimension, size in enumerate(shape) if dimension != axis]
    each = values.repeat_interleave(math.prod(rest) // values.shape[1], dim=1)
    return each.reshape(-1, *rest).movedim(0, axis)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, low: int, high: int, *, shifted: bool = False
) -> Tensor:
    """Integers q = clip(round(x / scale) + zero_point, low, high), ties to even; same shape and dtype as x.

    Scales and zero points are as `along` takes them, low and high the smallest and largest integer of the format. With
    `shifted` the integers are clip(round(x / scale + zero_point), low, high): others where x is in the middle between
    two and the zero point is odd.
    """
    scale, zero_point = along(scale, axis, x.shape), along(zero_point, axis, x.shape)
    position = x / scale
    integers = position.add_(zero_point).round_() if shifted else position.round_().add_(zero_point)
    return integers.clamp_(low, high)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Values x = (q - zero_point) * scale, the inverse of `quantize` up to rounding and clipping."""
    return (q - along(zero_point, axis, q.shape)).mul_(along(scale, axis, q.shape))


def rounded(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, low: int, high: int, *, shifted: bool = False
) -> Tensor:
    """dequantize(quantize(x)): the same numbers, made in a core's cache, part by part."""
    result = torch.empty_like(x)
    factors = along(scale, axis, x.shape), along(zero_point, axis, x.shape)
    values, made = x, result
    if axis is None and x.is_contiguous():
        values, made = x.reshape(-1), result.reshape(-1)
    size = max(1, len(values))
    if x.device.type == "cpu" and x.numel() and values.stride(0) == max(values.stride()):
        size = max(1, FEW_ELEMENTS * size // x.numel())
    by_part = (factor.split(size) if factor.shape[:1] == values.shape[:1] else repeat(factor) for factor in factors)
    for part, into, step, zero in zip(values.split(size), made.split(size), *by_part, strict=False):
        position = torch.div(part, step, out=into)
        integers = position.add_(zero).round_() if shifted else position.round_().add_(zero)
        integers.clamp_(low, high).sub_(zero).mul_(step)
    return result


def straight_through(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, limits: tuple[int, int], gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients by x and by the scales of dequantize(quantize(x)), straight through the rounding.

    With v = x / s and q the integer less its zero point: d/dx = 1 where x is inside the range, else 0; d/ds = q - v
    inside, else q, the limit that v is beyond. Equation 3 of Esser et al. 2020 (LSQ, arXiv:1902.08153).
    """
    if axis is not None:
        factors = along(scale, axis, x.shape), along(zero_point, axis, x.shape)
        by_x, by_scale = _straight_through(x, *factors, limits, gradient)
        channels = by_scale.movedim(axis, 0).flatten(1)  # their sums are the transpose of `along`
        if scale.ndim > 1:
            return by_x, channels.unflatten(1, (scale.shape[1], -1)).sum(2)
        return by_x, channels.sum(1) if len(scale) == len(channels) else channels.sum().reshape(1)
    by_x, sums = torch.empty_like(gradient, memory_format=torch.contiguous_format), []
    size = FEW_ELEMENTS if x.device.type == "cpu" else max(1, x.numel())
    flat = (tensor.reshape(-1).split(size) for tensor in (x, gradient, by_x))
    for values, slopes, result in zip(*flat, strict=True):
        piece, by_scale = _straight_through(values, scale, zero_point, limits, slopes)
        result.copy_(piece)
        sums.append(by_scale.sum())
    return by_x, torch.stack(sums).sum().reshape(scale.shape)


def _straight_through(
    x: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int], gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Both gradients number by number; scales and zero points broadcast with x."""
    low, high = limits[0] - zero_point, limits[1] - zero_point
    position = x / scale
    inside = (position >= low - 0.5) & (position <= high + 0.5)
    slope = position.round().clamp_(low, high).sub_(torch.where(inside, position, 0))
    return torch.where(inside, gradient, 0), slope.mul_(gradient)


def bias_step(read: Tensor, scale: Tensor, channels: int) -> Tensor:
    """[channels] what a bias is a whole multiple of, as runtimes hold it: the input's scale times the weight's.

    A bias of one number serves all channels of the weight. Where a transposed convolution has groups, each scale of the
    weight serves one channel of every group.
    """
    products = read * scale
    return products.repeat(max(1, channels // len(products)))


def least_scale(bias: Tensor, read: Tensor, channels: int) -> Tensor:
    """[channels] the weight's scales at which the bias is LARGEST_BIAS steps, for the input's scale."""
    steps = bias.abs() / (read * LARGEST_BIAS)
    return steps.expand(channels) if steps.numel() == 1 else steps.reshape(-1, channels).amax(0)


def min_max_factors(weight: Tensor, axis: int, fmt: Format) -> tuple[Tensor, Tensor]:
    """The smallest scales that clip no weight, and zero points: [channels], [channels, groups], or [1] for the tensor.

    Symmetric: max(max w / high, min w / low), zero points 0. Otherwise (max(w, 0) - min(w, 0)) / (high - low), and the
    zero point is the whole number that stands for 0. Weights that are all zero, or need less than `SMALLEST_SCALE`,
    take the smallest of the other scales: any scale serves them, and biases are multiples of scales.
    """
    first, last = fmt.integer_range
    parts = weight.detach().movedim(axis, 0).flatten(1)
    if fmt.granularity == "tensor":
        parts = parts.reshape(1, -1)
    elif fmt.group is not None:
        parts = parts.unflatten(1, (-1, fmt.group))
    low, high = parts.amin(-1), parts.amax(-1)
    if fmt.symmetric:
        scale = torch.maximum(high / last, low / first)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / (last - first)
    enough = scale >= SMALLEST_SCALE
    others = scale[enough]
    scale = torch.where(enough, scale, others.min() if len(others) else torch.full_like(scale, SCALE_OF_ZEROS))
    return scale, torch.zeros_like(scale) if fmt.symmetric else (first - low / scale).round().clamp(first, last)


def run_time_factors(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Scales and zero points of an activation, taken from its values: one each, or [..., groups, 1] for each group.

    For the tensor as a whole, with l = min(x, 0) and h = max(x, 0): s = (h - l) / (last - first), zero point
    clip(round(first - l / s)), as ONNX's DynamicQuantizeLinear; for every row, the last dimension, the same where the
    format has zero points, as XNNPACK's. Otherwise s = max |x| / last for every row, or for every `fmt.group`
    neighbours in it, and x comes from `in_groups`. Where all values are 0, s = 1.
    """
    first, last = fmt.integer_range
    if fmt.symmetric:
        scale = x.abs().amax(-1, keepdim=True) / last
        return torch.where(scale > 0, scale, SCALE_OF_ZEROS), torch.zeros_like(scale)
    rows = {"dim": -1, "keepdim": True} if fmt.granularity == "row" else {}
    low, high = x.amin(**rows).clamp(max=0), x.amax(**rows).clamp(min=0)
    scale = (high - low) / (last - first)
    scale = torch.where(scale > 0, scale, SCALE_OF_ZEROS)
    return scale, (first - low / scale).round().clamp(first, last)


def in_groups(x: Tensor, fmt: Format) -> Tensor:
    """[..., groups, values] of an activation whose rows share scales in groups; one where they do not divide it."""
    size = fmt.group if fmt.group is not None and x.shape[-1] % fmt.group == 0 else x.shape[-1]
    return x.unflatten(-1, (-1, size))


def num_scales(shape: Sequence[int], axis: int, fmt: Format) -> int:
    """Scales of a weight of that shape and output axis, none where its numbers are floating-point."""
    if fmt.floating is not None:
        return 0
    if fmt.group is not None:
        return math.prod(shape) // fmt.group
    return 1 if fmt.granularity == "tensor" else shape[axis]


def factor_bytes(shape: Sequence[int], axis: int, fmt: Format) -> int:
    """Bytes of a weight's scales in float32 and zero points in bytes."""
    return num_scales(shape, axis, fmt) * (4 if fmt.symmetric else 5)


def range_to_affine(low: float, high: float, fmt: Format) -> tuple[float, int]:
    """Scale and zero point that map [low, high], widened to hold 0, onto the format's integers.

    The zero point is a whole number, so that 0.0 is represented exactly.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = fmt.integer_range
    scale = max(low / first, high / last) if fmt.symmetric else (high - low) / (last - first)
    if scale < SMALLEST_SCALE:
        return SCALE_OF_ZEROS, 0 if fmt.symmetric else first
    return scale, 0 if fmt.symmetric else round(first - low / scale)


def num_zeros(numel: int, sparsity: Sparsity) -> int:
    """Zeros among that many weights: the share of them, rounded down; blocks that divide the rows have it exactly."""
    return numel * sparsity.zeros // (sparsity.block or 100)


def misfit(shape: Sequence[int], axis: int, sparsity: Sparsity) -> str | None:
    """Why a weight of that shape cannot take that pattern, and the way out; None where it can."""
    row = math.prod(shape) // shape[axis]
    if sparsity.block is None or row % sparsity.block == 0:
        return None
    return (
        f"blocks of {sparsity.block} do not divide its rows of {row} weights; take the scheme without @{sparsity}, or "
        f"a share of the whole tensor, as @{round(100 * sparsity.share)}%"
    )


def choose_mask(importance: Tensor, axis: int, sparsity: Sparsity) -> Tensor:
    """A mask of the weight's shape, False at its zeros: the least important weights of every block, or of the tensor.

    There are exactly `num_zeros`, for a pattern that fits, see `misfit`. Of equal weights the first becomes zero first.
    Blocks run along rows, as hardware counts them. A row is what one output channel reads: its weights in the order of
    the kernel's positions, the input channels of each position next to one another. The first axis other than the
    output channels' is that of the input channels.
    """
    by_rows = importance.movedim(axis, 0).movedim(1, -1)  # [channels, ..., input channels]
    parts = by_rows.reshape(-1, sparsity.block) if sparsity.block else importance.reshape(1, -1)
    zeros = torch.argsort(parts, dim=1, stable=True)[:, : num_zeros(parts.shape[1], sparsity)]
    mask = torch.ones_like(parts, dtype=torch.bool).scatter_(1, zeros, value=False)
    if not sparsity.block:
        return mask.reshape(importance.shape)
    return mask.reshape(by_rows.shape).movedim(-1, 1).movedim(0, axis).contiguous()


# A width is stored as planes of 4, 2 and 1 bits: in bit planes no integer straddles two bytes, so that standard tensor
# operators (shift, and, add) unpack them.
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `pack` needs for that many integers."""
    return sum(-(-count * plane // 8) for plane in PLANES[bits])


def pack(integers: NDArray[np.uint8], bits: int) -> list[NDArray[np.uint8]]:
    """Pack unsigned integers of `bits` bits into one byte array per plane, lowest plane first.

    With k = 8 / plane values a byte and m = ceil(n / k) bytes, byte j of a plane holds the values
    j, j + m, j + 2m, ..., lowest bits first: unpacking is k shifts of the whole array, one after the other.
    """
    flat, planes, shift = integers.reshape(-1), [], 0
    for plane in PLANES[bits]:
        values = (flat >> shift) & (2**plane - 1)
        rows = np.pad(values, (0, -flat.size % (8 // plane))).reshape(8 // plane, -1)
        planes.append(np.bitwise_or.reduce(rows << _shifts(plane), axis=0))
        shift += plane
    return planes


def unpack(planes: list[NDArray[np.uint8]], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` integers that `pack` wrote."""
    integers, shift = np.zeros(count, dtype=np.uint8), 0
    for plane, packed in zip(PLANES[bits], planes, strict=True):
        rows = (packed >> _shifts(plane)) & (2**plane - 1)
        integers |= rows.reshape(-1)[:count] << shift
        shift += plane
    return integers


def _shifts(plane: int) -> NDArray[np.uint8]:
    return np.arange(0, 8, plane, dtype=np.uint8)[:, None]
