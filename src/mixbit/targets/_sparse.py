"""Sparse weights on disk: one bit a weight tells which stay, and only those have an integer."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from mixbit.affine import factor_bytes, pack, packed_bytes, unpack
from mixbit.integers import IntegerWeight
from mixbit.scheme import Format, Sparsity
from mixbit.sparsity import num_zeros

#: What the stored mask is called, behind the weight's name.
MASK = "mask"


def num_stored(numel: int, sparsity: Sparsity | None) -> int:
    """Integers in the file of a weight of that many."""
    return numel if sparsity is None else numel - num_zeros(numel, sparsity)


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Integers packed per plane with float32 scales, zero points of a byte and the mask; or numbers of 2 bytes."""
    if fmt is None:
        return 4 * math.prod(shape)
    if fmt.floating is not None:
        return 2 * math.prod(shape)
    numel = math.prod(shape)
    mask = 0 if fmt.sparsity is None else packed_bytes(numel, 1)
    return packed_bytes(num_stored(numel, fmt.sparsity), fmt.bits) + mask + factor_bytes(shape, axis, fmt)


def packed_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The mask in bits, in the order of `mixbit.affine.pack`."""
    (bits,) = pack(mask.astype(np.uint8), 1)
    return bits


def unpacked_mask(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask that `packed_mask` wrote."""
    return unpack([bits], 1, int(np.prod(shape))).astype(bool).reshape(shape)


def without_zeros(weight: IntegerWeight) -> IntegerWeight:
    """The weight with the integers that its mask keeps, flat and in order; the weight itself where it has no mask."""
    if weight.mask is None:
        return weight
    return dataclasses.replace(weight, integers=weight.integers[weight.mask], mask=None)


def expanded(
    integers: NDArray[np.float32], shape: tuple[int, ...], mask: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """The integers of a weight of that shape from those that its mask keeps, or from all of them."""
    if mask is None:
        return integers.reshape(shape)
    weight = np.zeros(shape, dtype=integers.dtype)
    weight[mask] = integers
    return weight
