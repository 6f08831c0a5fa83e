"""Affine quantization, pure maths: scales, integers, and integers packed into bytes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixbit.scheme import Format

#: Where every value of a tensor is zero, any scale serves; this one keeps the arithmetic finite.
SCALE_OF_ZEROS = 1.0


def along(values: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """Reshape a scalar or a vector so that it broadcasts along `axis` of a tensor with that many dimensions."""
    if axis is None:
        return values
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, low: int, high: int) -> Tensor:
    """Integers q = clip(round(x / scale) + zero_point, low, high), ties to even; same shape and dtype as x.

    Args:
        x: Any shape.
        scale: One positive number, or one per index of `axis`.
        zero_point: Whole numbers, shaped like `scale`.
        axis: Channel axis of x, None for one scale.
        low: Smallest integer of the format.
        high: Largest integer of the format.
    """
    scale, zero_point = along(scale, axis, x.ndim), along(zero_point, axis, x.ndim)
    return (x / scale).round_().add_(zero_point).clamp_(low, high)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Values x = (q - zero_point) * scale, the inverse of `quantize` up to rounding and clipping."""
    return (q - along(zero_point, axis, q.ndim)).mul_(along(scale, axis, q.ndim))


def min_max_scale(weight: Tensor, axis: int, fmt: Format) -> Tensor:
    """The smallest symmetric scale per channel that clips nothing: max(max w / high, min w / low), [channels].

    A channel of zeros, which any scale serves, takes the smallest of the others': biases are multiples of scales.
    """
    low, high = fmt.integer_range
    channels = weight.detach().movedim(axis, 0).flatten(1)
    scale = torch.maximum(channels.amax(1) / high, channels.amin(1) / low)
    positive = scale[scale > 0]
    return torch.where(scale > 0, scale, positive.min() if len(positive) else torch.full_like(scale, SCALE_OF_ZEROS))


def range_to_affine(low: float, high: float, fmt: Format) -> tuple[float, int]:
    """Scale and zero point that map [low, high], widened to hold 0, onto the format's integers.

    The zero point is a whole number, so that 0.0 is represented exactly.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = fmt.integer_range
    if low == high:
        return SCALE_OF_ZEROS, 0 if fmt.symmetric else first
    if fmt.symmetric:
        return max(low / first, high / last), 0
    scale = (high - low) / (last - first)
    return scale, round(first - low / scale)


# A width is stored as planes of 4, 2 and 1 bits: bit planes need no integer to straddle two bytes, so that
# standard tensor operators (shift, and, add) unpack them.
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
        per_byte = 8 // plane
        length = -(-flat.size // per_byte)
        values = np.zeros(per_byte * length, dtype=np.uint8)
        values[: flat.size] = (flat >> shift) & (2**plane - 1)
        rows = values.reshape(per_byte, length)
        packed = np.zeros(length, dtype=np.uint8)
        for index in range(per_byte):
            packed |= rows[index] << (index * plane)
        planes.append(packed)
        shift += plane
    return planes


def unpack(planes: list[NDArray[np.uint8]], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` integers that `pack` wrote."""
    integers, shift = np.zeros(count, dtype=np.uint8), 0
    for plane, packed in zip(PLANES[bits], planes, strict=True):
        rows = [(packed >> (index * plane)) & (2**plane - 1) for index in range(8 // plane)]
        integers |= np.concatenate(rows)[:count] << shift
        shift += plane
    return integers
