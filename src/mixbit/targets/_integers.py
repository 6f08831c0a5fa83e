"""The stored weights of a quantized graph, integers and small floats, as the writers of targets need them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import Format, Sparsity
from mixbit.graph.graph import Graph
from mixbit.quantization.affine import factor_bytes, pack, packed_bytes, unpack
from mixbit.quantization.assemble import quantizers_of
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.sparsity import num_zeros


@dataclass(frozen=True)
class IntegerWeight:
    """One layer's weight in integers: weight = (integers - zero_point) x scale.

    Attributes:
        name: Full name of the parameter.
        integers: int8, between -2^(bits-1) and 2^(bits-1)-1; or, with zero points, uint8, between 0 and 2^bits-1.
        scale: float32: [channels], [1] for the tensor, or [channels, groups].
        axis: The channels' axis.
        bits: Width in the file.
        zero_point: uint8, shaped like the scale; None where the format is symmetric.
        mask: Where the integers of a sparse format stay, in their shape; the others are 0. None elsewhere.
    """

    name: str
    integers: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int
    bits: int
    zero_point: NDArray[np.uint8] | None = None
    mask: NDArray[np.bool_] | None = None

    @property
    def unsigned(self) -> NDArray[np.uint8]:
        """The integers plus `offset`: 0 .. 2^bits-1, as they are `laid_out`."""
        return (self.laid_out.astype(np.int16) + self.offset).astype(np.uint8)

    @property
    def offset(self) -> int:
        """2^(bits-1), or 0 with zero points."""
        return 2 ** (self.bits - 1) if self.zero_point is None else 0

    @property
    def grouped(self) -> bool:
        """Whether groups of a channel's weights have scales of their own."""
        return self.scale.ndim > 1

    @property
    def laid_out(self) -> NDArray[Any]:
        """The integers in the order in which files hold them: as they are, or [channels, groups, weights]."""
        if not self.grouped:
            return self.integers
        return np.moveaxis(self.integers, self.axis, 0).reshape(*self.scale.shape, -1)

    @property
    def channels_first(self) -> tuple[int, ...]:
        """The weight's shape with the channels in front."""
        return tuple(np.moveaxis(self.integers, self.axis, 0).shape)

    @property
    def column(self) -> NDArray[np.float32]:
        """The scale, shaped to multiply the integers as they are `laid_out`."""
        return self.scale.reshape(self._broadcast())

    @property
    def zero_column(self) -> NDArray[np.uint8] | None:
        """The zero points, shaped to be taken from the integers as they are `laid_out`."""
        return None if self.zero_point is None else self.zero_point.reshape(self._broadcast())

    def _broadcast(self) -> list[int]:
        if self.grouped:
            return [*self.scale.shape, 1]
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return shape


def integer_weights(graph: Graph) -> dict[str, IntegerWeight]:
    """Name of the parameter -> its integers, for every weight of the graph that is quantized to integers."""
    weights = {}
    for quantizer in _of_weights(graph):
        if quantizer.format.floating is None:
            name, symmetric = quantizer.tensor, quantizer.format.symmetric
            integers = _array(quantizer.integers(graph.parameter(name).detach()))
            zero_point = None if symmetric else _array(quantizer.zero_point).astype(np.uint8)
            weights[name] = IntegerWeight(
                name,
                integers.astype(np.int8 if symmetric else np.uint8),
                _array(quantizer.scale.float()),
                0 if quantizer.axis is None else quantizer.axis,
                quantizer.format.bits,
                zero_point,
                None if quantizer.mask is None else _array(quantizer.mask),
            )
    return weights


def float_weights(graph: Graph) -> dict[str, Tensor]:
    """Name of the parameter -> the weight in float16 or bfloat16, for those that the plan stores so."""
    return {
        quantizer.tensor: quantizer(graph.parameter(quantizer.tensor).detach())
        .cpu()
        .to(getattr(torch, quantizer.format.floating))
        for quantizer in _of_weights(graph)
        if quantizer.format.floating is not None
    }


def _of_weights(graph: Graph) -> list[Quantizer]:
    return [quantizer for quantizer in quantizers_of(graph) if quantizer.axis is not None]


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


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
    """The mask in bits, in the order of `mixbit.quantization.affine.pack`."""
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


#: Between a layer's name and the part of its weight, in names of tensors.
SEPARATOR = "::"
#: Between a layer's name and the number of a further operator that reads its weight, in names of operators.
FURTHER = "#"
